"""Whether mmsegmentation's kept fork is here, and alone; and its import, without its noise."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import warnings
from collections.abc import Iterator
from functools import cache

from eval.segmentation.config import PARTS
from zoo.doctor.combinations import ORIGINALS
from zoo.doctor.packages import FORK
from zoo.errors import UsageError


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Version by name, of those that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def require_packages() -> None:
    """Raise UsageError where the fork is missing, or shares its names with OpenMMLab's packages."""
    if originals := installed(ORIGINALS):
        listed = ", ".join(f"{name} {version}" for name, version in originals.items())
        raise UsageError(
            f"OpenMMLab's own packages are installed, under the import names of the kept fork: "
            f"{listed}",
            where="mmcv, mmengine, mmseg",
            fix=f"pip uninstall -y {' '.join([*originals, *FORK])} && pip install 'tinyzoo[seg]'",
        )
    missing = [name for name in FORK if name not in installed(FORK)]
    if missing or importlib.util.find_spec("cv2") is None:
        raise UsageError(
            f"segmentation needs {', '.join(missing or ['opencv-python-headless'])}",
            where="the extra 'seg'",
            fix="pip install 'tinyzoo[seg]'",
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what mmengine and mmsegmentation warn of and print: stdout is for the answer.

    They tell of compiled operators that UPerNet does not use, of names to come, of every parameter.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@cache
def import_mmseg() -> None:
    """Import mmsegmentation and our parts of it, and make its registry the one to look in.

    Raises UsageError, also where OpenCV misses a library of the system.
    """
    require_packages()
    with quiet():
        try:
            from mmengine.registry import init_default_scope

            importlib.import_module(PARTS)
        except ImportError as error:
            if "libGL" not in str(error):
                raise
            raise UsageError(
                "OpenCV needs libGL, which this system does not have",
                where=str(error),
                fix="pip uninstall -y opencv-python opencv-python-headless && "
                "pip install opencv-python-headless",
            ) from error
    init_default_scope("mmseg")
