"""A folder's images parted for training and for validation by a list of names: no file is moved.

The list is one JSON file, so that a run can be continued, and its accuracy looked into, with the
very images that it set aside.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pretrain.index import ImageIndex, PackedNames, fingerprint_files, open_index
from zoo.errors import DataError, IntegrityError, UsageError
from zoo.files import atomic_json

PARTS = ("train", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Which images of a folder are trained on, and which are not."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    root: str
    """The folder, absolute."""
    seed: int
    share: float
    """Of each class that is set aside."""
    train: list[str]
    """File names below the root, in its order; bytes that are no UTF-8 written as ``\\xff``."""
    val: list[str]


def make_split(index: ImageIndex, *, share: float, seed: int) -> Split:
    """Set aside this share of every class: one image at least, and never all.

    The choice follows from names and seed alone.  Raises DataError for fewer than two classes, and
    for classes of one image.
    """
    labels = index.labels
    if labels is None or len(index.classes) < 2:
        raise DataError(
            "the images lie in no class folders"
            if labels is None
            else f"there is one class only: {index.classes[0]}",
            where=str(index.root),
            fix="put the images of each class into a folder of its own, two classes at least",
        )
    counts = np.bincount(labels, minlength=len(index.classes))
    if alone := [index.classes[i] for i in np.flatnonzero(counts < 2)]:
        raise DataError(
            f"{len(alone)} classes have one image only: none would be left to train on",
            where=f"{index.root}: {', '.join(alone[:10])}" + ", …" * (len(alone) > 10),
            fix="add images to them, remove them, or make train/ and val/ folders yourself",
        )
    aside = np.zeros(len(index), bool)
    for label, count in enumerate(counts.tolist()):
        chosen = np.random.default_rng([seed, label]).permutation(count)
        taken = min(max(round(share * count), 1), count - 1)
        aside[np.flatnonzero(labels == label)[chosen[:taken]]] = True
    names = [_name(index, i) for i in range(len(index))]
    return Split(
        root=str(index.root),
        seed=seed,
        share=share,
        train=[name for name, out in zip(names, aside, strict=True) if not out],
        val=[name for name, out in zip(names, aside, strict=True) if out],
    )


def _name(index: ImageIndex, i: int) -> str:
    # A name need not be UTF-8; here it is compared, and never opened.
    return os.fsencode(index.path(i).relative_to(index.root)).decode(errors="backslashreplace")


def write_split(split: Split, place: Path) -> None:
    """Raises DiskError."""
    atomic_json(place, asdict(split))


def read_split(place: Path) -> Split:
    """The list in a file.  Raises UsageError where there is none, IntegrityError for another."""
    try:
        return TypeAdapter(Split).validate_json(place.read_bytes(), strict=True)
    except FileNotFoundError as error:
        raise UsageError(
            "there is no such list of images", where=str(place), fix="check the data source"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise IntegrityError(
            f"not a list of images: {reason}",
            where=str(place),
            fix="restore it from a backup, or start anew in another folder (--out)",
        ) from error


def open_part(source: Path, *, reindex: bool = False) -> ImageIndex:
    """The images of ``FILE#train`` or ``FILE#val``, with the fingerprint of a folder of them alone.

    Images that came into the folder later are no part of it.  Raises UsageError, IntegrityError,
    DataError where one is missing.
    """
    place, _, part = str(source).rpartition("#")
    if part not in PARTS:
        raise UsageError(
            f"which part of the list?  {part[:40]!r} is none",
            where=f"split:{source}",
            fix="end it in #train or #val",
        )
    split = read_split(Path(place))
    whole = open_index(Path(split.root), reindex=reindex)
    return _only(whole, split.train if part == "train" else split.val)


def _only(whole: ImageIndex, names: Sequence[str]) -> ImageIndex:
    """The images of these names, in the folder's own order."""
    wanted = set(names)
    chosen = np.array([i for i in range(len(whole)) if _name(whole, i) in wanted], np.int64)
    sizes = [_size(whole.path(i)) for i in chosen.tolist()]
    if len(chosen) < len(wanted) or None in sizes:
        there = {_name(whole, i) for i, size in zip(chosen.tolist(), sizes, strict=True) if size}
        lost = sorted(wanted - there)
        raise DataError(
            f"{len(lost)} images of the list are no longer in the folder",
            where=f"{whole.root}: {', '.join(lost[:10])}" + ", …" * (len(lost) > 10),
            fix="restore them, or start anew in another folder (--out)",
        )
    files = (
        (whole.folders[int(whole.folder_ids[i])], whole.names[i], size or 0)
        for i, size in zip(chosen.tolist(), sizes, strict=True)
    )
    return ImageIndex(
        root=whole.root,
        names=PackedNames.of([whole.names[i] for i in chosen.tolist()]),
        folders=whole.folders,
        folder_ids=whole.folder_ids[chosen],
        folder_times=whole.folder_times,
        fingerprint=fingerprint_files(files),
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
