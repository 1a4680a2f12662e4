"""All the looks, in the order of the report; whatever breaks under one is that one's line."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zoo.doctor import machine, settings
from zoo.doctor.check import BAD, WARN, Check, Report, printable
from zoo.doctor.trial import GPU
from zoo.doctor.trials import LIMIT_SECONDS, try_imports

if TYPE_CHECKING:
    from zoo.doctor.installed import Installed

_AGAIN = "pip install --upgrade --force-reinstall tinyzoo"


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
    sections: dict[str, Callable[[], Iterable[Check]]] = {
        "packages": lambda: _packages(where, limit_seconds),
        "processor": lambda: machine.processor_checks(os.environ),
        "shared memory": machine.shared_memory_checks,
        "hub": lambda: _hub(offline),
        "disk": _disks,
        "namespace": settings.namespace_checks,
        "catalog": settings.catalog_checks,
        "terminal": settings.terminal_checks,
    }
    return Report(checks=tuple(c for name, look in sections.items() for c in looked(name, look)))


def looked(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks of one section, the last of them an error if there was one."""
    checks: list[Check] = []
    try:
        checks.extend(look())
    except ImportError as error:
        checks.append(Check(name, BAD, f"not looked at: {printable(str(error))}", _AGAIN))
    except Exception as error:
        what = f"could not be looked at: {type(error).__name__}: {printable(str(error))}"
        checks.append(Check(name, WARN, what, "report this, with the output of zoo doctor --json"))
    return [replace(c, what=printable(c.what), fix=printable(c.fix)) for c in checks]


def _packages(path: Sequence[str], limit_seconds: float) -> Iterator[Check]:
    from zoo.doctor.combinations import combinations
    from zoo.doctor.installed import read_installed
    from zoo.doctor.itself import itself_checks
    from zoo.doctor.packages import package_checks, steps

    installed = read_installed(path)
    trials = try_imports(steps(installed), path, limit_seconds=limit_seconds)
    yield from looked("tinyzoo", lambda: itself_checks(installed))
    yield from looked("packages", lambda: package_checks(installed, trials))
    yield from looked("combinations", lambda: combinations(installed, trials))
    yield from looked("gpu", lambda: machine.gpu_checks(trials.get(GPU), machine.ask_driver()))
    yield from looked("xet", lambda: _xet(installed))


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


def _disks() -> Iterator[Check]:
    from zoo.settings import config_folder

    try:
        from zoo.doctor.cache import cache_folder

        cache = cache_folder()
    except Exception:  # the Hub's client is broken, which has a line of its own
        cache = None
    yield from machine.disk_checks(machine.places(cache, config_folder()))
