"""The catalog: every model by its name, the shipped entries under the user's own.

Loads neither torch nor the Hub's client.  ``zoo/catalog.toml`` has one table a model; a file of the
same form in the user's configuration folder adds models, and replaces keys of shipped ones.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from zoo.entry import Entry, FilePin, Signer, as_record, parse_entry
from zoo.errors import UsageError
from zoo.files import atomic_write, disk_errors, is_plain_name
from zoo.settings import NAMESPACE, config_folder, namespace, read_toml

FORMAT = 1
MODELS = Path("models")
"""Where ``zoo import`` puts model folders, seen from the current directory."""

_SHIPPED = Path(__file__).with_name("catalog.toml")
_MOST_BYTES = 64_000_000
_LONGEST_LINEAGE = 32
_HEADER = "Models known on this machine; zoo push adds what it published.  See docs/catalog.md."


class Problem(NamedTuple):
    """Why a file, or one of its entries, is not believed."""

    file: Path
    key: str
    what: str

    def error(self) -> UsageError:
        return UsageError(
            f"the catalog is broken here: {self.what}",
            where=f"{self.file}: {self.key}" if self.key else str(self.file),
            fix="correct it, or remove it from the file",
        )

    def __str__(self) -> str:
        return ": ".join(filter(None, (str(self.file), self.key, self.what)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """What could be read."""

    models: dict[str, Entry]
    problems: dict[str, Problem] = field(default_factory=dict)
    """By the name of the entry that is not in ``models``; ``""`` for the user's file as a whole."""

    def find(self, name: str) -> Entry:
        """The model of this name.  Raises UsageError: unknown, or its entry is broken."""
        if entry := self.get(name):
            return entry
        raise UsageError(
            f"no model is called {name[:120]!r}" + self._did_you_mean(name),
            where=f"the catalog ({len(self.models)} models)",
            fix="see zoo list",
        )

    def get(self, name: str) -> Entry | None:
        """The same, or None for a name that is not in the catalog.

        Raises UsageError where the entry is broken, or the user's whole file is: it may have
        replaced this model, and the shipped one in its place would not be what was asked for.
        """
        if problem := self.problems.get("") or self.problems.get(name):
            raise problem.error()
        return self.models.get(name)

    def lineage(self, entry: Entry) -> list[Entry]:
        """The model, its teacher, the teacher's teacher, …"""
        return list(_ancestors(self.models, entry))

    def _did_you_mean(self, name: str) -> str:
        close = difflib.get_close_matches(name.lower(), self.models, n=1)
        return f" (did you mean {close[0]!r}?)" if close else ""


class Pin(NamedTuple):
    """Where a model's bytes are, and what they must be."""

    repository: str
    revision: str | None
    """Null for whatever the default branch holds."""
    files: Mapping[str, FilePin]
    """Of that revision, as far as known."""
    signer: Signer | None = None
    """Who must have signed it, whatever the revision; null where the catalog does not say."""

    @property
    def source(self) -> str:
        """``org/name[@revision]``"""
        return "@".join(filter(None, (self.repository, self.revision)))

    @property
    def sha256s(self) -> dict[str, str]:
        """By file."""
        return {name: file.sha256 for name, file in self.files.items()}


def load_catalog() -> Catalog:
    """The shipped catalog under the user's.

    What is broken in the user's is left out and stands in ``problems``; nothing is raised for it.
    """
    shipped, fault = _tables(_SHIPPED)
    assert fault is None, fault
    file = config_folder() / "catalog.toml"
    own, fault = _tables(file)
    problems = {"": fault} if fault else {}
    models: dict[str, Entry] = {}
    for name, table in [*shipped.items(), *own.items()]:
        found = _entry(name, table, shipped, file)
        if isinstance(found, Problem):
            problems[name] = found
            models.pop(name, None)  # the shipped one would not be what the user asked for
        else:
            models[name] = found
    return _with_whole_lineages(Catalog(models=models, problems=problems), file)


def _tables(file: Path) -> tuple[dict[str, Any], Problem | None]:
    """The tables of a catalog file, not yet looked into; none of a file that is not there."""
    try:
        whole = read_toml(file, _MOST_BYTES)
    except ValueError as error:
        return {}, Problem(file, "", str(error))
    if whole is None:
        return {}, None
    if whole.get("format") != FORMAT:
        stated = repr(whole.get("format", "nothing"))[:80]
        return {}, Problem(file, "format", f"this version reads format {FORMAT}, not {stated}")
    if unknown := whole.keys() - {"format", "models"}:
        return {}, Problem(file, _shown(min(unknown)), "unknown key; there are format and models")
    models = whole.get("models", {})
    if not isinstance(models, dict):
        return {}, Problem(file, "models", "must hold one table a model")
    return models, None


def _entry(name: str, table: Any, shipped: Mapping[str, Any], file: Path) -> Entry | Problem:
    key = f"models.{_shown(name)}"
    if not is_plain_name(name):
        return Problem(file, key, "not a plain name: letters, digits, dots, dashes, underscores")
    if not isinstance(table, dict):
        return Problem(file, key, "must be a table")
    if "name" in table:
        return Problem(file, f"{key}.name", "unknown key: the table's own name is the model's")
    # Key by key, and not deeper: a repository of the user's never keeps a shipped pin.
    try:
        return parse_entry(name, {**shipped.get(name, {}), **table})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = first["msg"].removeprefix("Value error, ")
        return Problem(file, ".".join([key, *(_shown(str(part)) for part in first["loc"])]), what)
    except (ValueError, RecursionError) as error:
        return Problem(file, key, str(error))


def _with_whole_lineages(catalog: Catalog, file: Path) -> Catalog:
    """Without the models whose teachers are missing or go in a circle."""
    problems = dict(catalog.problems)
    for name, entry in catalog.models.items():
        try:
            for _ in _ancestors(catalog.models, entry):
                pass
        except LookupError as error:
            problems[name] = Problem(file, f"models.{name}.teacher", str(error.args[0]))
    whole = {name: entry for name, entry in catalog.models.items() if name not in problems}
    return Catalog(models=whole, problems=problems)


def _ancestors(models: Mapping[str, Entry], entry: Entry) -> Iterator[Entry]:
    for _ in range(_LONGEST_LINEAGE):
        yield entry
        if entry.teacher is None:
            return
        if entry.teacher not in models:
            raise LookupError(f"{entry.name} learns from {entry.teacher}, which is not there")
        entry = models[entry.teacher]
    raise LookupError(f"more than {_LONGEST_LINEAGE} teachers in a row, or a circle of them")


def _shown(key: str) -> str:
    """A key as it can stand in one line of a message."""
    return key[:100] if key.isprintable() else repr(key[:100])


def folder_here(name: str) -> Path | None:
    """The folder that ``zoo import --as NAME`` made in the current directory, if there is one."""
    if is_plain_name(name) and (MODELS / name / "config.json").is_file():
        return MODELS / name
    return None


def resolve(source: str) -> Pin | None:
    """Where on the Hub a catalog name (``NAME[@revision]``) leads; None for any other text.

    Our own models are looked for in the user's namespace.  Raises UsageError where the model must
    be imported or made first, and where the user's catalog or settings are broken.
    """
    name, _, revision = source.partition("@")
    entry = load_catalog().get(name) if is_plain_name(name) else None
    if entry is None:
        return None
    if hosted := entry.hosted:
        if revision in ("", hosted.commit):
            return Pin(hosted.repository, hosted.commit, hosted.files, hosted.signer)
        return Pin(hosted.repository, revision, {}, hosted.signer)
    if entry.is_ours and (owner := namespace()):
        return Pin(f"{owner}/{name}", revision or None, {})
    raise _nowhere(entry)


def _nowhere(entry: Entry) -> UsageError:
    ways = []
    where = f"zoo info {entry.name}"
    if entry.is_ours:
        file = config_folder() / "config.toml"
        where += f"; no namespace is set ({NAMESPACE}, or namespace in {file})"
        ways.append(f"set {NAMESPACE} to whoever publishes it on the Hub")
    if file := entry.importable:
        ways.append(f"fetch {file.files[0]} from {file.publisher}: {import_command(entry)}")
    if entry.recipe:
        ways.append(f"make it: {recipe_command(entry)}")
    return UsageError(
        f"{entry.name} cannot be downloaded: it is "
        + ("to be imported from an official file" if entry.importable else "a recipe only"),
        where=where,
        fix="; or ".join(ways),
    )


def import_command(entry: Entry) -> str:
    """What makes a model folder of the official file; empty where there is none."""
    if not entry.importable:
        return ""
    return f"zoo import {entry.importable.files[0]} --as {entry.name}"


def recipe_command(entry: Entry) -> str:
    """What trains it; empty where no recipe does."""
    return f"zoo pretrain {entry.recipe}" if entry.recipe else ""


def add_to_user_catalog(entry: Entry) -> Path:
    """Write an entry into the user's catalog, in place of one of its name; returns the file.

    The rest of the file stays as it is, comments too, and appears whole or not at all.  Raises
    UsageError where the file is broken, DiskError.
    """
    # tomlkit keeps comments; tomllib, which reads, is three times faster and cannot write.
    import tomlkit
    from filelock import FileLock

    # A link in place of the file stays one: people keep their settings elsewhere.
    file = Path(os.path.realpath(config_folder() / "catalog.toml"))
    record = as_record(entry)
    checked = parse_entry(entry.name, record)
    shipped, _ = _tables(_SHIPPED)
    if parse_entry(entry.name, {**shipped.get(entry.name, {}), **record}) != checked:
        raise UsageError(
            f"the shipped catalog has another model by the name of {entry.name}",
            where=str(file),
            fix="publish it under another name, or pull it by its repository",
        )
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(".catalog.lock")):  # two pushes may end at once
            _, fault = _tables(file)
            if fault:
                raise fault.error()
            if file.exists():
                document = tomlkit.parse(file.read_text(encoding="utf-8"))
            else:
                document = tomlkit.document()
                document.add(tomlkit.comment(_HEADER))
                document.add("format", tomlkit.item(FORMAT))
            models = document.setdefault("models", tomlkit.table(is_super_table=True))
            models[entry.name] = tomlkit.item(record)
            text = tomlkit.dumps(document)
            written = tomllib.loads(text)["models"][entry.name]
            assert parse_entry(entry.name, written) == checked
            atomic_write(file, text)
    return file
