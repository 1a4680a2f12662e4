"""The list of a data set's images, packed: a million names in a few arrays, opened in a moment.

A Python list of a million paths costs every loader worker its copy, and a walk over a network file
system costs minutes.  So the walk happens once, and its result is kept in the data set's own
``.tinyzoo`` folder, or in the user's cache where that cannot be written.  A kept index holds while
no folder's modification time has changed.

Names are bytes, as the file system has them, sorted as bytes (the C locale).  Hidden files and
folders are no part of a data set.
"""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from zoo.errors import DataError, DiskError
from zoo.files import atomic_write
from zoo.images import read_image

# ruff: noqa: PTH116, PTH118
# pathlib does not take bytes, and as bytes every name is valid.

EXTENSIONS = (b".jpg", b".jpeg", b".png", b".webp")
"""Of a file that counts as an image, in any case."""

KEPT = ".tinyzoo-index.safetensors"
# A file and not a folder: torchvision's ImageFolder takes every folder for a class.
_FORMAT = "tinyzoo-index@1"


@dataclass(frozen=True, slots=True)
class PackedNames:
    """Byte strings end to end: ``names[i]`` is ``blob[ends[i - 1]:ends[i]]``."""

    blob: np.ndarray
    """uint8."""
    ends: np.ndarray
    """(N,) int64."""

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "PackedNames":
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        return cls(np.frombuffer(b"".join(names), np.uint8), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> bytes:
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = self.ends[i - 1] if i else 0
        return self.blob[start : self.ends[i]].tobytes()


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """N images under one root.  Cheap to send to a worker: a handful of arrays."""

    root: Path
    """Absolute."""
    names: PackedNames
    """N file names, sorted by folder and then by name."""
    folder_ids: np.ndarray
    """(N,) int32, which folder holds each file."""
    folders: PackedNames
    """Every folder walked, images or not, relative to the root (itself ``b""``), sorted."""
    folder_times: np.ndarray
    """Modification time of each folder, int64 nanoseconds."""
    fingerprint: str
    """Hex sha256 over the relative names and sizes in bytes of all files, in order."""

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> Path:
        """Absolute path of image ``i``.  Raises IndexError."""
        name = self.names[i]
        folder = self.folders[int(self.folder_ids[i])]
        return self.root / os.fsdecode(os.path.join(folder, name))

    def read(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of image ``i``.  Raises DataError, IndexError."""
        return read_image(self.path(i))

    @property
    def classes(self) -> list[str]:
        """The folders that hold images, sorted; empty for a flat data set.

        Images that lie in the root beside class folders are of class ``"."``.
        """
        if self._is_flat:
            return []
        return [os.fsdecode(self.folders[int(i)] or b".") for i in np.flatnonzero(self._holds)]

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(N,) int32, position in ``classes``; None for a flat data set."""
        if self._is_flat:
            return None
        class_of_folder = np.cumsum(self._holds, dtype=np.int32) - 1
        return class_of_folder[self.folder_ids]

    @cached_property
    def _holds(self) -> np.ndarray:
        """Whether each folder holds an image."""
        return np.bincount(self.folder_ids, minlength=len(self.folders)) > 0

    @property
    def _is_flat(self) -> bool:
        return not self._holds[1:].any()  # the root sorts first


def open_index(root: Path, *, reindex: bool = False) -> ImageIndex:
    """The index of the images under ``root``, kept from an earlier call or walked anew.

    It is walked anew when asked for, when a folder has changed, and when the kept file is damaged
    or of another version.  Raises DataError where there is no folder, or no image in it.
    """
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise DataError(
            "the data set is not a folder" if root.exists() else "there is no such folder",
            where=shown(root),
            fix="check the path of the data source",
        )
    places = _cache_places(root)
    if not reindex:
        for place in places:
            if (kept := load_index(root, place)) is not None:
                return kept
    index = _walk(root)
    for place in places:
        # A cache only: without it the next start walks again.
        with contextlib.suppress(DiskError, OSError):
            save_index(index, place)
            break
    return index


def _cache_places(root: Path) -> list[Path]:
    """Beside the data; in the user's cache where that cannot be written."""
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()
    elsewhere = Path(user_cache_dir("tinyzoo")) / "indexes" / f"{digest}.safetensors"
    return [root / KEPT, elsewhere]


def save_index(index: ImageIndex, place: Path) -> None:
    """Keep ``index`` at ``place``, atomically.  Raises DiskError, OSError."""
    arrays = {
        "names.blob": index.names.blob,
        "names.ends": index.names.ends,
        "folders.blob": index.folders.blob,
        "folders.ends": index.folders.ends,
        "folder_ids": index.folder_ids,
        "folder_times": index.folder_times,
    }
    facts = {"format": _FORMAT, "fingerprint": index.fingerprint, "crc32": _checksum(arrays)}
    inside = place.parent == index.root
    before = index.root.stat()
    atomic_write(place, save(arrays, metadata=facts))
    if inside and before.st_mtime_ns == index.folder_times[0]:
        # Our own file must not make the folder look changed.
        os.utime(index.root, ns=(before.st_atime_ns, before.st_mtime_ns))


def load_index(root: Path, place: Path) -> ImageIndex | None:
    """What ``save_index`` kept, or None where it is missing, damaged or no longer true."""
    try:
        with safe_open(place, framework="numpy") as file:
            facts = file.metadata() or {}
            if facts.get("format") != _FORMAT:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    if facts.get("crc32") != _checksum(arrays):
        return None
    index = ImageIndex(
        root=root,
        names=PackedNames(arrays["names.blob"], arrays["names.ends"]),
        folders=PackedNames(arrays["folders.blob"], arrays["folders.ends"]),
        folder_ids=arrays["folder_ids"],
        folder_times=arrays["folder_times"],
        fingerprint=facts["fingerprint"],
    )
    return index if _unchanged(index) else None


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(arrays[name].data, zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def _unchanged(index: ImageIndex) -> bool:
    top = os.fsencode(index.root)
    try:
        return all(
            os.stat(os.path.join(top, index.folders[i])).st_mtime_ns == time
            for i, time in enumerate(index.folder_times.tolist())
        )
    except OSError:
        return False


def fingerprint_files(files: Iterable[tuple[bytes, bytes, int]]) -> str:
    """What a set of images is known by: hex sha256 over folder, name and size in bytes of each."""
    digest = hashlib.sha256()
    for folder, name, size in files:
        digest.update(b"%s/%s\0%d\n" % (folder, name, size))  # no name holds a NUL
    return digest.hexdigest()


class _Folder(NamedTuple):
    """One folder as the walk found it."""

    name: bytes
    time: int
    files: list[tuple[bytes, int]]
    """Name and size in bytes, sorted."""


def _walk(root: Path) -> ImageIndex:
    folders = sorted(_folders(os.fsencode(root)))
    names = [name for folder in folders for name, _ in folder.files]
    if not names:
        raise DataError(
            "the folder holds no image",
            where=shown(root),
            fix="images end in .jpg, .jpeg, .png or .webp and may lie at any depth",
        )
    files = ((folder.name, name, size) for folder in folders for name, size in folder.files)
    counts = [len(folder.files) for folder in folders]
    return ImageIndex(
        root=root,
        names=PackedNames.of(names),
        folders=PackedNames.of([folder.name for folder in folders]),
        folder_ids=np.repeat(np.arange(len(folders), dtype=np.int32), counts),
        folder_times=np.array([folder.time for folder in folders], np.int64),
        fingerprint=fingerprint_files(files),
    )


def _folders(top: bytes) -> list[_Folder]:
    """Every folder below ``top`` and itself, links followed, each real folder once."""
    found: list[_Folder] = []
    seen: set[tuple[int, int]] = set()
    pending = [b""]
    while pending:
        name = pending.pop()
        try:
            # The time comes before the listing: a file that lands in between shows as a change.
            status = os.stat(os.path.join(top, name))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            files, inner = _listing(os.path.join(top, name))
        except OSError as error:
            raise DataError(
                f"a folder of the data set cannot be read: {error.strerror}",
                where=shown(os.path.join(top, name)),
                fix="check its permissions",
            ) from error
        found.append(_Folder(name, status.st_mtime_ns, files))
        # The first by name is walked next: which of two links to a folder counts is fixed.
        pending += [os.path.join(name, child) for child in reversed(inner)]
    return found


def _listing(folder: bytes) -> tuple[list[tuple[bytes, int]], list[bytes]]:
    """Images (name, size in bytes) and sub-folders of one folder, sorted."""
    files: list[tuple[bytes, int]] = []
    inner: list[bytes] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            with contextlib.suppress(OSError):  # a dangling or circular link, or gone meanwhile
                if entry.is_dir():
                    inner.append(entry.name)
                elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                    files.append((entry.name, entry.stat().st_size))
    return sorted(files), sorted(inner)


def shown(path: Path | bytes) -> str:
    """A name as text that any file and terminal takes."""
    return os.fsencode(path).decode(errors="backslashreplace")  # a name need not be UTF-8
