"""Images of an evaluation set as batches of crops: each is decoded once, for every model.

B images of a batch · S side of a network's input in pixels
"""

import functools
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.distributed import die_with_parent
from zoo.errors import DataError, ZooError
from zoo.images import Preprocess

_FORK = "fork" if sys.platform == "linux" else None
_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
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

    def __getitem__(self, numbers: np.ndarray) -> list[Tensor] | list[ZooError]:
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
        return bad or [torch.stack(kept) for kept in crops]


def crops_of(
    images: Images,
    batches: Sequence[np.ndarray],
    transforms: Sequence[Preprocess],
    *,
    workers: int,
) -> Iterator[list[Tensor]]:
    """For each batch of numbers (B,), its crops (B, 3, S, S) uint8 by every transform.

    An image that cannot be read is never skipped or replaced: from the first one on, nothing more
    is yielded, the rest is read to find the others, and a DataError lists them.  Raises ZooError
    where a worker died.
    """
    bad: list[ZooError] = []
    for answer in _answers(images, batches, transforms, workers):
        if isinstance(answer[0], ZooError):
            bad += answer
        elif not bad:
            yield answer
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
) -> Iterator[Tensor]:
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


def _answers(
    images: Images, batches: Sequence[np.ndarray], transforms: Sequence[Preprocess], workers: int
) -> Iterator[list]:
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside torch's threads; the child runs none of them.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        warnings.filterwarnings("ignore", "This DataLoader will create")  # the user's business
        loader = DataLoader(
            _Crops(images, transforms),
            batch_size=None,
            sampler=batches,
            collate_fn=_as_is,
            num_workers=workers,
            multiprocessing_context=_FORK if workers else None,
            worker_init_fn=functools.partial(_begin_worker, os.getpid()),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )
        # A worker that has not yet begun would still end by a signal to the group.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        try:
            answers = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
    try:
        yield from answers
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ZooError(
            "a worker that decodes images died",
            where=str(error).partition("\n")[0],
            fix="mostly it is memory: use fewer --workers; the same command continues",
        ) from error


def _as_is(answer: list) -> list:
    return answer


def _begin_worker(parent: int, _: int) -> None:
    die_with_parent(parent)
    torch.set_num_threads(1)
    # A scheduler signals the whole group; the process that scores decides when they leave.
    for number in _OURS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
