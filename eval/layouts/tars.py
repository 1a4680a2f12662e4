"""Images in tar archives, read by seeking: nothing is unpacked, no name becomes a path.

Both kinds: members in class folders, and WebDataset shards with ``key.jpg`` beside ``key.cls``.
"""

import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from eval.layouts.listing import Listing, arrange, each, fingerprint_of, first_ten
from pretrain.index import EXTENSIONS, PackedNames
from pretrain.tars import members, plain_name, unreadable
from zoo.errors import DataError
from zoo.images import decode

# ruff: noqa: PTH122
# pathlib does not take bytes.

_MOST_TARGET_BYTES = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class TarStore:
    """Where in which archive each image lies."""

    paths: tuple[Path, ...]
    path_ids: np.ndarray
    """(N,) int32."""
    offsets: np.ndarray
    """(N,) int64, bytes from the start of the archive to the image."""
    sizes: np.ndarray
    """(N,) int64, bytes."""

    def read(self, i: int, name: bytes) -> np.ndarray:
        """(H, W, 3) uint8 RGB of image ``i``.  Raises DataError.

        The archive is opened for each: a descriptor kept open would not survive being sent to a
        worker, and folders pay the same.
        """
        path, size = self.paths[self.path_ids[i]], int(self.sizes[i])
        where = f"{path}: {name.decode(errors='backslashreplace')}"
        try:
            with path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, int(self.offsets[i]))
        except OSError as error:
            raise DataError(
                f"the archive cannot be read: {error.strerror}",
                where=where,
                fix="check that it is there, and readable",
            ) from error
        if len(data) != size:
            raise DataError(
                "the archive is shorter than it was", where=where, fix="do not change it meanwhile"
            )
        return decode(data, where)


@dataclass(kw_only=True)
class _Found:
    """What the archives hold, in the order of their members."""

    names: list[bytes] = field(default_factory=list)
    path_ids: array = field(default_factory=lambda: array("i"))
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    folders: set[bytes] = field(default_factory=set)
    targets: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    """Content of a ``.cls`` file by archive and key."""


def list_tars(paths: Sequence[Path]) -> Listing:
    """The images in these archives.

    An archive's own name is no part of an image's, unless two archives use the same names.
    Raises DataError for what is no whole plain tar, for no image and for keys without a class;
    IntegrityError for names and members that no data set has.
    """
    found = _Found()
    for number, path in enumerate(paths):
        _scan(path, number, found)
    place = paths[0] if len(paths) == 1 else paths[0].parent
    if not found.names:
        raise DataError(
            "there is no image in the archive" + ("s" if len(paths) > 1 else ""),
            where=str(place),
            fix="give a tar with CLASS/file.JPEG members, or with key.jpg and key.cls pairs",
        )
    targets = _targets(found, paths) if found.targets else None
    if len(paths) > 1 and len(set(found.names)) < len(found.names):
        stems = [os.fsencode(path.stem) for path in paths]
        found.names = [
            stems[i] + b"/" + name for i, name in zip(found.path_ids, found.names, strict=True)
        ]
        found.folders = set()
    return _sorted(found, targets, tuple(paths), place)


def _sorted(
    found: _Found, targets: list[bytes] | None, paths: tuple[Path, ...], place: Path
) -> Listing:
    order, names, ids, folders = arrange(found.names, found.folders, place)
    sizes = np.array(found.sizes, np.int64)[order]
    return Listing(
        place=place,
        names=names,
        folder_ids=ids,
        folders=folders,
        fingerprint=fingerprint_of(names, list(each(folders)), ids, sizes),
        store=TarStore(
            paths=paths,
            path_ids=np.array(found.path_ids, np.int32)[order],
            offsets=np.array(found.offsets, np.int64)[order],
            sizes=sizes,
        ),
        targets=None if targets is None else PackedNames.of([targets[i] for i in order.tolist()]),
    )


def tars_below(listing: Listing, store: TarStore, prefix: bytes) -> Listing:
    """The same images without the leading folder ``prefix``, which all of them share."""
    names = list(each(listing.folders))
    kept = [i for i, name in enumerate(names) if name == prefix or name.startswith(prefix + b"/")]
    inside = [names[i][len(prefix) + 1 :] for i in kept]
    new = np.full(len(names), -1, np.int32)
    new[kept] = np.arange(len(kept))
    ids = new[listing.folder_ids]
    return replace(
        listing,
        folders=PackedNames.of(inside),
        folder_ids=ids,
        fingerprint=fingerprint_of(listing.names, inside, ids, store.sizes),
    )


def _targets(found: _Found, paths: Sequence[Path]) -> list[bytes]:
    """The class of each image by its ``.cls`` file.  Raises DataError."""
    keys = [
        (number, os.path.splitext(name)[0])
        for number, name in zip(found.path_ids, found.names, strict=True)
    ]
    images = Counter(keys)
    odd = [key for key in keys if key not in found.targets or images[key] > 1]
    odd += sorted(found.targets.keys() - images.keys())
    if odd:
        raise DataError(
            "the shards do not hold one image and one .cls file for each key",
            where=first_ten(f"{paths[i]}: {os.fsdecode(key)}" for i, key in odd),
            fix="make the shards anew; the file name up to its last dot is the key",
        )
    return [found.targets[key] for key in keys]


def _scan(path: Path, number: int, found: _Found) -> None:
    """Add the members of one archive."""
    try:
        with path.open("rb") as file:
            _add_members(file, path, number, found)
    except OSError as error:
        raise unreadable(error, str(path)) from error


def _add_members(file: BinaryIO, path: Path, number: int, found: _Found) -> None:
    pending: list[tuple[bytes, int, int]] = []
    for member in members(file, str(path)):
        name = plain_name(member, str(path))
        if name is None:
            continue
        if member.isdir():
            found.folders.add(name)
        elif name.lower().endswith(EXTENSIONS):
            found.names.append(name)
            found.path_ids.append(number)
            found.offsets.append(member.offset_data)
            found.sizes.append(member.size)
        elif name.endswith(b".cls"):
            pending.append((name, member.offset_data, member.size))
    for name, offset, size in pending:
        if size > _MOST_TARGET_BYTES:
            raise DataError(
                f"a .cls file of {size:,} bytes holds no class",
                where=f"{path}: {os.fsdecode(name)}",
                fix="it should hold the class number, in digits",
            )
        file.seek(offset)
        found.targets[number, name[: -len(b".cls")]] = file.read(size).strip()
