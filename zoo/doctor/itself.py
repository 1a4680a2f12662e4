"""This Python, and this tinyzoo: which one, from where, of which commit."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

import zoo
from zoo.doctor.check import BAD, NOTE, OK, Check
from zoo.doctor.installed import OURS, Installed, Package, first


def itself_checks(
    installed: Installed, root: Path = Path(zoo.__file__).parents[1]
) -> Iterator[Check]:
    """root: the folder that holds the ``zoo/`` which runs now."""
    ours = first(installed, OURS)
    yield _python(ours)
    yield _this(ours, root)


def _python(ours: Package | None) -> Check:
    version = platform.python_version()
    kind = "virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    what = f"{version}, {kind}, {sys.executable}"
    try:
        wanted = SpecifierSet(ours.python if ours else "")
    except InvalidSpecifier:
        wanted = SpecifierSet()
    if wanted.contains(version.rstrip("+"), prereleases=True):
        return Check("python", OK, what)
    return Check("python", BAD, f"{what}; tinyzoo needs {wanted}", "use a Python of these")


def _this(ours: Package | None, root: Path) -> Check:
    checkout = (root / "pyproject.toml").is_file()
    commit = _commit(root) if checkout else ""
    place = f"{root}, commit {commit}" if commit else str(root)
    install = f"pip install --editable {root}" if checkout else "pip install --upgrade tinyzoo"
    if ours is None:
        return Check(OURS, BAD, f"{place}: without the metadata of an installation", install)
    if ours.editable is None:
        where, how = ours.metadata.parent, ours.version
    else:
        where, how = ours.editable, f"{ours.version}, editable"
        if not (where / "zoo" / "__init__.py").is_file():
            what = f"{how}: its folder {where} has no zoo/ any more (this is {root})"
            return Check(OURS, BAD, what, install)
    if where.resolve() != root.resolve():
        return Check(OURS, NOTE, f"{how} from {where}; what runs now is {place}", install)
    return Check(OURS, OK, f"{how}, {place}")


def _commit(root: Path) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""  # no git, or a very slow disk
    return done.stdout.strip() if done.returncode == 0 else ""
