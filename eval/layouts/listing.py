"""Images by name, in a folder or in tars, before anyone knows what they show.

Names are bytes, sorted by folder and then by name, as ``pretrain.index`` has them.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from pretrain.index import ImageIndex, PackedNames, fingerprint_files, open_index
from zoo.errors import DataError
from zoo.images import read_image

_VAL_NUMBER = re.compile(rb"ILSVRC2012_val_(\d{8})(?!\d)")
_SYNSET = re.compile(r"n\d{8}", re.ASCII)


class Store(Protocol):
    """Where the bytes of the images lie."""

    def read(self, i: int, name: bytes) -> np.ndarray:
        """(H, W, 3) uint8 RGB of image ``i``.  Raises DataError."""
        ...


@dataclass(frozen=True, slots=True)
class FolderStore:
    """Files below a folder."""

    root: Path

    def read(self, i: int, name: bytes) -> np.ndarray:
        return read_image(self.root / os.fsdecode(name))


@dataclass(frozen=True, kw_only=True)
class Listing:
    """N images: their names, and the store that has their bytes."""

    place: Path
    """Folder or tar, for messages and for what lies beside it."""
    names: PackedNames
    """N file names."""
    folder_ids: np.ndarray
    """(N,) int32, which folder holds each."""
    folders: PackedNames
    """Every folder, with images or without, relative to the set, sorted."""
    fingerprint: str
    store: Store
    targets: PackedNames | None = None
    """What shards say of each image: ``.cls`` files of WebDataset's, the label of Parquet's."""

    def __len__(self) -> int:
        return len(self.names)

    def relative(self, i: int) -> bytes:
        """Name of image ``i`` with its folder.  Raises IndexError."""
        name = self.names[i]
        return os.path.join(self.folders[int(self.folder_ids[i])], name)  # noqa: PTH118

    def read(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of image ``i``.  Raises DataError, IndexError."""
        return self.store.read(i, self.relative(i))

    @cached_property
    def folder_names(self) -> list[str]:
        """``folders`` as text."""
        return [os.fsdecode(name) for name in each(self.folders)]

    @cached_property
    def holding(self) -> list[int]:
        """The folders that hold images themselves."""
        counts = np.bincount(self.folder_ids, minlength=len(self.folders))
        return np.flatnonzero(counts).tolist()

    @property
    def barren(self) -> list[str]:
        """Folders without an image at any depth, as they are when a class is empty."""
        names = self.folder_names
        alive = {names[i] for i in self.holding}
        for name in list(alive):
            while name := name.rpartition("/")[0]:
                alive.add(name)
        return [name for name in names if name and name not in alive]


def list_folder(root: Path) -> Listing:
    """The images below a folder.  Raises DataError where there is none."""
    return list_index(open_index(root))


def list_index(index: ImageIndex) -> Listing:
    """The images that training would see."""
    return Listing(
        place=index.root,
        names=index.names,
        folder_ids=index.folder_ids,
        folders=index.folders,
        fingerprint=index.fingerprint,
        store=FolderStore(index.root),
    )


def each(names: PackedNames) -> Iterator[bytes]:
    """All of them in order, faster than one by one."""
    blob, start = names.blob.tobytes(), 0
    for end in names.ends.tolist():
        yield blob[start:end]
        start = end


class Arranged(NamedTuple):
    """N names in the order of a listing."""

    order: np.ndarray
    """(N,) int64, where each was before."""
    names: PackedNames
    folder_ids: np.ndarray
    """(N,) int32."""
    folders: PackedNames


def arrange(names: Sequence[bytes], folders: Set[bytes], place: Path) -> Arranged:
    """Sort names as a folder's are, by folder and then by name.

    folders: those without images, if they are known.  Raises DataError where two are the same.
    """
    split = [os.path.split(name) for name in names]
    order = sorted(range(len(split)), key=split.__getitem__)
    twice = [split[i] for i, j in itertools.pairwise(order) if split[i] == split[j]]
    if twice:
        raise DataError(
            "two images have the same name",
            where=f"{place}: {first_ten(os.fsdecode(os.path.join(*pair)) for pair in twice)}",  # noqa: PTH118
            fix="make the set anew, each image under a name of its own",
        )
    known = sorted(folders | {folder for folder, _ in split} | {b""})
    number_of = {folder: number for number, folder in enumerate(known)}
    return Arranged(
        order=np.array(order, np.int64),
        names=PackedNames.of([split[i][1] for i in order]),
        folder_ids=np.fromiter((number_of[split[i][0]] for i in order), np.int32, len(order)),
        folders=PackedNames.of(known),
    )


def fingerprint_of(
    names: PackedNames, folders: Sequence[bytes], folder_ids: np.ndarray, sizes: np.ndarray
) -> str:
    """What ``ImageIndex.fingerprint`` is of the same files in folders: hex sha256."""
    rows = zip(each(names), folder_ids.tolist(), sizes.tolist(), strict=True)
    return fingerprint_files((folders[i], name, size) for name, i, size in rows)


def is_synset(name: str) -> bool:
    """Whether a name is of WordNet's form: n and eight digits."""
    return bool(_SYNSET.fullmatch(name))


def val_number(name: bytes) -> int:
    """The number in ``ILSVRC2012_val_00000001.JPEG`` and its variants; 0 where there is none."""
    match = _VAL_NUMBER.search(name)
    return int(match[1]) if match else 0


def val_numbers(listing: Listing) -> np.ndarray:
    """(N,) int64 of ``val_number``."""
    return np.fromiter(map(val_number, each(listing.names)), np.int64, len(listing))


def first_ten(names: Iterable[str]) -> str:
    """For a message: the first ten, and how many more."""
    known = list(names)
    more = f" and {len(known) - 10:,} more" if len(known) > 10 else ""
    return ", ".join(islice(known, 10)) + more


def counted(number: int, thing: str, plural: str = "") -> str:
    """``1 image``, ``2 images``."""
    return f"{number:,} {thing if number == 1 else plural or thing + 's'}"
