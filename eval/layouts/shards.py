"""Which Parquet files are the split that is meant?  Told by their names, as the Hub does."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from eval.layouts.expected import OWN
from eval.layouts.listing import first_ten
from zoo.errors import DataError, UsageError

# The words by which the Hub's own library knows a split.
_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_NOT_A_WORD = re.compile(r"[^a-z0-9]+")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet")
_HELD_BACK = ("in1k-val", OWN)
"""Where the images of a split called train are training images."""


def choose_shards(names: Sequence[str], split: str, benchmark: str, where: str) -> list[str]:
    """The names of the files to read, sorted.

    names: relative, of Parquet files.  split: ``validation``, ``SUBSET/test`` and so on; empty for
    the validation split.  Raises UsageError where it is not clear which are meant, DataError where
    some of ``-00000-of-00014`` are missing.
    """
    if split:
        chosen = [name for name in names if _is_in(name, split)]
    else:
        chosen = _by_default(names, benchmark)
    folders = {str(PurePosixPath(name).parent) for name in chosen}
    if not chosen or len(folders) > 1:
        found = first_ten(sorted({_shown(name) for name in chosen or names}))
        raise UsageError(
            "several subsets hold such files" if chosen else "no Parquet file is of this split",
            where=f"{where}: there are {found}",
            fix="say which: hf:ORG/NAME#SPLIT, hf:ORG/NAME#SUBSET/SPLIT, or one folder or file",
        )
    _require_all(chosen, where)
    return sorted(chosen)


def _is_in(name: str, split: str) -> bool:
    """Whether every part of ``SUBSET/SPLIT`` is a folder of the name, or how its file begins."""
    parts = name.split("/")
    return all(
        any(part == wanted or part.startswith((f"{wanted}-", f"{wanted}.")) for part in parts)
        for wanted in split.split("/")
    )


def _by_default(names: Sequence[str], benchmark: str) -> list[str]:
    kinds = defaultdict(list)
    for name in names:
        kinds[_kind(name)].append(name)
    if "validation" in kinds:
        return kinds["validation"]
    if "test" in kinds and (benchmark == OWN or len(kinds) == 1):
        return kinds["test"]
    if len(kinds) == 1 and not ("train" in kinds and benchmark in _HELD_BACK):
        return list(names)
    return []


def _kind(name: str) -> str:
    """The split that a name speaks of; empty where it speaks of none."""
    words = set(_NOT_A_WORD.split(name.lower()))
    return next((kind for kind, known in _WORDS.items() if words & known), "")


def _shown(name: str) -> str:
    """``data/validation`` of ``data/validation-00000-of-00014.parquet``."""
    match = _SHARD.fullmatch(name)
    return match[1] if match else name.removesuffix(".parquet")


def _require_all(names: Sequence[str], where: str) -> None:
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    there = {(m[1], int(m[3]), int(m[2])) for m in shards}
    sets = {(stem, count) for stem, count, _ in there}
    missing = [
        f"{stem}-{i:05}-of-{count:05}.parquet"
        for stem, count in sorted(sets)
        for i in range(count)
        if (stem, count, i) not in there
    ]
    if missing or len(sets) > 1:
        raise DataError(
            "shards of the set are missing" if missing else "shards of several sets lie together",
            where=f"{where}: {first_ten(missing or sorted(stem for stem, _ in sets))}",
            fix="fetch the set again" if missing else "give one of them, or a folder of its own",
        )
