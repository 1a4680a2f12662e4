"""Installed packages that are not: real ``.dist-info`` folders and small modules, on a path."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from zoo.doctor.packages import MODULES, SHOWN

EXTRAS = {"onnx": ["onnxruntime"], "serve": ["starlette"], "sign": ["model-signing"]}
_CUDA = """
class _None:
    @staticmethod
    def is_available(): return False
class cuda(_None): pass
class backends: mps = _None
class version: cuda, hip = "13.0", None
"""
_HOME = Path(os.__file__).parent
STANDARD_LIBRARY = [
    p for p in sys.path if Path(p).is_relative_to(_HOME) and "site-packages" not in p
]


def install(
    site: Path,
    name: str,
    version: str = "9.0",
    requires: Iterable[str] = (),
    *,
    module: str | None = None,
    code: str = "",
    more: Iterable[str] = (),
) -> None:
    """Put a distribution into ``site``, and a module of it that runs ``code``.

    more: further lines of its metadata.
    """
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *more]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n\n")
    if module:
        write_module(site, module, f"__version__ = {version!r}\n{code}")


def write_module(site: Path, module: str, code: str) -> None:
    """A module that runs ``code`` when it is imported; its packages are empty."""
    *packages, last = module.split(".")
    folder = site
    for package in packages:
        folder = folder / package
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    (folder / f"{last}.py").write_text(code)


def sound(site: Path, *, without: Iterable[str] = ()) -> Path:
    """Everything that is required, and the extras, in versions that go together."""
    extras = [f"Provides-Extra: {extra}" for extra in EXTRAS]
    needed = [*(f"{name}>=1" for name in SHOWN), "torch>=2.11"]
    optional = [f'{n}>=1; extra == "{extra}"' for extra, names in EXTRAS.items() for n in names]
    ours = ("tinyzoo", "0.1.0", [*needed, *optional])
    for name, version, requires in [
        ours,
        ("torchvision", "9.0", ["torch>=2.14", "pillow!=8.3.*,>=5.3.0"]),
        *((name, "9.0", []) for name in SHOWN),
        *((name, "9.0", []) for names in EXTRAS.values() for name in names),
    ]:
        if name not in without and not list(site.glob(f"{name.replace('-', '_')}-*.dist-info")):
            module = MODULES.get(name)
            code = _CUDA if name == "torch" else ""
            more = extras if name == "tinyzoo" else ()
            install(site, name, version, requires, module=module, code=code, more=more)
    return site
