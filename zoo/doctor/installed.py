"""The distributions of a ``sys.path`` by their own metadata, and what they miss."""

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

OURS = "tinyzoo"

Installed = Mapping[str, list["Package"]]
"""By canonical name, in the order in which Python finds them; the first is the one in force."""


class Package(NamedTuple):
    """A distribution that is installed."""

    name: str
    version: str
    requires: tuple[str, ...]
    python: str
    """Its ``Requires-Python``."""
    extras: tuple[str, ...]
    metadata: Path
    """The ``.dist-info`` folder."""
    editable: Path | None
    """The folder that an editable install points to."""

    @property
    def release(self) -> Version | None:
        """None for a version that is none."""
        try:
            return Version(self.version)
        except InvalidVersion:
            return None


class Fault(NamedTuple):
    """A requirement that is not met."""

    by: Package
    requirement: Requirement
    found: Package | None

    def text(self) -> str:
        wanted = f"{self.by.name} {self.by.version} needs {self.requirement.name}"
        wanted += f" {self.requirement.specifier}" if self.requirement.specifier else ""
        found = self.found
        return f"{wanted}; " + (f"{found.version} is installed" if found else "it is not installed")

    def fix(self) -> str:
        return f"pip install '{self.requirement.name}{self.requirement.specifier}'"


def read_installed(path: Iterable[str]) -> dict[str, list[Package]]:
    """What stands in these folders.  What cannot be read is left out."""
    found: dict[str, list[Package]] = {}
    for folder in dict.fromkeys(Path(entry or ".").resolve() for entry in path):
        for metadata in [*_matching(folder, "*.dist-info"), *_matching(folder, "*.egg-info")]:
            # pip calls a folder ~… while it removes a package, and may be interrupted.
            package = None if metadata.name.startswith("~") else _package(metadata)
            if package:
                found.setdefault(canonicalize_name(package.name), []).append(package)
    return found


def first(installed: Installed, name: str) -> Package | None:
    """The one that Python finds."""
    return next(iter(installed.get(canonicalize_name(name), ())), None)


def requirements(package: Package, extra: str = "") -> Iterator[Requirement]:
    """What a package needs on this machine; with an extra, what that adds."""
    for line in package.requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always != bool(extra) and (always or (marker and marker.evaluate({"extra": extra}))):
            yield requirement


def faults(
    package: Package, installed: Installed, extra: str = "", *, deep: bool = False
) -> Iterator[Fault]:
    """Requirements of a package that are not met; deep: and of all that it needs."""
    seen: set[tuple[str, str]] = set()
    queue = [(package, extra)]
    while queue:
        by, which = queue.pop()
        for requirement in requirements(by, which):
            name = canonicalize_name(requirement.name)
            found = first(installed, name)
            if found is None or not _admits(requirement, found):
                yield Fault(by, requirement, found)
            elif deep:
                wanted = {(name, more) for more in ("", *requirement.extras)}
                queue += [(found, more) for _, more in wanted - seen]
                seen |= wanted


def needed_by(package: Package, installed: Installed) -> set[str]:
    """Canonical names of all that a package stands on, itself included."""
    names: set[str] = set()
    queue = [package]
    while queue:
        by = queue.pop()
        if (name := canonicalize_name(by.name)) not in names:
            names.add(name)
            needs = (first(installed, requirement.name) for requirement in requirements(by))
            queue += filter(None, needs)
    return names


def _admits(requirement: Requirement, found: Package) -> bool:
    release = found.release
    return release is not None and requirement.specifier.contains(release, prereleases=True)


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _package(folder: Path) -> Package | None:
    try:
        distribution = Distribution.at(folder)
        told = distribution.metadata.json
        if not (told.get("name") and told.get("version")):
            return None
        return Package(
            name=str(told["name"]),
            version=str(told["version"]),
            requires=tuple(distribution.requires or ()),
            python=str(told.get("requires_python", "")),
            extras=tuple(told.get("provides_extra", ())),
            metadata=folder,
            editable=_editable(distribution.read_text("direct_url.json")),
        )
    except (OSError, ValueError, TypeError):  # a folder that an interrupted install has left
        return None


def _editable(text: str | None) -> Path | None:
    try:
        origin = json.loads(text or "{}")
        if origin.get("dir_info", {}).get("editable"):
            return Path(unquote(urlsplit(origin["url"]).path))
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    return None
