"""Batches from worker processes.

Workers are torch's; they die with the training process, and the death of one is one clear error.
"""

import atexit
import functools
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.data import Order, Samples, Transform
from pretrain.distributed import die_with_parent
from pretrain.index import ImageIndex
from pretrain.objective import Batch
from zoo.errors import ZooError

_FORK = "fork" if sys.platform == "linux" else None

_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that are for the training process alone."""

PREFETCH = 4
"""Micro-batches each worker prepares ahead."""
POLL_SECONDS = 5
"""How often a waiting training process looks whether its workers live."""
HANG_SECONDS = 600
"""How long a micro-batch may take before the workers are said to hang."""


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

    @property
    def facts(self) -> dict[str, str]:
        """What the order of samples depends on beside the recipe: nothing."""
        return {}

    @property
    def remarks(self) -> list[str]:
        """What a user should be told: nothing."""
        return []

    def describe(self, index: int) -> str:
        """The file of an image."""
        return str(self.samples.index.path(index))

    def __iter__(self) -> Generator[Batch, None, None]:
        requests = self.order.micro_batches(self.start_step, self.stop_step)
        return answers(self.samples, requests, workers=self.workers)


def answers(
    samples: Dataset, requests: Iterable[Any], *, workers: int
) -> Generator[Any, None, None]:
    """``samples[request]`` for every request in order, made in worker processes.

    An answer that is a ZooError is raised, and so is one where a worker died.  Signals to the group
    end no worker; the end of this iterator, or of this process, does.
    """
    iterator = _start(samples, requests, workers)
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


def _start(samples: Dataset, requests: Iterable[Any], workers: int) -> Iterator[Any]:
    before = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside torch's threads; the child runs none of them.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        warnings.filterwarnings("ignore", "This DataLoader will create")  # the user's business
        loader = DataLoader(
            samples,
            batch_size=None,  # a request is a whole micro-batch
            sampler=requests,
            collate_fn=_as_is,
            num_workers=workers,
            # Forked, a worker shares the index and has us for its parent (die_with_parent).
            multiprocessing_context=_FORK if workers else None,
            worker_init_fn=functools.partial(_begin_worker, os.getpid()),
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=PREFETCH if workers else None,
            timeout=POLL_SECONDS if workers else 0,
            generator=torch.Generator(),  # or it draws from ours, and a resumed run drifts
        )
        # A worker that has not yet begun would still end by a signal to the group.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        try:
            iterator = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises wherever training happens to be; _next finds a death itself.
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return iterator


def _as_is(answer: Any) -> Any:
    return answer


def _begin_worker(parent: int, _: int) -> None:
    die_with_parent(parent)
    torch.set_num_threads(1)
    # A scheduler signals the whole group; the training process decides when its workers leave.
    for number in _OURS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)


def _next(iterator: Iterator, processes: list[BaseProcess]) -> Any:
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
    # A broken pipe is seen a moment before the end of the process behind it, and its closed files
    # (the sentinel) a moment before its exit code: hence a wait, and then a join.
    ended = multiprocessing.connection.wait([p.sentinel for p in processes], timeout=1)
    ends = []
    for process in (p for p in processes if p.sentinel in ended):
        process.join()
        code = process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        ends.append(f"process {process.pid} {how}")
    return ends


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()
