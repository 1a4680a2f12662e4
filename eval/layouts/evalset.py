"""A data set that is about to be scored: N images, their labels, and what the set may be called."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from eval.layouts.listing import Listing, val_number


class Group(NamedTuple):
    """Images [start, stop) of one corruption and severity; ``("clean", 0)`` elsewhere."""

    type: str
    severity: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalSet:
    """What ``open_eval_set`` recognised.  A handful of arrays: cheap to send to a worker."""

    benchmark: str
    name: str
    """What it may be called in a result; says so where images are missing."""
    complete: bool
    labels: np.ndarray
    """(N,) int64, position in ``classes``."""
    classes: tuple[str, ...]
    """The 1000 synsets, sorted; a user's own set: its class folders, sorted."""
    fingerprint: str
    """Hex sha256 over relative names and sizes, as ``ImageIndex.fingerprint``.

    The same images by the same names give the same one in a folder and in a tar.
    """
    groups: tuple[Group, ...]
    """In the images' order, without gaps."""
    listing: Listing

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of image ``i``.  Raises DataError that names the file, IndexError."""
        return self.listing.read(i)

    def where(self, i: int) -> str:
        """Name of image ``i`` relative to the set, for messages and for predictions."""
        return self.listing.relative(i).decode(errors="backslashreplace")

    def basename(self, i: int) -> str:
        """``ILSVRC2012_val_00000001.JPEG`` where the name has the number; the last part else."""
        number = val_number(self.listing.names[i])
        if number:
            return f"ILSVRC2012_val_{number:08}.JPEG"
        return self.where(i).rpartition("/")[2]
