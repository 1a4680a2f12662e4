"""The order of streamed samples, and their bytes: a function of seed, rank, worker and position.

Every pass over the data deals the shards anew among ranks and readers; a reader goes through its
own in a drawn order, shuffles within a buffer, and begins another pass when they end.  So ranks
whose shards hold unequal numbers of samples still give equal numbers of batches, and no share of
the data stays with one of them.

The shuffle (webdataset's) moves numbers, whose bytes come along as the shards are read.  To
continue at a position, the numbers are shuffled again without bytes: shards whose count is known,
by an index or because a checkpoint tells it, are not even opened; others are read over.
"""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from webdataset.filters import shuffle

from pretrain.remote import opened, read_part
from pretrain.shards import Shard, ShardSet, no_class, no_images, read_label
from pretrain.tars import Sample, samples
from zoo.errors import DataError
from zoo.images import decode

BUFFER = 1000
"""Samples, where a recipe names no other number."""
_INITIAL = 100
"""Samples in the buffer before the first is drawn, at most."""
_SPREAD = 16
"""Shards that a few samples are taken from, if there are so many."""
MOST_IMAGE_BYTES = 64 << 20
"""Of an image's file; a larger one is taken for unreadable and never read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deal:
    """Which shards a reader goes through, pass by pass."""

    shards: int
    """Their number."""
    rank: int
    world: int
    readers: int
    """Of each rank."""
    seed: int

    def hand(self, reader: int, epoch: int) -> list[int]:
        """The shards of one reader in one pass, in the order in which it reads them."""
        dealt = np.random.default_rng([self.seed, epoch]).permutation(self.shards)
        return dealt[self.rank :: self.world][reader :: self.readers].tolist()

    def shuffling(self, reader: int, epoch: int) -> random.Random:
        key = np.random.default_rng([self.seed, epoch, self.rank, reader])
        return random.Random(int(key.integers(2**63)))


@dataclass(kw_only=True, slots=True, eq=False)
class Entry:
    """One sample on its way; without bytes where it was passed over."""

    epoch: int
    """The reader's pass."""
    shard: int
    ordinal: int
    """Position in the shard."""
    sample: Sample | None = None
    image: bytes | None = None
    label: bytes | None = None

    @property
    def index(self) -> int:
        """What a batch knows the sample by, whatever the ranks and readers."""
        return self.shard << 32 | self.ordinal


class Reader:
    """One endless sequence of entries, begun at any position.  Belongs to one process."""

    def __init__(
        self,
        data: ShardSet,
        deal: Deal,
        number: int,
        *,
        buffer: int,
        counts: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """counts: samples of shards that were counted before, beside those that an index tells."""
        self.data, self.deal, self.number, self.buffer = data, deal, number, buffer
        told = {i: s.count for i, s in enumerate(data.shards) if s.count is not None}
        self._counts = {**counts, **told}
        self.counted: dict[int, int] = {}
        """Shards that were read to their end here for the first time."""
        self._tables: dict[int, list[Sample]] = {}
        """Samples of shards that are in part behind the position where we began."""
        self._skipping = False

    def entries(self, start: int) -> Iterator[Entry]:
        """From position ``start`` on, with their bytes.

        Raises DataError, IntegrityError for shards that are not what they should be, NetworkError
        for those that cannot be read.
        """
        skip = start
        for epoch in count():
            known = self._length(epoch)
            if known is not None and known <= skip:
                skip -= known
                continue
            self._skipping = skip > 0
            draw = self.deal.shuffling(self.number, epoch)
            shuffled = shuffle(self.buffer, initial=_INITIAL, rng=draw)(self._pass(epoch))
            for entry in shuffled:
                if skip:
                    skip -= 1
                    self._skipping = skip > 0
                    continue
                yield entry if entry.image is not None else self._filled(entry)
            self._tables.clear()

    def some(self, samples: int) -> Iterator[Entry]:
        """A few entries, the same ones at any time: the first of each of several shards.

        Raises as ``entries``.
        """
        hand = self.deal.hand(self.number, 0)
        each = math.ceil(samples / min(_SPREAD, len(hand)))
        found = (entry for shard in hand for entry in islice(self._through(0, shard, 0), each))
        return islice(found, samples)

    def _length(self, epoch: int) -> int | None:
        """Samples of a pass; None where that is not known yet."""
        counts = [self._counts.get(shard) for shard in self.deal.hand(self.number, epoch)]
        return None if None in counts else sum(n or 0 for n in counts)

    def _pass(self, epoch: int) -> Iterator[Entry]:
        for number in self.deal.hand(self.number, epoch):
            passed, length = 0, self._counts.get(number, 0)
            while self._skipping and passed < length:
                yield Entry(epoch=epoch, shard=number, ordinal=passed)
                passed += 1
            if not length or passed < length:
                yield from self._through(epoch, number, passed)

    def _through(self, epoch: int, number: int, passed: int) -> Iterator[Entry]:
        """The entries of a shard from ``passed`` on; their bytes too unless we skip."""
        shard, found = self.data.shards[number], 0
        with opened(shard.place, shard.size) as file:
            for sample in samples(file, shard.place):
                found += 1
                if sample.ordinal < passed:
                    continue
                entry = Entry(epoch=epoch, shard=number, ordinal=sample.ordinal, sample=sample)
                if not self._skipping:
                    self._read(entry, sample, file)
                yield entry
        if not found:
            raise no_images(shard)
        if number not in self._counts:
            self._counts[number] = self.counted[number] = found
        self._require_count(number, found)

    def _read(self, entry: Entry, sample: Sample, file: "BinaryIO | _Part") -> None:
        shard = self.data.shards[entry.shard]
        entry.sample = sample
        if self.data.labelled and sample.label is not None:
            entry.label = read_label(file, sample, shard)
        if sample.image.size > MOST_IMAGE_BYTES:
            entry.image = b""
            return
        file.seek(sample.image.offset)
        entry.image = _whole(file.read(sample.image.size), sample, shard)

    def _filled(self, entry: Entry) -> Entry:
        """An entry that was passed over, and then drawn from the buffer after all."""
        sample = entry.sample or self._table(entry.shard)[entry.ordinal]
        self._read(entry, sample, _Part(self.data.shards[entry.shard].place))
        return entry

    def _table(self, number: int) -> list[Sample]:
        if number not in self._tables:
            shard = self.data.shards[number]
            with opened(shard.place, shard.size) as file:
                self._tables[number] = list(samples(file, shard.place))
            self._require_count(number, len(self._tables[number]))
        return self._tables[number]

    def _require_count(self, number: int, found: int) -> None:
        if found != (known := self._counts.get(number, found)):
            raise DataError(
                f"the shard holds {found:,} samples, where its index or the run knows {known:,}",
                where=self.data.shards[number].place,
                fix="fetch the shards and their index again, or make them anew",
            )

    def where(self, entry: Entry) -> str:
        """Shard and member, for errors and the quarantine."""
        assert entry.sample
        return f"{self.data.shards[entry.shard].place}: {entry.sample.image.name}"

    def pixels(self, entry: Entry) -> np.ndarray:
        """(H, W, 3) uint8 RGB.  Raises DataError for what is no readable image."""
        assert entry.image is not None
        assert entry.sample
        if entry.sample.image.size > MOST_IMAGE_BYTES:
            raise DataError(
                f"a file of {entry.sample.image.size:,} bytes, over {MOST_IMAGE_BYTES:,}",
                where=self.where(entry),
                fix="leave it out",
            )
        return decode(entry.image, self.where(entry))

    def label(self, entry: Entry) -> int:
        """The class.  Raises DataError where the sample has none."""
        found = None if entry.label is None else self.data.label_of(entry.label)
        if found is None:
            raise no_class(entry.label, self.where(entry))
        return found


class _Part:
    """Bytes at a place, read one extent at a time."""

    def __init__(self, place: str) -> None:
        self._place, self._offset = place, 0

    def seek(self, offset: int) -> None:
        self._offset = offset

    def read(self, size: int) -> bytes:
        return read_part(self._place, self._offset, size)


def _whole(data: bytes, sample: Sample, shard: Shard) -> bytes:
    if len(data) != sample.image.size:
        raise DataError(
            "the shard is shorter than it was",
            where=f"{shard.place}: {sample.image.name}",
            fix="do not change it meanwhile",
        )
    return data
