"""Images of an evaluation set as batches of crops: each is decoded once, for every model.

B images of a batch · S side of a network's input in pixels
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.loader import answers
from zoo.errors import DataError, ZooError
from zoo.images import Preprocess

_SHOWN = 10


class Images(Protocol):
    """What can be read by number: an ``ImageIndex``, or an ``EvalSet``."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8.  Raises DataError."""
        ...


class _Crops(Dataset):
    """Each item is a whole batch, in as many versions as there are transforms."""

    def __init__(self, images: Images, transforms: Sequence[Preprocess]) -> None:
        self.images, self.transforms = images, transforms

    def __getitem__(self, numbers: np.ndarray) -> tuple[list[Tensor], list[ZooError]]:
        """The crops by each transform; or none, and what is wrong with the images."""
        bad: list[ZooError] = []
        crops: list[list[Tensor]] = [[] for _ in self.transforms]
        for i in numbers.tolist():
            try:
                pixels = self.images.read(i)
            except DataError as error:
                bad.append(error)
                continue
            for kept, transform in zip(crops, self.transforms, strict=True):
                kept.append(transform.eval_crop(pixels))
        return [] if bad else [torch.stack(kept) for kept in crops], bad


def crops_of(
    images: Images,
    batches: Sequence[np.ndarray],
    transforms: Sequence[Preprocess],
    *,
    workers: int,
) -> Generator[list[Tensor], None, None]:
    """For each batch of numbers (B,), its crops (B, 3, S, S) uint8 by every transform.

    An image that cannot be read is never skipped or replaced: from the first one on, nothing more
    is yielded, the rest is read to find the others, and a DataError lists them.  Raises ZooError
    where a worker died.
    """
    bad: list[ZooError] = []
    # Processes that have one batch or none to make would cost more than they save.
    workers = min(workers, len(batches) // 2)
    with closing(answers(_Crops(images, transforms), batches, workers=workers)) as found:
        for crops, problems in found:
            bad += problems
            if not bad:
                yield crops
    if bad:
        listed = "; ".join(f"{error.where}: {error.what}" for error in bad[:_SHOWN])
        raise DataError(
            f"{len(bad):,} of {len(images):,} images cannot be read",
            where=listed + ("; …" if len(bad) > _SHOWN else ""),
            fix="repair them: an evaluation never skips or replaces an image",
        )


def images_of(
    images: Images,
    preprocess: Preprocess,
    *,
    batch: int = 64,
    workers: int = 0,
    ranges: Sequence[range] | None = None,
) -> Generator[Tensor, None, None]:
    """Batches (B, 3, S, S) uint8 of all images in their order, by one transform.

    ranges: only these images; no batch reaches over the end of one.  Raises as ``crops_of`` does.
    """
    batches = [
        np.array(part[start : start + batch])
        for part in ([range(len(images))] if ranges is None else ranges)
        for start in range(0, len(part), batch)
    ]
    for (crops,) in crops_of(images, batches, [preprocess], workers=workers):
        yield crops
