"""Files by their content: nothing has a name here before all its bytes are there and right."""

import codecs
import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import IntegrityError
from zoo.files import disk_errors, require_space, sweep, sync_folder
from zoo.server.refusal import DamagedError
from zoo.tree import is_sha256

BLOCK = 1 << 20
MOST_REGULAR_BYTES = 10 << 20
"""Of a file that git itself would store."""
SAMPLE_BYTES = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """What a commit knows of one file."""

    size: int
    """In bytes."""
    sha256: str
    oid: str
    """git's sha1 of the file, or of the LFS pointer that stands for it."""
    lfs: bool

    @property
    def etag(self) -> str:
        """The blob's name in a client's cache."""
        return self.sha256 if self.lfs else self.oid


def is_large(name: str, size: int, sample: bytes) -> bool:
    """Whether a file goes by LFS: weights, what is big, what is no text.

    sample: its first bytes.
    """
    return size > 0 and (
        name.endswith(".safetensors") or size > MOST_REGULAR_BYTES or not _is_text(sample)
    )


def git_sha1(data: bytes) -> str:
    """The name that git gives to a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in place of an LFS file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def lfs_file(sha256: str, size: int) -> StoredFile:
    return StoredFile(size=size, sha256=sha256, oid=git_sha1(lfs_pointer(sha256, size)), lfs=True)


def _is_text(sample: bytes) -> bool:
    try:
        # The sample may end in the middle of a character.
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return b"\0" not in sample


class Incoming:
    """A file on its way in, hashed as it comes."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._sha256 = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, block: bytes) -> None:
        """Raises DiskError."""
        rest = memoryview(block)
        with disk_errors(self._path):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        self._sha256.update(block)
        self.size += len(block)


class Blobs:
    """The folder ``blobs/``, one file a content, named by its sha256."""

    def __init__(self, folder: Path) -> None:
        """Raises DiskError."""
        self.folder = folder
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)

    def path(self, sha256: str) -> Path:
        """Where a content is; ``sha256`` must be one."""
        if not is_sha256(sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return self.folder / sha256

    def has(self, sha256: str, size: int) -> bool:
        path = self.path(sha256)
        return path.is_file() and path.stat().st_size == size

    def kept(self, file: StoredFile) -> Path:
        """Where the bytes of a commit's file are.  Raises DamagedError where they are not."""
        if not self.has(file.sha256, file.size):
            raise DamagedError(
                "a file is missing in the server's store, or not of its size",
                where=str(self.path(file.sha256)),
                fix="publish or push the model again",
            )
        return self.path(file.sha256)

    @contextlib.contextmanager
    def incoming(self, *, sha256: str = "", size: int | None = None) -> Iterator[Incoming]:
        """Take a file in: it is kept when the block ends well and the bytes are those announced.

        Raises IntegrityError where they are not, DiskError.
        """
        if size is not None:
            require_space(self.folder, size)
        temp = self.folder / f".tmp-{os.getpid()}-{secrets.token_hex(8)}"
        with disk_errors(temp):
            descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                file = Incoming(temp, descriptor)
                yield file
                if file.sha256 != (sha256 or file.sha256) or size not in {None, file.size}:
                    raise IntegrityError(
                        f"the bytes are not those announced: {file.size:,} of them, "
                        f"sha256 {file.sha256}",
                        where=f"announced: {size:,} bytes, sha256 {sha256}",
                        fix="upload the file again",
                    )
                with disk_errors(temp):
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            with disk_errors(temp):
                temp.replace(self.path(file.sha256))
                sync_folder(self.folder)
        finally:
            temp.unlink(missing_ok=True)

    def add(self, name: str, data: bytes) -> StoredFile:
        """Keep a small file that is in memory.  Raises DiskError."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256, len(data)):
            with self.incoming() as file:
                file.write(data)
        if is_large(name, len(data), data[:SAMPLE_BYTES]):
            return lfs_file(sha256, len(data))
        return StoredFile(size=len(data), sha256=sha256, oid=git_sha1(data), lfs=False)

    def copy(self, name: str, source: Path) -> StoredFile:
        """Keep a copy of a file, whatever becomes of it later; no link is followed.

        Raises IntegrityError for one that changes while it is read, OSError, DiskError.
        """
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if before.st_size <= MOST_REGULAR_BYTES:
                stored = self.add(name, file.read(MOST_REGULAR_BYTES + 1))
            else:
                with self.incoming(size=before.st_size) as copy:
                    while block := file.read(BLOCK):
                        copy.write(block)
                stored = lfs_file(copy.sha256, copy.size)
            after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (stored.size, after.st_mtime_ns):
            raise IntegrityError("the file changes while it is read", where=str(source))
        return stored
