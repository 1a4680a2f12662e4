"""An image folder as WebDataset shards: the files' own bytes, in an order drawn once.

A stream is shuffled only within a buffer, so what lies together in a shard is met together: that
is why the order here is drawn, and not the folder's.  The same folder, seed and size give the same
bytes: times, owners and rights are no part of them.
"""

import itertools
import os
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pretrain.index import ImageIndex, open_index
from pretrain.shards import INFO
from zoo.errors import DataError, UsageError
from zoo.files import atomic_folder, atomic_json, require_space, sha256_of, sweep

_BLOCK = tarfile.BLOCKSIZE
_TRAIN = "train"
_KEPT_NAME = 60
"""Characters of an image's own name that its key repeats, for a reader's eye."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What was written."""

    folder: str
    shards: int
    images: int
    bytes: int
    classes: int
    """Of them; 0 where the images lie in no class folders."""

    def as_dict(self) -> dict[str, str | int]:
        """For ``--json``."""
        return asdict(self)

    def text(self) -> str:
        """For a reader."""
        kinds = f" of {self.classes:,} classes" if self.classes else ""
        return (
            f"{self.images:,} images{kinds} in {self.shards:,} shards, {self.bytes:,} bytes\n"
            f"to train on them: data.source=wds:{self.folder}"
        )


def pack(
    data: Path, out: Path, *, shard_bytes: int, seed: int = 0, in_order: bool = False
) -> Packed:
    """Write shards of the images in ``data``, and their index, as the new folder ``out``.

    shard_bytes: most bytes of a shard, unless one image needs more; shards come out nearly equal.
    in_order: as the folder has them, sorted by name.  Raises UsageError where ``out`` is there,
    DataError, DiskError; then nothing is left.
    """
    if out.exists() or out.is_symlink():
        raise UsageError(
            "there is something already", where=str(out), fix="choose another folder with --out"
        )
    index = open_index(data)
    order = np.arange(len(index))
    if not in_order:
        order = np.random.default_rng(seed).permutation(len(index))
    sizes = [_size(index, int(i)) for i in order]
    plan = _plan(sizes, shard_bytes, labelled=index.labels is not None)
    if out.parent.is_dir():
        sweep(out.parent, out.name)  # of one that was killed
        require_space(out.parent, _bytes_needed(sizes))
    with atomic_folder(out) as folder:
        infos = _write_all(index, order, sizes, plan, folder)
        atomic_json(folder / INFO, infos)
        total = sum(infos["splits"][_TRAIN]["shard_bytes"])
    return Packed(
        folder=str(out),
        shards=len(plan),
        images=len(index),
        bytes=total,
        classes=len(index.classes),
    )


def _size(index: ImageIndex, i: int) -> int:
    try:
        return index.path(i).stat().st_size
    except OSError as error:
        raise _unreadable(index.path(i), error.strerror or "") from error


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"an image cannot be packed: {why}",
        where=str(path).encode(errors="backslashreplace").decode(),
        fix="check that it is there, readable, and not being written",
    )


def _in_tar(size: int) -> int:
    """Bytes that a file takes in an archive, its header included."""
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


def _bytes_needed(sizes: list[int]) -> int:
    return sum(_in_tar(size) + _in_tar(1) for size in sizes)


def _plan(sizes: list[int], shard_bytes: int, *, labelled: bool) -> list[range]:
    """Positions of each shard: consecutive, as few as there can be, and of nearly equal numbers of
    bytes, as far as the images' sizes let them.  One that is larger than a shard stands alone."""
    ends = np.cumsum([_in_tar(size) + labelled * _in_tar(1) for size in sizes])
    fewest = len(_filled(ends, shard_bytes)) - 1
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, fewest) / fewest, side="right")
    bounds = [0, *cuts.tolist(), len(sizes)]
    if np.diff(ends[np.array(bounds[1:]) - 1], prepend=0).max() > shard_bytes:
        low, high = 0, shard_bytes  # the least that is enough for the fullest
        while high - low > 1:
            limit = (low + high) // 2
            enough = len(_filled(ends, limit, most=fewest)) - 1 <= fewest
            low, high = (low, limit) if enough else (limit, high)
        bounds = _filled(ends, high)
    return [range(a, b) for a, b in itertools.pairwise(bounds) if b > a]


def _filled(ends: np.ndarray, limit: int, *, most: int | None = None) -> list[int]:
    """Where shards of no more than ``limit`` bytes begin, each as full as can be; and the end.

    Given up beyond ``most`` shards.
    """
    bounds = [0]
    while (start := bounds[-1]) < len(ends) and (most is None or len(bounds) - 1 <= most):
        room = limit + (int(ends[start - 1]) if start else 0)
        bounds.append(max(start + 1, int(np.searchsorted(ends, room, side="right"))))
    return bounds


def _write_all(
    index: ImageIndex, order: np.ndarray, sizes: list[int], plan: list[range], folder: Path
) -> dict:
    names = [f"{_TRAIN}-{number:06}.tar" for number in range(len(plan))]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        progress.disable = not progress.console.is_terminal
        task = progress.add_task("images", total=len(index))
        for name, part in zip(names, plan, strict=True):
            with (folder / name).open("wb") as file:
                for position in part:
                    _write_sample(file, index, int(order[position]), sizes[position])
                file.write(bytes(2 * _BLOCK))
            progress.advance(task, len(part))
    places = [folder / name for name in names]
    split = {
        "name": _TRAIN,
        "filenames": names,
        "shard_lengths": [len(part) for part in plan],
        "num_samples": len(index),
        "shard_bytes": [place.stat().st_size for place in places],
        "shard_sha256": [sha256_of(place) for place in places],
    }
    # A folder's name need not be UTF-8, and JSON is.
    classes = [os.fsencode(name).decode(errors="backslashreplace") for name in index.classes]
    return {"splits": {_TRAIN: split}, "classes": classes}


def _write_sample(file: BinaryIO, index: ImageIndex, i: int, size: int) -> None:
    path = index.path(i)
    key = _key(path, i)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error.strerror or "") from error
    if len(data) != size:
        raise _unreadable(path, "it changed meanwhile")
    _write_member(file, f"{key}.{path.suffix[1:].lower()}", data)
    if index.labels is not None:
        _write_member(file, f"{key}.cls", str(index.labels[i]).encode())


def _key(path: Path, i: int) -> str:
    """Place in the folder's sorted list, and what can be kept of the name: a dot ends a key."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in path.stem)
    return f"{i:09}-{kept[:_KEPT_NAME]}"


def _write_member(file: BinaryIO, name: str, data: bytes) -> None:
    # tarfile's own TarFile.add would keep a list of every member.
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    file.write(member.tobuf(tarfile.USTAR_FORMAT))
    file.write(data)
    file.write(bytes(-len(data) % _BLOCK))
