"""The contract between the loop and whatever it trains: a pre-training method, or fine-tuning.

The loop knows nothing else of a method.  No base class: anything of this shape will do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor


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
