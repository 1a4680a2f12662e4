"""From a data source to batches, so that a sample is a pure function of the recipe.

What a sample looks like follows from (seed, epoch, index, attempt) alone, and which samples make a
batch from (seed, epoch) alone.  So neither the number of workers nor that of ranks changes a
picture, and a run continues at any step without replaying the steps before it.

The processes are torch's DataLoader, with its ends made clear: workers die with the training
process, leave signals to it, and the death of one is one error that says how.
"""

import atexit
import contextlib
import functools
import multiprocessing.connection
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from pretrain.distributed import die_with_parent
from pretrain.index import ImageIndex, open_index
from pretrain.objective import Batch
from zoo.errors import DataError, UsageError, ZooError
from zoo.images import read_image

Transform = Callable[[np.ndarray], Tensor]
"""(H, W, 3) uint8 to (3, S, S) uint8; may draw from torch's, numpy's and ``random``'s defaults."""

Count = Annotated[int, Field(ge=0)]

MAX_ATTEMPTS = 16
"""How many images in a row may be bad before the data set is called broken."""
PREFETCH = 4
"""Micro-batches each worker prepares ahead."""
POLL_SECONDS = 5
"""How often a waiting training process looks whether its workers live."""
HANG_SECONDS = 600
"""How long a micro-batch may take before the workers are said to hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomCrop:
    """Random-resized crop: torchvision's draw, bicubic and antialiased on uint8."""

    image_size: int
    """S, in pixels."""
    scale: tuple[float, float]
    """Share of the image's area."""
    ratio: tuple[float, float]
    """Width over height."""

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 to (3, S, S) uint8."""
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        box = RandomResizedCrop.get_params(image, list(self.scale), list(self.ratio))
        size = [self.image_size, self.image_size]
        return F.resized_crop(image, *box, size, InterpolationMode.BICUBIC, antialias=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where a run's images come from, and how they are cropped."""

    source: str
    """``folder:PATH``: image files in class folders at any depth, or flat and unlabelled."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height."""
    workers: Count = field(default=4, metadata={"runtime": True})
    """Processes that decode, on each rank; 0 decodes in the training process."""
    max_bad: Count = 100
    """Unreadable images after which the run stops."""

    def crop(self, image_size: int) -> RandomCrop:
        """The sample transform of a recipe that brings none.  ``image_size`` in pixels."""
        return RandomCrop(image_size=image_size, scale=self.crop_scale, ratio=self.crop_ratio)


_SCHEMES = {"folder": open_index}  # another kind of source joins here


def open_source(source: str, *, reindex: bool = False) -> ImageIndex:
    """The images that ``scheme:rest`` names.

    Raises UsageError for an unknown scheme, DataError where there is nothing to read.
    """
    scheme, _, rest = source.partition(":")
    if scheme not in _SCHEMES or not rest:
        raise UsageError(
            f"unknown data source {source!r}",
            where="data.source",
            fix="write " + " or ".join(f"{name}:PATH" for name in _SCHEMES),
        )
    return _SCHEMES[scheme](Path(rest), reindex=reindex)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Which samples a rank sees when: a stateless function of (seed, epoch)."""

    samples: int
    """In the data set."""
    global_batch: int
    """Samples a step, over all ranks."""
    rank_batch: int
    """Samples a micro-batch, on one rank."""
    rank: int = 0
    world: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for batch sizes that do not fit each other or the data set."""
        rank_samples, rest = divmod(self.global_batch, self.world)
        if rest or self.global_batch < 1:
            raise UsageError(
                f"global_batch {self.global_batch} does not divide among {self.world} ranks",
                where="global_batch",
                fix=f"choose a multiple of {self.world}",
            )
        if self.rank_batch < 1 or rank_samples % self.rank_batch:
            valid = [n for n in range(1, rank_samples + 1) if rank_samples % n == 0]
            raise UsageError(
                f"rank_batch {self.rank_batch} does not divide a rank's {rank_samples} samples",
                where="rank_batch",
                fix="choose one of " + ", ".join(map(str, valid)),
            )
        if self.global_batch > self.samples:
            raise UsageError(
                f"global_batch {self.global_batch} exceeds the data set's {self.samples} images",
                where="global_batch",
                fix=f"choose at most {self.samples}, or more data",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches; the rest of an epoch is dropped."""
        return self.samples // self.global_batch

    @property
    def accumulate(self) -> int:
        """Micro-batches a step."""
        return self.global_batch // (self.rank_batch * self.world)

    def micro_batches(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, (rank_batch,) int64 indices) of every micro-batch in steps [start, stop)."""
        permutation, shuffled = np.empty(0, np.int64), -1
        for step in range(start, stop):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != shuffled:
                permutation = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
                shuffled = epoch
            together = permutation[batch * self.global_batch : (batch + 1) * self.global_batch]
            mine = together[self.rank :: self.world]
            for indices in mine.reshape(self.accumulate, self.rank_batch):
                yield epoch, indices


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples(Dataset):
    """Reads micro-batches; pure, so it may run in any process."""

    index: ImageIndex
    transform: Transform
    draws: int
    """D, uniform draws a sample."""
    seed: int

    def __getitem__(self, request: tuple[int, np.ndarray]) -> Batch | ZooError:
        try:
            return self.batch(*request)
        except ZooError as error:
            return error  # raised in a worker, torch would bury it in a traceback of its own

    def batch(self, epoch: int, indices: np.ndarray) -> Batch:
        """The samples of ``indices`` in ``epoch``, unreadable ones drawn again.

        Leaves the process's random generators as they were.  Raises DataError where one slot met
        ``MAX_ATTEMPTS`` bad images, UsageError where the transform returns something else.
        """
        bad: list[tuple[int, str]] = []
        with _generators_kept():
            slots = [self._slot(epoch, int(index), bad) for index in indices]
        used, images, draws = zip(*slots, strict=True)
        used_B = np.array(used)
        labels = self.index.labels
        return Batch(
            images=torch.stack(images),
            indices=torch.from_numpy(used_B),
            draws=torch.from_numpy(np.stack(draws)),
            labels=None if labels is None else torch.from_numpy(labels[used_B].astype(np.int64)),
            bad=tuple(bad),
        )

    def _slot(self, epoch: int, index: int, bad: list) -> tuple[int, Tensor, np.ndarray]:
        """(index used, image, draws); what could not be read is appended to ``bad``."""
        chosen = index
        for attempt in range(MAX_ATTEMPTS):
            try:
                return chosen, *self._sample(epoch, chosen, attempt)
            except DataError as error:
                bad.append((chosen, error.what))
            again = np.random.default_rng([self.seed, epoch, index, attempt])
            chosen = int(again.integers(len(self.index)))
        raise DataError(
            f"{MAX_ATTEMPTS} images in a row could not be read; the last: {bad[-1][1]}",
            where=str(self.index.path(bad[-1][0])),
            fix="check the data set's files",
        )

    def _sample(self, epoch: int, index: int, attempt: int) -> tuple[Tensor, np.ndarray]:
        pixels = read_image(self.index.path(index))
        key = np.random.default_rng([self.seed, epoch, index, attempt])
        # Before the draws, whose number is the method's: every method sees the same crops.
        _seed_generators(int(key.integers(2**63)))
        image = self.transform(pixels)
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise UsageError(
                f"the sample transform returned {image.dtype} of shape {tuple(image.shape)}",
                where=repr(self.transform),
                fix="return (3, S, S) uint8",
            )
        return image, key.random(self.draws, dtype=np.float32)


def _seed_generators(seed: int) -> None:
    # Not torch.manual_seed, which costs 100 times more on a CUDA build: it seeds every device.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Put torch's, numpy's and ``random``'s generators back as they were."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class Loader:
    """Iterates the micro-batches of steps [start_step, stop_step) of one rank.

    ``accumulate`` consecutive batches make a step.  Raises UsageError for batch sizes that do not
    fit each other or the data set; iterating raises DataError for data that cannot be read, and
    ZooError where a worker died.
    """

    def __init__(
        self,
        index: ImageIndex,
        *,
        transform: Transform,
        draws: int,
        global_batch: int,
        rank_batch: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start_step: int = 0,
        stop_step: int,
        workers: int,
    ) -> None:
        self.order = Order(
            samples=len(index),
            global_batch=global_batch,
            rank_batch=rank_batch,
            rank=rank,
            world=world,
            seed=seed,
        )
        self.samples = Samples(index=index, transform=transform, draws=draws, seed=seed)
        self.start_step, self.stop_step, self.workers = start_step, stop_step, workers

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch."""
        return self.order.steps_per_epoch

    @property
    def accumulate(self) -> int:
        """Micro-batches a step."""
        return self.order.accumulate

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        iterator = self._start()
        processes = getattr(iterator, "_workers", [])
        # Workers ignore SIGTERM: without this, one that hangs would hold up our own exit.
        stop = functools.partial(_kill, processes)
        atexit.register(stop)
        try:
            while (answer := _next(iterator, processes)) is not None:
                if isinstance(answer, ZooError):
                    raise answer
                yield answer
        finally:
            del iterator  # torch asks its workers to leave
            stop()
            atexit.unregister(stop)

    def _start(self) -> Iterator[Batch | ZooError]:
        loader = DataLoader(
            self.samples,
            batch_size=None,  # a request is a whole micro-batch
            sampler=self.order.micro_batches(self.start_step, self.stop_step),
            collate_fn=_as_is,
            num_workers=self.workers,
            worker_init_fn=_begin_worker,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=PREFETCH if self.workers else None,
            timeout=POLL_SECONDS if self.workers else 0,
            generator=torch.Generator(),  # or it draws from ours, and a resumed run drifts
        )
        before = signal.getsignal(signal.SIGCHLD)
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside torch's threads; the child runs none of them.
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            iterator = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever training happens to be; _next finds a death itself.
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        return iterator


def _as_is(answer: Any) -> Any:
    return answer


def _begin_worker(_: int) -> None:
    die_with_parent()
    torch.set_num_threads(1)
    # A scheduler signals the whole group; the training process decides when its workers leave.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _next(iterator: Iterator, processes: list[BaseProcess]) -> Batch | ZooError | None:
    """What the workers answer next, None at the end; ZooError where one died or all hang."""
    give_up = time.monotonic() + HANG_SECONDS
    while True:
        try:
            return next(iterator, None)
        except (RuntimeError, EOFError, OSError) as error:
            # torch meets a dead worker as any of these, depending on what it was doing.
            if ends := _ends(processes):
                raise ZooError(
                    f"a loader worker died: {', '.join(ends)}",
                    where="data.workers",
                    fix="SIGKILL is mostly memory, SIGBUS mostly /dev/shm: use fewer workers or a "
                    "smaller rank_batch; the same command continues the run",
                ) from error
            if not str(error).startswith("DataLoader timed out"):
                raise
            if time.monotonic() > give_up:
                raise ZooError(
                    f"the loader workers gave nothing for {HANG_SECONDS} seconds",
                    where="data.workers",
                    fix="check that the data set's file system answers; the same command continues",
                ) from error


def _ends(processes: list[BaseProcess]) -> list[str]:
    """How each dead worker ended."""
    # A broken pipe is seen a moment before the death of the process at its other end.
    multiprocessing.connection.wait([process.sentinel for process in processes], timeout=1)
    ends = []
    for process in processes:
        if (code := process.exitcode) is not None:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            ends.append(f"process {process.pid} {how}")
    return ends


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()
