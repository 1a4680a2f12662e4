"""The classes of a set: what the numbers in its masks mean, and in which colours they are shown.

Three forms are read: ADE20K's ``objectInfo150.txt`` (tabs), the same as ``.csv`` (commas), both
with columns Idx and Name, and ``classes.txt`` with one name a line, where line n is mask value n.
A column Color (``#rrggbb``) gives a set colours of its own.
"""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.layouts.listing import first_ten
from eval.segmentation.colours import ade20k_facts, distinct_colours
from zoo.classes import name_classes
from zoo.errors import DataError, UsageError

MOST_CLASSES = 254
"""A mask has 8 bits, of which 0 and 255 are ignored."""

ADE20K_DIGEST = "6eb499914339dc1b71fa471db02850f2deaaa0fd6cf3495dfbc2ac2ce8e160d6"
"""``Labels.digest`` of ADE20K's 150 classes: hex sha256 over the first word of each.

In it the published lists agree, and mmsegmentation's, which differ in synonyms and separators.
"""

_TABLE = re.compile(r"objectinfo.*\.(csv|txt)", re.IGNORECASE)
_LIST = "classes.txt"
_NUMBER = re.compile(r"[0-9]{1,9}")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
# ADE20K's .txt has ", " between synonyms.  Its .csv has ";" there, and also where a space was.
_BETWEEN = re.compile(r"[;,\s]+")
_AS_ADE20K = "number the classes from 1, without holes: 0 in a mask is what has no class"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labels:
    """C classes.  The class of place i is mask value i + 1."""

    names: tuple[str, ...]
    """For display, all different: the first synonym of each."""
    synonyms: tuple[str, ...]
    """The whole text of each, as the file has it."""
    palette: np.ndarray
    """(C, 3) uint8 RGB."""
    source: Path
    """The file."""
    digest: str
    """Hex sha256 over the words of all names in order, whatever stands between synonyms."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_ade20k(self) -> bool:
        """Whether these are ADE20K's 150 classes in their order."""
        return self.digest == ADE20K_DIGEST


class _Listed(NamedTuple):
    """What one file says."""

    path: Path
    texts: tuple[str, ...]
    colours: tuple[str, ...]
    """One for each class, or none."""


def read_labels(root: Path) -> Labels:
    """The list of classes in ``root``: ``objectInfo*.csv``, ``objectInfo*.txt`` or ``classes.txt``.

    Where there are several, they must list the same classes; the first in this order counts, the
    first with colours for the colours.  Classes without colours of their own get ADE20K's where
    they are its classes, else ones far from each other.

    Raises DataError where there is none, and for numbers with holes, names that are empty, twice
    or not fit for print, more classes than a mask has values, colours that are none, files that
    are not UTF-8 or not of this form.
    """
    lists = [_read(path) for path in _files(root)]
    first = lists[0]
    for other in lists[1:]:
        _require_same(first, other)
    digest = _digest(first.texts)
    names = _short_names(first.texts)
    own = next((listed.colours for listed in lists if listed.colours), ())
    palette = distinct_colours(len(names))
    if digest == ADE20K_DIGEST and (facts := ade20k_facts()):
        names, palette = facts
    if own:
        palette = np.array([list(bytes.fromhex(colour[1:])) for colour in own], np.uint8)
    return Labels(
        names=names, synonyms=first.texts, palette=palette, source=first.path, digest=digest
    )


def _files(root: Path) -> list[Path]:
    """The class lists in order of rank.  Raises DataError where there is none."""
    try:
        entries = [path for path in root.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"the folder cannot be read: {error.strerror}",
            where=str(root),
            fix="check that it is there, and readable",
        ) from error
    tables = [path for path in entries if _TABLE.fullmatch(path.name) and path.is_file()]
    tables.sort(key=lambda path: (path.suffix.lower() != ".csv", path.name))
    found = tables + [path for path in entries if path.name == _LIST and path.is_file()]
    if not found:
        raise DataError(
            "the set has no list of classes",
            where=f"{root}: looked for objectInfo*.csv, objectInfo*.txt, {_LIST}",
            fix=f"write {_LIST} there: one name a line, that of mask value 1 first",
        )
    return found


def _require_same(one: _Listed, other: _Listed) -> None:
    if _digest(one.texts) == _digest(other.texts):
        return
    pairs = enumerate(zip_longest(one.texts, other.texts, fillvalue=""), 1)
    place = next(number for number, (a, b) in pairs if _words(a) != _words(b))
    raise DataError(
        f"two lists of classes, of {len(one.texts)} and of {len(other.texts)}, that differ "
        f"from class {place} on",
        where=f"{one.path} and {other.path.name}",
        fix="keep the one that the masks were made with",
    )


def _read(path: Path) -> _Listed:
    """One file.  Raises DataError."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"the list of classes cannot be read: {error.strerror}",
            where=str(path),
            fix="check its permissions",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the list of classes is not UTF-8, at byte {error.start:,}",
            where=str(path),
            fix="save it as UTF-8",
        ) from error
    listed = _parse_list(path, text) if path.name == _LIST else _parse_table(path, text)
    count = len(listed.texts)
    if not 1 <= count <= MOST_CLASSES:
        raise DataError(
            f"{count:,} classes, where a mask of 8 bits has room for 1 to {MOST_CLASSES}",
            where=str(path),
            fix="list the classes of this set, without the ignored one",
        )
    try:
        # A model's card must hold them, and no two may be the same but for a comma.
        name_classes(listed.texts)
        name_classes([_words(text) for text in listed.texts])
    except UsageError as error:
        raise DataError(error.what, where=str(path), fix=error.fix) from error
    return listed


def _parse_list(path: Path, text: str) -> _Listed:
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip("\r\n"))]
    for number, line in enumerate(lines, 1):
        # Skipped, they would make line n another class than n.
        if not line or line.startswith("#"):
            raise DataError(
                "a line without a class" if not line else f"a comment: {line[:40]!r}",
                where=f"{path}, line {number}",
                fix=f"remove it: line n of {_LIST} is the name of mask value n",
            )
    return _Listed(path, tuple(lines), ())


def _parse_table(path: Path, text: str) -> _Listed:
    rows = _rows(path, text)
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    if header.count("idx") != 1 or header.count("name") != 1 or header.count("color") > 1:
        separator = "commas" if path.suffix.lower() == ".csv" else "tabs"
        raise DataError(
            f"no table of classes: its columns are {first_ten(map(repr, header)) or 'none'}",
            where=f"{path}, line 1",
            fix=f"the first line names the columns, between {separator}: Idx, Name, and Color "
            "(#rrggbb) if you like",
        )
    found: dict[int, tuple[str, str]] = {}
    for line, row in rows[1:]:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise DataError(
                f"{len(row)} fields where the first line has {len(header)}",
                where=where,
                fix="put a name that holds a comma into double quotes",
            )
        fields = dict(zip(header, map(str.strip, row), strict=True))
        index, colour = fields["idx"], fields.get("color", "")
        if not _NUMBER.fullmatch(index) or int(index) == 0:
            raise DataError(f"no number of a class: {index[:40]!r}", where=where, fix=_AS_ADE20K)
        if int(index) in found:
            raise DataError(f"class {int(index)} twice", where=where, fix=_AS_ADE20K)
        if "color" in header and not _COLOUR.fullmatch(colour):
            fix = "write it as #rrggbb, or leave the column out"
            raise DataError(f"no colour: {colour[:40]!r}", where=where, fix=fix)
        found[int(index)] = fields["name"], colour
    if holes := sorted(set(range(1, len(found) + 1)) - found.keys()):
        raise DataError(
            f"{len(found)} classes, and none has number {first_ten(map(str, holes))}",
            where=str(path),
            fix=_AS_ADE20K,
        )
    texts, colours = zip(*(found[n] for n in sorted(found)), strict=True) if found else ((), ())
    return _Listed(path, texts, colours if "color" in header else ())


def _rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its last line."""
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(
            f"no table: {error}", where=f"{path}, line {reader.line_num}", fix="save it anew as CSV"
        ) from error


def _words(text: str) -> str:
    """A name without what stands between its synonyms."""
    return _BETWEEN.sub(" ", text).strip()


def _digest(texts: Sequence[str]) -> str:
    words = [_words(text) for text in texts]
    first = _sha256(word.partition(" ")[0] for word in words)
    return first if first == ADE20K_DIGEST else _sha256(words)


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _short_names(texts: Sequence[str]) -> tuple[str, ...]:
    """The first synonym of each; all of them where another class begins the same."""
    first = [re.split("[;,]", text.strip(" ;,"))[0].strip() for text in texts]
    times = Counter(first)
    return tuple(
        name if times[name] == 1 else text for name, text in zip(first, texts, strict=True)
    )
