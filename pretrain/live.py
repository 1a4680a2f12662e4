"""The live signal: a look, every so often, at the frozen features of a few training images.

It tells early what a loss does not: whether features collapse (RankMe), how far a student's
relations still are from its teacher's, how far its heads look, and, where there are class folders,
how well neighbours agree.  It is no benchmark: few images, and such as are trained on.

Rank 0 looks between two steps, in the training process.  Another process that read checkpoints
would need a second copy of student and teacher on the same device, compete with the steps for it,
and miss the checkpoints that are gone when it comes.  What is seen follows from the weights alone,
and when from the recipe and the number of ranks, never from the clock: so a run that was killed
ends with the same rows, and with the weights of a run that never looked.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pretrain.bounds import Count
from pretrain.checkpoint import TrainState
from pretrain.index import ImageIndex
from pretrain.log import RunLog
from pretrain.objective import Observation, Observed
from pretrain.observe import rankme
from pretrain.shards import ShardSet
from pretrain.stream import Deal, Reader
from zoo.errors import DataError
from zoo.images import Preprocess

Probe = Callable[[Tensor, Tensor], Mapping[str, float]]
"""Named scores of features (M, D) float32 with their labels (M,) int64, both on the CPU."""

SHARE = 1 / 64
"""Of the images that go through rank 0, how many are looked at where the recipe leaves it open."""
MOST_LOOKS = 200
"""In a run, where the recipe leaves it open: a curve needs no more points."""
PER_CLASS = 16
"""Images of a class, about: with fewer, neighbours of its own would be rare."""
_BATCH = 32
"""Images at once: queries and keys of every block are held together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """How often a run looks at its features, and how many images it looks at."""

    every_steps: Count | Literal["auto"] | None = field(default="auto", metadata={"runtime": True})
    """auto: as often as one image in 64 of those trained on pays for; null: never."""
    images: Annotated[int, Field(ge=2)] = field(default=256, metadata={"runtime": True})

    def interval(self, *, steps: int, rank_samples: int, round_to: int) -> int | None:
        """Steps between two looks; None where the run is too short for one.

        steps: of the whole run.  rank_samples: that one rank takes in a step.  round_to: steps of
        which ``auto`` takes a multiple, those between two rows: there the device is waited for
        anyway.
        """
        if self.every_steps != "auto":
            return self.every_steps
        looks = min(MOST_LOOKS, math.floor(SHARE * steps * rank_samples / self.images))
        if looks < 2:  # the first and the last
            return None
        return round_to * math.ceil(steps / (looks - 1) / round_to)


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedImages:
    """The images that are looked at, the same ones throughout."""

    index: ImageIndex
    numbers: np.ndarray
    """(M,) int64, ascending: places in the index."""
    preprocess: Preprocess

    @classmethod
    def choose(cls, index: ImageIndex, *, count: int, seed: int, image_size: int) -> "FixedImages":
        """As many as ``count``, if there are; where there are classes, evenly from a few of them.

        image_size: in pixels.
        """
        rng = np.random.default_rng([seed, count])
        order = rng.permutation(len(index))
        if index.labels is not None:
            classes = rng.permutation(len(index.classes))
            together = np.bincount(index.labels, minlength=len(classes))[classes].cumsum()
            enough = int(np.searchsorted(together, count)) + 1
            kept = classes[: max(2, count // PER_CLASS, enough)]
            order = order[np.isin(index.labels[order], kept)]
            order = order[np.argsort(_turns(index.labels[order]), kind="stable")]
        preprocess = Preprocess(image_size=image_size)
        return cls(index=index, numbers=np.sort(order[:count]), preprocess=preprocess)

    def read(self) -> tuple[Tensor, Tensor | None]:
        """(M, 3, S, S) uint8 by the evaluation transform, and (M,) int64 labels if there are any.

        What cannot be read is left out.
        """
        crops, read = [], []
        for number in self.numbers.tolist():
            try:
                crops.append(self.preprocess.eval_crop(self.index.read(number)))
            except DataError:
                continue  # training quarantines it when it comes there
            read.append(number)
        labels = self.index.labels
        if labels is None:
            return _stack(crops), None
        return _stack(crops), _as_labels(labels[np.array(read, np.int64)])


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedImages:
    """A few images of a stream, the same ones throughout; nothing is said of their classes."""

    data: ShardSet
    count: int
    """At most."""
    seed: int
    preprocess: Preprocess

    def read(self) -> tuple[Tensor, None]:
        """(M, 3, S, S) uint8 by the evaluation transform, without what cannot be read.

        Raises DataError, IntegrityError, NetworkError for shards that cannot.
        """
        deal = Deal(shards=len(self.data.shards), rank=0, world=1, readers=1, seed=self.seed)
        reader = Reader(self.data, deal, 0, buffer=1)
        crops = []
        for entry in reader.some(self.count):
            with contextlib.suppress(DataError):
                crops.append(self.preprocess.eval_crop(reader.pixels(entry)))
        return _stack(crops), None


def _stack(crops: list[Tensor]) -> Tensor:
    return torch.stack(crops) if crops else torch.empty(0, 3, 1, 1, dtype=torch.uint8)


def _as_labels(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _turns(labels: np.ndarray) -> np.ndarray:
    """How many of the same label come before each: dealing by turns is even."""
    turns = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        mine = labels == label
        turns[mine] = np.arange(mine.sum())
    return turns


class LiveSignal:
    """When to look, at what, and the row that comes of it."""

    def __init__(
        self,
        chosen: FixedImages | StreamedImages,
        *,
        every: int,
        steps: int,
        device: torch.device,
        autocast: Callable[[], torch.autocast],
        probe: Probe | None = None,
    ) -> None:
        """every, steps: between two looks, and of the run.  probe: where there are classes."""
        self._chosen, self._every, self._steps = chosen, every, steps
        self._device, self._autocast, self._probe = device, autocast, probe
        self._read: tuple[Tensor, Tensor | None] | None = None

    def due(self, state: TrainState) -> bool:
        """Whether the state is to be looked at, and has not been: at the start, and then every so
        often, and at the end.  The same on every rank."""
        looked = state.notes.get("looked") == state.step
        ends = state.step in (0, self._steps)
        return not looked and (ends or state.step % self._every == 0)

    def look(self, state: TrainState, log: RunLog) -> None:
        """Write a row of what would be exported now; the objective trains on as if nothing was.

        On other ranks than 0 only the note that it was done.
        """
        state.notes["looked"] = state.step
        objective = state.objective
        if not log.active or not isinstance(objective, Observed):
            return
        began = time.perf_counter()
        objective.eval()
        as_is = contextlib.nullcontext()
        with state.average.in_place() if state.average else as_is, torch.inference_mode():
            row = self._measure(objective)
        objective.train()
        log.signal(state.step, row, time.perf_counter() - began)

    def _measure(self, objective: Observed) -> dict[str, Any]:
        if self._read is None:
            self._read = self._chosen.read()
        images, labels = self._read
        parts: list[Observation] = []
        for some in images.split(_BATCH):
            with self._autocast():
                parts.append(objective.observe(some.to(self._device) / 255))
        row: dict[str, Any] = {"signal_images": len(images)}
        if not parts:
            return row
        features = torch.cat([part.features for part in parts]).float().cpu()
        row |= self._scores(features, labels)
        for name in parts[0].errors:
            error = _mean([part.errors[name] for part in parts], parts).item()
            row[f"signal_error_{name}"] = _finite(error)
        distances = [part.distances for part in parts if part.distances is not None]
        if distances:
            blocks = _mean(distances, parts).tolist()
            row["signal_attention_distance"] = [[round(h, 2) for h in heads] for heads in blocks]
        return row

    def _scores(self, features: Tensor, labels: Tensor | None) -> dict[str, float | None]:
        if not features.isfinite().all():  # the next row of the loss will say so
            return {"signal_rankme": None}
        scores = {"signal_rankme": rankme(features)}
        if self._probe and labels is not None and len(labels.unique()) > 1:
            found = self._probe(features, labels)
            scores |= {f"signal_{name}": value for name, value in found.items()}
        return {name: _finite(value) for name, value in scores.items()}


def _mean(values: Sequence[Tensor], parts: Sequence[Observation]) -> Tensor:
    """Of the parts' own means, each counted by its images."""
    images = [len(part.features) for part in parts]
    weighted = [value.double() * count for value, count in zip(values, images, strict=True)]
    return torch.stack(weighted).sum(0) / sum(images)


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None
