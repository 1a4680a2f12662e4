"""Where the images and the masks of a split lie, and what people give instead."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from eval.layouts.listing import first_ten
from eval.segmentation.masks import shown
from zoo.errors import DataError
from zoo.files import is_there

IMAGES, MASKS = "images", "annotations"

_PACKED = (".zip", ".tar", ".tar.gz", ".tgz")
_SIGNS_OF_FULL = (
    "index_ade20k.pkl", "index_ade20k.mat", f"{IMAGES}/ADE", "ADE/training", "ADE/validation"
)  # fmt: skip
_SHORT = {"training": "train", "validation": "val", "testing": "test"}
_LAYOUT = (
    f"give the folder that holds {IMAGES}/training, {IMAGES}/validation, {MASKS}/training, "
    f"{MASKS}/validation and the list of classes, as ADEChallengeData2016 does"
)


class Found(NamedTuple):
    """One file of a split."""

    name: str
    """Below the folder of the split."""
    size: int
    """In bytes."""
    time: int
    """When it was last written, in nanoseconds."""


def split_folders(root: Path, split: str) -> tuple[Path, Path]:
    """The folders of a split's images and masks.

    Raises DataError that says what was looked for, what is there, and for common mistakes what
    to give: the folder above, the folder below, an archive, the full ADE20K, other split names.
    """
    _require_folder(root)
    if _is_full(root):
        raise _full(root)
    if not _is_set(root):
        raise _misplaced(root.resolve())
    there = {name: _folders(root / name) for name in (IMAGES, MASKS)}
    if not there[IMAGES]:
        raise DataError(
            f"{IMAGES}/ holds no folder of a split",
            where=shown(root / IMAGES),
            fix=f"put the images into {IMAGES}/{split} and the masks into {MASKS}/{split}",
        )
    if split not in there[IMAGES]:
        whole = [name for name in there[IMAGES] if name in there[MASKS]]
        short = _SHORT.get(split, "")
        raise DataError(
            f"there is no split {split!r}, only: {first_ten(map(shown, whole)) or 'none'}",
            where=shown(root / IMAGES / split),
            fix=f"rename {IMAGES}/{short} and {MASKS}/{short} to {split}"
            if short in whole
            else "choose one of these",
        )
    if split not in there[MASKS]:
        raise DataError(
            f"split {split!r} has images and no masks",
            where=f"{shown(root / MASKS)}: splits there: "
            f"{first_ten(map(shown, there[MASKS])) or 'none'}",
            fix="choose a split that has both; the masks of ADE20K's test images are not public",
        )
    return root / IMAGES / split, root / MASKS / split


def list_files(folder: Path) -> list[Found]:
    """The files at any depth, sorted by the bytes of their names; hidden ones are no part of a set.

    Links are followed, each real folder is entered once.  Raises DataError for a folder that cannot
    be read.
    """
    found: list[Found] = []
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            status = (folder / below).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            files, inner = _listing(folder, below)
        except OSError as error:
            raise _unreadable(folder / below, error) from error
        found += files
        # The first by name is entered next: which of two links to a folder counts is fixed.
        pending += sorted(inner, key=os.fsencode, reverse=True)
    return sorted(found, key=lambda file: os.fsencode(file.name))


def require_no_parts(root: Path, split: str, files: list[Found]) -> None:
    """Raise DataError where masks of the full ADE20K lie among the images, as in its folders."""
    names = {file.name for file in files}
    parts = [name for name in names if name.endswith("_seg.png")]
    if any(name.removesuffix("_seg.png") + ".jpg" in names for name in parts):
        raise _full(root / IMAGES / split)


def _listing(folder: Path, below: str) -> tuple[list[Found], list[str]]:
    files: list[Found] = []
    inner: list[str] = []
    with os.scandir(folder / below) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{below}/{entry.name}" if below else entry.name
            with contextlib.suppress(OSError):  # a dangling or circular link, or gone meanwhile
                if entry.is_dir():
                    inner.append(name)
                elif entry.is_file():
                    status = entry.stat()
                    files.append(Found(name, status.st_size, status.st_mtime_ns))
    return files, inner


def _require_folder(root: Path) -> None:
    if _is_folder(root):
        return
    if root.name.lower().endswith(_PACKED) and is_there(root):
        raise _packed(root)
    raise DataError(
        "the data set is not a folder" if is_there(root) else "there is no such folder",
        where=shown(root),
        fix="check the path of the data set",
    )


def _is_full(place: Path) -> bool:
    """Whether this is the full ADE20K, as of 2016 or 2021, or its images/."""
    return any(is_there(place / sign) for sign in _SIGNS_OF_FULL)


def _full(place: Path) -> DataError:
    return DataError(
        "this is the full ADE20K, with thousands of classes, not the set of the scene parsing "
        "challenge, with 150",
        where=shown(place),
        fix="fetch ADEChallengeData2016.zip (MIT Scene Parsing Benchmark), unpack it and give its "
        "folder",
    )


def _packed(path: Path) -> DataError:
    return DataError(
        "the set is still packed",
        where=shown(path),
        fix="unpack it, and give the folder that comes out",
    )


def _misplaced(root: Path) -> DataError:
    """What is at a place without images/ and annotations/."""
    above = next((place for place in list(root.parents)[:2] if _is_set(place)), None)
    below = [root / name for name in _folders(root) if _is_set(root / name)]
    missing = [f"{name}/" for name in (IMAGES, MASKS) if not _is_folder(root / name)]
    what = f"no set in ADE20K's layout: there is no {' and no '.join(missing)}"
    there = first_ten(map(shown, _names(root))) or "nothing"
    where = f"{shown(root)}, which holds: {there}"
    if below:
        choice = "" if len(below) == 1 else "one of: "
        return DataError(what, where=where, fix=f"give {choice}{first_ten(map(shown, below))}")
    if above:
        return DataError(what, where=where, fix=f"give {shown(above)}, the folder of the whole set")
    archives = [name for name in _names(root) if name.lower().endswith(_PACKED)]
    if archives and len(missing) == 2:
        return _packed(root / archives[0])
    for name in _folders(root):
        if _is_full(root / name):
            return _full(root / name)
    return DataError(what, where=where, fix=_LAYOUT)


def _is_set(place: Path) -> bool:
    return all(_is_folder(place / name) for name in (IMAGES, MASKS))


def _is_folder(path: Path) -> bool:
    """No error where a folder above may not be entered, as pathlib raises."""
    return os.path.isdir(path)  # noqa: PTH112


def _names(folder: Path) -> list[str]:
    """What lies in a folder, sorted, without hidden things.  Raises DataError."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted((name for name in names if not name.startswith(".")), key=os.fsencode)


def _folders(folder: Path) -> list[str]:
    return [name for name in _names(folder) if _is_folder(folder / name)]


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"a folder of the data set cannot be read: {error.strerror}",
        where=shown(folder),
        fix="check its permissions",
    )
