"""Result files as they are found: those of today and of earlier versions, and what is none.

A file may come from elsewhere.  What cannot be believed is left out, and a note says so.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import NoReturn

from pydantic import TypeAdapter, ValidationError

from eval.results import Result
from zoo.errors import DataError, UsageError
from zoo.files import is_plain_name, is_there

MOST_FILES = 100_000
MOST_SAMPLES = 10**12

_MOST_BYTES = 10_000_000
_MOST_TEXT = 1000
_RESULT = TypeAdapter(Result)
_PROTOCOL = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}@[1-9][0-9]{0,8}")
_TEXTS = ("model", "model_digest", "metric", "data", "data_fingerprint", "dtype", "code_version")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A result, and the file that it stands in."""

    result: Result
    file: Path


def read_results(folder: Path) -> tuple[list[Result], list[str]]:
    """All results below a folder, in the order of the files' names, and notes on what was left out.

    Raises UsageError where there is no such folder, DataError for more files than can be meant.
    """
    found, notes = find_results([folder])
    return [one.result for one in found], notes


def find_results(places: Sequence[Path]) -> tuple[list[Found], list[str]]:
    """The results below folders, or in files; each once, though several places hold a copy of it.

    A file that disappears meanwhile was never there.  Raises as ``read_results`` does.
    """
    found: dict[str, Found] = {}
    notes, others = [], []
    for file in _files(places):
        try:
            result = read_result(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            notes.append(shown(f"{file} is no result: {_first_line(error)}"))
            continue
        if result is None:
            others.append(file)
        else:
            # Two copies of one file are one result, and two results of one evaluation are two.
            key = json.dumps(result.as_dict(), sort_keys=True)
            found.setdefault(key, Found(result=result, file=file))
    if others:
        more = f" and {len(others) - 1:,} more JSON files" if others[1:] else ""
        notes.append(shown(f"{others[0]}{more}: no result of ours"))
    return list(found.values()), notes


def read_result(file: Path) -> Result | None:
    """The result in a file; None for a JSON value that does not claim to be one.

    Raises ValueError (pydantic's kind included), OSError or RecursionError for what is broken.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a plain file")
    if status.st_size > _MOST_BYTES:
        raise ValueError(f"over {_MOST_BYTES:,} bytes")
    text = file.read_bytes()
    record = json.loads(text, parse_constant=_no_number)
    if not (isinstance(record, dict) and {"protocol", "model_digest"} <= record.keys()):
        return None
    result = _RESULT.validate_json(text, strict=True)
    if fault := _fault(result):
        raise ValueError(fault)
    return result


def _fault(result: Result) -> str | None:
    """What no result says; None where all is well."""
    if not _PROTOCOL.fullmatch(result.protocol):
        return f"protocol: not a name and a version: {result.protocol[:80]!r}"
    for key in _TEXTS:
        if not _may_be_shown(getattr(result, key)):
            return f"{key}: too long, or with characters that cannot be printed"
    for key in ("settings", "transform"):
        record = getattr(result, key)
        if not all(_may_be_shown(text) for text in [*record, *record.values()]):
            return f"{key}: too long, or with characters that cannot be printed"
    if not (isfinite(result.value) and isfinite(result.standard_error)):
        return "value: not a finite number"
    if result.standard_error < 0 or not 0 <= result.samples <= MOST_SAMPLES:
        return "standard_error or samples: below zero, or more than there can be"
    if result.predictions and not is_plain_name(result.predictions):
        return f"predictions: not the name of a file: {result.predictions[:80]!r}"
    try:
        # 1e999 is JSON, and infinite.
        json.dumps(result.as_dict(), allow_nan=False)
    except ValueError:
        return "details: a number is not finite"
    return None


def shown(text: str) -> str:
    """A text that came from outside, on one line, with nothing in it that a terminal obeys."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _may_be_shown(value: object) -> bool:
    return not isinstance(value, str) or (len(value) <= _MOST_TEXT and value.isprintable())


def _files(places: Sequence[Path]) -> Iterator[Path]:
    seen = 0
    for place in places:
        for file in _below(place):
            seen += 1
            if seen > MOST_FILES:
                raise DataError(
                    f"more than {MOST_FILES:,} JSON files",
                    where=str(place),
                    fix="name the folders that hold results",
                )
            yield file


def _below(place: Path) -> Iterator[Path]:
    """The JSON files below a folder, sorted; names with a dot in front are files in the making."""
    there = is_there(place)
    if there and place.is_file():
        yield place
        return
    if not (there and place.is_dir()):
        raise UsageError(
            "there is no such folder of results",
            where=str(place),
            fix="name the folder that zoo eval wrote into (its --out)",
        )
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".json") and not name.startswith("."):
                yield Path(folder, name)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}; of another version, perhaps: run zoo eval again"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
