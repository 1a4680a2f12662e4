"""The user's own: the namespace, the catalog, and what the terminal can show."""

import sys
from collections.abc import Iterator

from zoo.doctor.check import BAD, NOTE, OK, Check, printable

_MOST = 5
"""Broken entries with a line each."""


def namespace_checks() -> Iterator[Check]:
    from zoo.errors import UsageError
    from zoo.settings import NAMESPACE, namespace

    try:
        name = namespace()
    except UsageError as error:
        yield Check("namespace", BAD, printable(f"{error.what}: {error.where}"), error.fix)
        return
    if name:
        yield Check("namespace", OK, name)
    else:
        what = "none: our own models are not looked for on the Hub"
        yield Check("namespace", NOTE, what, f"export {NAMESPACE}=ORG, whoever publishes them")


def catalog_checks() -> Iterator[Check]:
    from zoo.catalog import load_catalog
    from zoo.settings import config_folder

    catalog = load_catalog()
    for problem in list(catalog.problems.values())[:_MOST]:
        yield Check("catalog", BAD, printable(str(problem)), problem.error().fix)
    if (more := len(catalog.problems) - _MOST) > 0:
        yield Check("catalog", BAD, f"and {more} more entries that are broken", "see zoo list")
    if not catalog.problems:
        file = config_folder() / "catalog.toml"
        own = f", with {file}" if file.exists() else "; none of your own"
        yield Check("catalog", OK, f"{len(catalog.models)} models{own}")


def terminal_checks() -> Iterator[Check]:
    encoding = sys.stdout.encoding or "ascii"
    if not encoding.lower().startswith("utf"):
        what = f"output in {printable(encoding, 40)}: other characters are shown by their numbers"
        yield Check("terminal", NOTE, what, "export PYTHONUTF8=1")
