"""All the looks, in the order of the report; whatever breaks under one is that one's line."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zoo.doctor import machine, settings
from zoo.doctor.check import BAD, WARN, Check, Report, printable
from zoo.doctor.remedy import remedy
from zoo.doctor.trial import GPU
from zoo.doctor.trials import LIMIT_SECONDS, Trial, try_imports

if TYPE_CHECKING:
    from zoo.doctor.installed import Installed

HUB, PYDANTIC = "huggingface_hub.utils", "pydantic"
"""Imported here for what they know, if they could be in another process."""


def examine(
    *,
    offline: bool = False,
    path: Sequence[str] | None = None,
    limit_seconds: float = LIMIT_SECONDS,
) -> Report:
    """Look at this machine; seconds, of which importing torch takes most.  Raises nothing.

    offline: without the one request to the Hub.  path: where packages are looked for and imported
    from; null for ``sys.path``.  limit_seconds: for one import.
    """
    where = list(sys.path if path is None else path)
    trials: dict[str, Trial] = {}
    return Report(
        checks=(
            *looked("packages", lambda: _packages(where, limit_seconds, trials)),
            *looked("processor", lambda: machine.processor_checks(os.environ)),
            *looked("shared memory", machine.shared_memory_checks),
            *_looked_with(HUB, trials, "hub", lambda: _hub(offline)),
            *looked("disk", lambda: _disks(trials)),
            *looked("namespace", settings.namespace_checks),
            *_looked_with(PYDANTIC, trials, "catalog", settings.catalog_checks),
            *looked("terminal", settings.terminal_checks),
        )
    )


def looked(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks of one section, the last of them an error if there was one."""
    checks: list[Check] = []
    try:
        checks.extend(look())
    except ImportError as error:
        what = f"{type(error).__name__}: {printable(str(error))}"
        checks.append(Check(name, BAD, f"not looked at: {what}", remedy(what, "tinyzoo")))
    except Exception as error:
        what = f"could not be looked at: {type(error).__name__}: {printable(str(error))}"
        checks.append(Check(name, WARN, what, "report this, with the output of zoo doctor --json"))
    return [replace(c, what=printable(c.what), fix=printable(c.fix)) for c in checks]


def _looked_with(
    module: str, trials: Mapping[str, Trial], name: str, look: Callable[[], Iterable[Check]]
) -> list[Check]:
    """The same for a section that imports a module into this process, which may not survive it."""
    if _broken(module, trials):
        return [Check(name, BAD, f"not looked at: {module} does not import", "mend that first")]
    return looked(name, look)


def _broken(module: str, trials: Mapping[str, Trial]) -> bool:
    return module in trials and bool(trials[module].error)


def _packages(
    path: Sequence[str], limit_seconds: float, trials: dict[str, Trial]
) -> Iterator[Check]:
    """trials: is filled with what came of importing each module."""
    from zoo.doctor.combinations import combinations
    from zoo.doctor.installed import read_installed
    from zoo.doctor.itself import itself_checks
    from zoo.doctor.packages import package_checks, steps

    installed = read_installed(path)
    trials |= try_imports(steps(installed), path, limit_seconds=limit_seconds)
    yield from looked("tinyzoo", lambda: itself_checks(installed))
    yield from looked("packages", lambda: package_checks(installed, trials))
    yield from looked("combinations", lambda: combinations(installed, trials))
    yield from looked("gpu", lambda: machine.gpu_checks(trials.get(GPU), machine.ask_driver()))
    yield from _looked_with(HUB, trials, "xet", lambda: _xet(installed))


def _xet(installed: "Installed") -> Iterable[Check]:
    from zoo.doctor.endpoint import transfer_checks

    return transfer_checks(installed)


def _hub(offline: bool) -> Iterator[Check]:
    from zoo.doctor.cache import cache_checks, cache_folder
    from zoo.doctor.endpoint import endpoint_checks
    from zoo.doctor.login import token_checks

    yield from looked("cache", lambda: cache_checks(cache_folder()))
    yield from looked("endpoint", lambda: endpoint_checks(offline=offline))
    yield from looked("token", lambda: token_checks(os.environ))


def _disks(trials: Mapping[str, Trial]) -> Iterator[Check]:
    from zoo.settings import config_folder

    known = {}
    if not _broken(HUB, trials):
        from zoo.doctor.cache import cache_folder

        known["cache"] = cache_folder()
    yield from machine.disk_checks({**known, **machine.places(), "settings": config_folder()})
