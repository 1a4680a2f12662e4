"""From a data source to batches, so that a sample is a pure function of the recipe.

What a sample looks like follows from (seed, epoch, index, attempt) alone, and which samples make a
batch from (seed, epoch) alone.  So neither the number of workers nor that of ranks changes a
picture, and a run continues at any step without replaying the steps before it.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pretrain.augment import Augment
from pretrain.bounds import Positive
from pretrain.index import ImageIndex, open_index, shown
from pretrain.objective import Batch
from pretrain.remote import require_safe
from pretrain.split import open_part
from zoo.errors import DataError, UsageError, ZooError, unexpected
from zoo.images import read_image

Transform = Callable[[np.ndarray], Tensor]
"""(H, W, 3) uint8 to (3, S, S) uint8; may draw from torch's, numpy's and ``random``'s defaults."""

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]

FEW_BAD = 10
"""So many unreadable images are no share of a data set, however small it is."""
STREAM = "wds:"
"""How a source that is streamed begins."""

MAX_ATTEMPTS = 16
"""How many images in a row may be bad before the data set is called broken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomCrop:
    """Random-resized crop: timm's draw, bicubic and antialiased on uint8."""

    image_size: int
    """S, in pixels."""
    scale: tuple[float, float]
    """Share of the image's area."""
    ratio: tuple[float, float]
    """Width over height."""

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 to (3, S, S) uint8."""
        y, x, h, w = self.box(pixels)
        if h == 0 or w == 0:  # rounded away: an image a pixel or two wide is taken whole
            y, x, h, w = 0, 0, *pixels.shape[:2]
        # Copied out first: torch resizes a strided view a third slower, to the same bits.
        crop = torch.from_numpy(pixels[y : y + h, x : x + w].copy()).permute(2, 0, 1)
        size = [self.image_size, self.image_size]
        return F.resize(crop, size, InterpolationMode.BICUBIC, antialias=True)

    def box(self, pixels: np.ndarray) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop, in pixels of the file."""
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        # The same distribution as torchvision's draw, whose tensor arithmetic costs 5 % of it all.
        return RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where a run's images come from, and how they are cropped."""

    source: str
    """``folder:PATH``: image files in class folders at any depth, or flat and unlabelled.
    ``split:FILE#train``: those of a folder that a list names (``pretrain/split.py``).
    ``wds:SPEC``: tar shards, streamed, here or at an address (``pretrain/shards.py``)."""
    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    """Smallest and largest share of the image's area."""
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest width over height."""
    augment: Augment | None = None
    """What else happens to a sample on the host; null where the method does all of it."""
    validation: str | None = None
    """Images with the same classes that are not trained on, written as ``source`` is."""
    shuffle_buffer: Annotated[int, Field(ge=1)] | None = None
    """Of ``wds:``: samples among which each worker draws the next one; null for 1,000."""
    workers: Count = field(default=4, metadata={"runtime": True})
    """Processes that decode, on each rank; 0 decodes in the training process."""
    max_bad: Count = field(default=100, metadata={"runtime": True})
    """Unreadable images after which the run stops."""
    max_bad_share: Share = field(default=0.001, metadata={"runtime": True})
    """Of the data set's images, which stops it too: the smaller of the two counts."""

    def __post_init__(self) -> None:
        """Raises UsageError, IntegrityError for a range or an address that is none."""
        if self.streams:
            require_safe(self.source.removeprefix(STREAM))
        elif self.shuffle_buffer is not None:
            raise UsageError(
                "a whole epoch is shuffled where images are read by number",
                where="data.shuffle_buffer",
                fix=f"leave it out, or stream shards: data.source={STREAM}SPEC",
            )
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise UsageError(
                    f"{name} runs from {low} down to {high}",
                    where=f"data.{name}",
                    fix="write the smaller number first",
                )

    @property
    def streams(self) -> bool:
        """Whether the images come as a stream, and not by number."""
        return self.source.startswith(STREAM)

    def transform(self, image_size: int) -> Transform:
        """The sample transform.  ``image_size`` in pixels.  Raises UsageError."""
        if self.augment is None:
            return self.crop(image_size)
        return self.augment.transform(image_size, scale=self.crop_scale, ratio=self.crop_ratio)

    def most_bad(self, images: int | None) -> int:
        """How many images of a data set of this size, where it is known, may be unreadable."""
        if images is None:
            return self.max_bad
        # A thousandth of a small set is no image at all: it may have a few, as a large one has.
        return min(self.max_bad, max(FEW_BAD, int(self.max_bad_share * images)))

    def crop(self, image_size: int) -> RandomCrop:
        """The sample transform of a recipe that brings none.  ``image_size`` in pixels."""
        return RandomCrop(image_size=image_size, scale=self.crop_scale, ratio=self.crop_ratio)


_SCHEMES = {"folder": open_index, "split": open_part}  # another kind of source joins here


def open_source(source: str, *, reindex: bool = False) -> ImageIndex:
    """The images that ``scheme:rest`` names, to be read by number.

    Raises UsageError for an unknown scheme, DataError where there is nothing to read.
    """
    scheme, _, rest = source.partition(":")
    if source.startswith(STREAM):
        raise UsageError(
            f"the data source {source!r} is a stream: it can be trained on, and nothing else",
            where="data",
            fix="write folder:PATH, or split:FILE#train and split:FILE#val",
        )
    if scheme not in _SCHEMES or not rest:
        raise UsageError(
            f"unknown data source {source!r}",
            where="data.source",
            fix="write folder:PATH, split:FILE#train and split:FILE#val, or wds:SHARDS",
        )
    return _SCHEMES[scheme](Path(rest), reindex=reindex)


def require_same_classes(train: ImageIndex, heldout: ImageIndex) -> None:
    """Raise DataError unless both hold two class folders or more, and the same ones.

    A class that only one of them has would shift the numbers of all that follow it.
    """
    if train.classes == heldout.classes and len(train.classes) >= 2:
        return
    shared = f"{train.root} and {heldout.root}"
    if not train.classes or not heldout.classes:
        what, where = "the images lie in no class folders", shared
    elif train.classes != heldout.classes:
        only = sorted(set(train.classes) ^ set(heldout.classes))
        what = "training and validation images do not have the same class folders"
        where = f"{shared}: only in one of them: {', '.join(only[:10])}"
        where += f" and {len(only) - 10} more" * (len(only) > 10)
    else:
        what, where = f"there is one class only: {train.classes[0]}", shared
    raise DataError(what, where=where, fix="give folders that hold the same <class>/ folders")


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
        with generators_kept():
            slots = [self._slot(epoch, int(index), bad) for index in indices]
        labels = self.index.labels
        if labels is not None:
            labels = labels[[slot.number for slot in slots]].astype(np.int64)
        return make_batch(slots, labels, bad)

    def _slot(self, epoch: int, index: int, bad: list) -> "Slot":
        """What could not be read is appended to ``bad``."""
        chosen = index
        for attempt in range(MAX_ATTEMPTS):
            key = (self.seed, epoch, index, attempt)
            try:
                pixels = read_image(self.index.path(chosen))
                drawn = (self.seed, epoch, chosen, attempt)
                return make_slot(chosen, pixels, drawn, self.transform, self.draws)
            except DataError as error:
                bad.append((chosen, error.what))
            except ZooError:
                raise
            except Exception as error:
                raise sample_failed(error, shown(self.index.path(chosen))) from error
            chosen = int(np.random.default_rng(key).integers(len(self.index)))
        raise too_many_bad(bad[-1][1], shown(self.index.path(bad[-1][0])))


class Slot(NamedTuple):
    """One sample of a batch."""

    number: int
    """Its index."""
    image: Tensor
    """(3, S, S) uint8."""
    draws: np.ndarray
    """(D,) float32."""


def make_slot(
    index: int, pixels: np.ndarray, key: tuple[int, ...], transform: Transform, draws: int
) -> Slot:
    """What becomes of an image's (H, W, 3) uint8 pixels: a function of ``key`` alone.

    Moves the process's random generators (``generators_kept``).  Raises UsageError where the
    transform returns something else than it should.
    """
    generator = np.random.default_rng(key)
    # Before the draws, whose number is the method's: every method sees the same crops.
    _seed_generators(int(generator.integers(2**63)))
    image = transform(pixels)
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise UsageError(
            f"the sample transform returned {image.dtype} of shape {tuple(image.shape)}",
            where=repr(transform),
            fix="return (3, S, S) uint8",
        )
    return Slot(index, image, generator.random(draws, dtype=np.float32))


def make_batch(
    slots: Sequence[Slot], labels: np.ndarray | None, bad: Sequence[tuple[int, str]]
) -> Batch:
    """labels: (B,) int64."""
    return Batch(
        # Side by side as decoded, channels last: to part the planes here costs 7 % of it all.
        images=torch.stack([s.image.permute(1, 2, 0) for s in slots]).permute(0, 3, 1, 2),
        indices=torch.tensor([slot.number for slot in slots], dtype=torch.int64),
        draws=torch.from_numpy(np.stack([slot.draws for slot in slots])),
        labels=None if labels is None else torch.from_numpy(labels),
        bad=tuple(bad),
    )


def sample_failed(error: Exception, where: str) -> ZooError:
    """Of the transform: no fault of the file, as far as we know."""
    return ZooError(
        unexpected(error).what.replace("unexpected", "a sample could not be made"),
        where=where,
        fix="look at the recipe's transform, and at the file; the same command continues the run",
    )


def too_many_bad(why: str, where: str) -> DataError:
    return DataError(
        f"{MAX_ATTEMPTS} images in a row could not be read; the last: {why}",
        where=where,
        fix="check the data set's files",
    )


def _seed_generators(seed: int) -> None:
    # Not torch.manual_seed, which costs 100 times more on a CUDA build: it seeds every device.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Put torch's, numpy's and ``random``'s generators back as they were."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
