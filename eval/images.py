"""Batches of images for an evaluation: each image once, in order, none replaced.

B images · S image side in pixels · H, W: a file's, in pixels
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.errors import DataError, ZooError
from zoo.images import Preprocess


class Images(Protocol):
    """An index of files, or a recognised set."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of image ``i``.  Raises DataError."""
        ...


class EvalImages(Dataset):
    """Every image of a set once, by the card's evaluation transform.

    An unreadable image is an answer of its own, never replaced by another.
    """

    def __init__(self, images: Images, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor | ZooError:
        try:
            return self.preprocess.eval_crop(self.images.read(i))
        except DataError as error:
            return error


def _stack(samples: list[Tensor | ZooError]) -> tuple[Tensor | None, list[ZooError]]:
    bad = [sample for sample in samples if isinstance(sample, ZooError)]
    good = [sample for sample in samples if isinstance(sample, Tensor)]
    return (None if bad else torch.stack(good)), bad


def images_of(
    images: Images,
    preprocess: Preprocess,
    *,
    batch: int = 64,
    workers: int = 0,
    ranges: Sequence[range] | None = None,
) -> Iterator[Tensor]:
    """Batches (B, 3, S, S) uint8 of all images, in their order.

    ranges: only these images; no batch reaches over the end of one.  Raises DataError with the
    list of images that cannot be read.
    """
    wanted = [range(len(images))] if ranges is None else ranges
    bad: list[ZooError] = []
    batches = [
        part[start : start + batch] for part in wanted for start in range(0, len(part), batch)
    ]
    loader = DataLoader(
        EvalImages(images, preprocess),
        batch_sampler=batches,  # type: ignore[arg-type]  # ranges are lists of places, and smaller
        num_workers=workers,
        collate_fn=_stack,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside torch's threads; the child runs none of them.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        answers = iter(loader)
    for stacked, problems in answers:
        bad += problems
        if stacked is not None and not bad:
            yield stacked
    if bad:
        listed = "; ".join(f"{error.where}: {error.what}" for error in bad[:10])
        raise DataError(
            f"{len(bad)} of {len(images)} images cannot be read",
            where=listed + ("; …" if len(bad) > 10 else ""),
            fix="repair them: an evaluation never skips or replaces an image",
        )
