"""The contract between the loop and whatever it trains: a pre-training method, or fine-tuning.

The loop knows nothing else of a method.  No base class: anything of this shape will do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from pretrain.distributed import World
from pretrain.index import ImageIndex
from zoo.card import Score


class Batch(NamedTuple):
    """What a loader yields.  B samples, S pixels a side, D draws a sample."""

    images: Tensor
    """(B, 3, S, S) uint8, cropped and resized; nothing else has happened to them."""
    indices: Tensor
    """(B,) int64, position of each sample in the data set's index."""
    draws: Tensor
    """(B, D) float32, uniform in [0, 1), a function of (seed, epoch, index) alone."""
    labels: Tensor | None = None
    """(B,) int64 where the data has class folders."""
    bad: tuple[tuple[int, str], ...] = ()
    """(index, reason) of images that could not be read and were drawn again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamGroup:
    """Parameters that share a learning rate and a weight decay."""

    names: tuple[str, ...]
    """Names as in ``objective.named_parameters()``."""
    lr_scale: float = 1.0
    """Multiplies the schedule's learning rate (layer decay)."""
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A trained network as a method ships it, before it becomes a model folder."""

    weights: Mapping[str, Tensor]
    """The network's state dict, timm's key names."""
    last_trained_block: int | None
    """1-based; features come from here.  Null for a convnet."""
    fresh: tuple[str, ...] = ()
    """Names of parameters that training never touched: fine-tuning initialises them anew."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the card should say (teacher, relation heads, ...)."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in order, where the network ends in a classifier."""


class Objective(Protocol):
    """A ``torch.nn.Module`` with these four more things."""

    draws: int
    """How many uniform draws it wants with every sample."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Named losses, each a scalar; ``"total"`` is the one to minimise."""
        ...

    def param_groups(self, weight_decay: float) -> Iterable[ParamGroup]:
        """What it trains, and how that is grouped."""
        ...

    def export(self) -> Export:
        """The network to ship, from the weights it holds now."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Heldout:
    """Images that are not trained on, and how they are to be read."""

    images: ImageIndex
    """With the same classes as the training data."""
    world: World
    batch: int
    """Images of a forward pass, on one rank."""
    workers: int
    """Processes that decode, on each rank."""


@runtime_checkable
class Validated(Protocol):
    """What an objective may offer besides: a score on images that it does not train on.

    Without it, a recipe's ``data.validation`` is refused; with it, asked for.
    """

    def open(self, train: ImageIndex, heldout: Heldout) -> None:
        """Meet the data, before the first step.  Raises UsageError where it does not fit."""
        ...

    def validate(self) -> dict[str, float]:
        """Named scores, exact over all images whatever the number of ranks; the same on each.

        The first one, higher for better, decides which epoch was the best.  Called after every
        epoch and at the end, by all ranks, in eval mode and without gradients.
        """
        ...

    def scores(self, validation: Mapping[str, Any]) -> list[Score]:
        """What a card should say of a validation: its ``epoch``, ``step`` and ``scores``."""
        ...


class Observation(NamedTuple):
    """What can be seen of a network that learns.  B images, L blocks, H heads."""

    features: Tensor
    """(B, D): of each image, as whoever uses the network would read and pool them."""
    distances: Tensor | None = None
    """(L, H) float32: how far each head looks, mean over the images, in pixels."""
    errors: Mapping[str, Tensor] = MappingProxyType({})
    """How far it is from a teacher, by what is compared; scalars, means over the images."""


@runtime_checkable
class Observed(Protocol):
    """What an objective may offer besides: a look at what it trains, as it would export it now."""

    def observe(self, images01: Tensor) -> Observation:
        """Look at clean images (B, 3, S, S) in [0, 1]; in eval mode and without gradients.

        Draws no random number, and leaves everything as it was.
        """
        ...
