"""Batches from streamed shards, with the face of ``pretrain/loader.py`` and by its workers."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from pretrain.data import (
    MAX_ATTEMPTS,
    Order,
    Slot,
    Transform,
    generators_kept,
    make_batch,
    make_slot,
    sample_failed,
    too_many_bad,
)
from pretrain.loader import answers
from pretrain.objective import Batch
from pretrain.shards import ShardSet
from pretrain.stream import Deal, Entry, Reader
from zoo.errors import DataError, UsageError, ZooError


class Answer(NamedTuple):
    """What a worker sends."""

    batch: Batch
    bad_names: dict[int, str]
    """Shard and member of the images in ``batch.bad``."""
    counted: dict[int, int]
    """Samples of shards that were counted on the way."""


class Request(NamedTuple):
    """A micro-batch."""

    reader: int
    first: int
    """Position in the reader's sequence."""
    size: int


class StreamSamples(Dataset):
    """Answers requests; pure, so any process may, but one that goes on is quickest.

    A sample's crop and draws follow from (seed, pass, sample): neither workers nor ranks change
    what a picture looks like.  They change which pictures make a batch.
    """

    def __init__(
        self, data: ShardSet, deal: Deal, *, buffer: int, transform: Transform, draws: int
    ) -> None:
        self.data, self.deal, self.buffer = data, deal, buffer
        self.transform, self.draws = transform, draws
        self.counts: dict[int, int] = {}
        """Samples of shards that were counted before."""
        self._cursors: dict[int, _Cursor] = {}

    def __getitem__(self, request: Request) -> Answer | ZooError:
        try:
            return self.answer(request)
        except ZooError as error:
            return error  # raised in a worker, torch would bury it in a traceback of its own

    def answer(self, request: Request) -> Answer:
        """Raises ZooError, UsageError where the transform returns something else."""
        cursor = self._cursors.get(request.reader)
        if cursor is None or cursor.position != request.first:
            reader = Reader(
                self.data, self.deal, request.reader, buffer=self.buffer, counts=self.counts
            )
            cursor = self._cursors[request.reader] = _Cursor(reader, request.first)
        bad: dict[int, tuple[str, str]] = {}
        slots, labels = [], []
        with generators_kept():
            for _ in range(request.size):
                slot, label = self._slot(cursor, bad)
                slots.append(slot)
                labels.append(label)
                cursor.advance()
        labels_B = np.array(labels, np.int64) if self.data.labelled else None
        reasons = [(index, why) for index, (why, _) in bad.items()]
        names = {index: name for index, (_, name) in bad.items()}
        counted, cursor.reader.counted = cursor.reader.counted, {}
        return Answer(make_batch(slots, labels_B, reasons), names, counted)

    def _slot(self, cursor: "_Cursor", bad: dict[int, tuple[str, str]]) -> tuple[Slot, int]:
        """The sample at the cursor, or where it cannot be read, the next of the stream that can.

        That one keeps its own place too: the positions of all others stay what they were, and a
        run that continues there need not know of it.
        """
        why = where = ""
        for attempt in range(MAX_ATTEMPTS):
            entry = cursor.ahead(attempt)
            try:
                pixels = cursor.reader.pixels(entry)
            except DataError as error:
                why, where = error.what, cursor.reader.where(entry)
                bad[entry.index] = why, where
                continue
            key = (self.deal.seed, entry.epoch, entry.index, attempt)
            try:
                slot = make_slot(entry.index, pixels, key, self.transform, self.draws)
            except ZooError:
                raise
            except Exception as error:
                raise sample_failed(error, cursor.reader.where(entry)) from error
            return slot, cursor.reader.label(entry) if self.data.labelled else -1
        raise too_many_bad(why, where)


class _Cursor:
    """A place in a reader's sequence, with a look ahead."""

    def __init__(self, reader: Reader, position: int) -> None:
        self.reader, self.position = reader, position
        self._entries = reader.entries(position)
        self._next: deque[Entry] = deque()

    def ahead(self, distance: int) -> Entry:
        while len(self._next) <= distance:
            self._next.append(next(self._entries))
        return self._next[distance]

    def advance(self) -> None:
        self.ahead(0)
        self._next.popleft()
        self.position += 1


class StreamLoader:
    """Iterates the micro-batches of steps [start_step, stop_step) of one rank.

    ``accumulate`` consecutive batches make a step.  Raises UsageError for batch sizes that do not
    fit each other, and where there are fewer shards than ranks; iterating raises DataError,
    IntegrityError, NetworkError, and ZooError where a worker died.
    """

    def __init__(
        self,
        data: ShardSet,
        *,
        transform: Transform,
        draws: int,
        buffer: int,
        global_batch: int,
        rank_batch: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start_step: int = 0,
        stop_step: int,
        workers: int,
    ) -> None:
        self._order = Order(
            samples=global_batch if data.samples is None else data.samples,
            global_batch=global_batch,
            rank_batch=rank_batch,
            rank=rank,
            world=world,
            seed=seed,
        )
        each = len(data.shards) // world
        if not each:
            raise UsageError(
                f"{len(data.shards)} shards are too few for {world} ranks: one would have none",
                where="data.source",
                fix="use fewer ranks, or make smaller shards: zoo data pack --shard-size-mb",
            )
        self.readers = min(max(1, workers), each)
        deal = Deal(
            shards=len(data.shards), rank=rank, world=world, readers=self.readers, seed=seed
        )
        self.samples = StreamSamples(data, deal, buffer=buffer, transform=transform, draws=draws)
        self.start_step, self.stop_step, self.workers = start_step, stop_step, workers
        self._names: dict[int, str] = {}
        self._counted: dict[int, int] = {}

    @property
    def steps_per_epoch(self) -> int | None:
        """Global batches an epoch; None where the number of samples is not known."""
        return None if self.samples.data.samples is None else self._order.steps_per_epoch

    @property
    def accumulate(self) -> int:
        """Micro-batches a step."""
        return self._order.accumulate

    @property
    def facts(self) -> dict[str, str]:
        """What the order of samples depends on beside the recipe."""
        return {"readers of shards": str(self.readers)}

    @property
    def remarks(self) -> list[str]:
        """What a user should be told."""
        if self.readers >= self.workers:
            return []
        shards = len(self.samples.data.shards)
        return [f"{shards} shards keep {self.readers} of {self.workers} workers busy on each rank"]

    def remember(self, counts: Mapping[str, int]) -> None:
        """Take over what ``counted`` told in an earlier start, before iterating."""
        self.samples.counts |= {int(shard): count for shard, count in counts.items()}

    def counted(self) -> dict[str, int]:
        """By shard, how many samples it holds: those that no index tells, counted since last asked.

        With it a later start need not read over what lies behind it.
        """
        found, self._counted = self._counted, {}
        return {str(shard): count for shard, count in found.items()}

    def describe(self, index: int) -> str:
        """Shard and member of a sample that could not be read."""
        shard = self.samples.data.shards[index >> 32].place
        return self._names.get(index, f"{shard}: sample {index & (1 << 32) - 1}")

    def __iter__(self) -> Generator[Batch, None, None]:
        workers = min(self.workers, self.readers)
        given = answers(self.samples, self._requests(), workers=workers)
        try:
            for batch, names, counted in given:
                self._names |= names
                self._counted |= counted
                yield batch
        finally:
            given.close()

    def _requests(self) -> Iterator[Request]:
        """Readers in turn: torch gives request n to worker n % workers, and so each its own."""
        size, first = self._order.rank_batch, self.start_step * self.accumulate
        for number in range(first, self.stop_step * self.accumulate):
            yield Request(number % self.readers, number // self.readers * size, size)
