"""What is kept of an evaluation under way: finished shards, so that a killed one continues.

A shard is a fixed stretch of a set's images, whatever the number of ranks.  Its file is written
whole or not at all, and carries a checksum.
"""

import contextlib
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zoo.errors import UsageError
from zoo.files import atomic_write, disk_errors

SHARD = 1000
"""Images of a shard."""

PARTIAL = ".partial"
LOCK_SECONDS = 5
"""How long the workers of a killed evaluation, which hold its lock, may take to die."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """The shards of one model's way through one set."""

    folder: Path

    def save(self, number: int, tensors: Mapping[str, Tensor], seconds: float) -> None:
        """Keep a finished shard.  seconds: of wall clock that it took.  Raises DiskError."""
        facts = {"crc32": _checksum(tensors), "seconds": repr(seconds)}
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self._path(number), save(dict(tensors), metadata=facts))

    def load(self, number: int) -> tuple[dict[str, Tensor], float] | None:
        """The shard's tensors and its seconds; None where it is not there, or damaged."""
        try:
            with safe_open(self._path(number), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                facts = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        if facts.get("crc32") != _checksum(tensors):
            return None
        return tensors, float(facts["seconds"])

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep a second evaluation of the same kind out.  Raises UsageError, DiskError.

        The kernel frees the lock however the holder ends.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            try:
                lock.acquire(timeout=LOCK_SECONDS)
            except Timeout as error:
                raise UsageError(
                    "another process is evaluating this model on this set",
                    where=str(self.folder),
                    fix="wait for it, or write elsewhere (--out)",
                ) from error
        try:
            yield
        finally:
            lock.release()

    def remove(self) -> None:
        """Once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # unless another evaluation is under way

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].contiguous().numpy().data, value)
    return f"{value:08x}"
