"""Optimizer, schedule and weight average."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.bounds import NotNegative, Positive, Rate
from pretrain.lars import Lars
from pretrain.objective import Objective, ParamGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """AdamW, or LARS, with linear warm-up and half-cosine decay, both per step."""

    algorithm: Literal["adamw", "lars"] = "adamw"
    lr_per_256: NotNegative = 1.5e-4
    """The papers' base lr: the peak is this times global_batch / 256."""
    min_lr: NotNegative = 0.0
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    """AdamW's; the first is the momentum of LARS."""
    weight_decay: NotNegative = 0.05
    clip_norm: Positive | None = None
    """Largest gradient norm; null for no clipping."""
    ema_decay: Rate | None = None
    """Decay per step of the averaged weights that are exported; null for the raw weights."""

    def peak_lr(self, global_batch: int) -> float:
        return self.lr_per_256 * global_batch / 256

    def lr_at(self, step: int, *, steps: int, warmup_steps: int, global_batch: int) -> float:
        """Learning rate of step ``step`` (from 0): linear from 0, then half a cosine."""
        peak = self.peak_lr(global_batch)
        if step < warmup_steps:
            return peak * step / warmup_steps
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        return self.min_lr + (peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def decay_matrices(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[ParamGroup]:
    """MAE's and TinyMIM's grouping: biases and norms are not decayed, all else is.

    The class token has three dimensions and no skip list: it is decayed, as in both papers' code.
    """
    trained = [(name, p) for name, p in named if p.requires_grad]
    flat = tuple(name for name, p in trained if p.ndim <= 1)
    deep = tuple(name for name, p in trained if p.ndim > 1)
    groups = [ParamGroup(names=deep, weight_decay=weight_decay), ParamGroup(names=flat)]
    return [group for group in groups if group.names]


def build_optimizer(objective: Objective, optim: Optim) -> torch.optim.Optimizer:
    """Fused AdamW, or LARS, over the objective's own groups; every trained parameter once."""
    assert isinstance(objective, nn.Module)
    named = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    groups = list(objective.param_groups(optim.weight_decay))
    grouped = [name for group in groups for name in group.names]
    assert sorted(grouped) == sorted(named), "param_groups() must name every parameter once"
    arguments = [
        {
            "params": [named[name] for name in group.names],
            "names": list(group.names),
            "lr_scale": group.lr_scale,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    if optim.algorithm == "lars":
        return Lars(arguments, momentum=optim.betas[0])
    return torch.optim.AdamW(arguments, betas=optim.betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class WeightAverage:
    """Exponential moving average of trained parameters, frozen once ``bad`` is set."""

    def __init__(self, named: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.averages = {name: p.detach().clone() for name, p in named.items()}
        self._live: list[Tensor] = list(named.values())

    @torch.no_grad()
    def update(self, bad: Tensor) -> None:
        """One step.  bad: scalar 0 or 1 on the device; 1 leaves the average as it is."""
        averages = list(self.averages.values())
        change = torch._foreach_sub(self._live, averages)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(change, (1 - bad) * (1 - self.decay))  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(averages, change)  # pyright: ignore[reportPrivateImportUsage]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in the parameters' place while the block runs; the same bits after."""
        kept = [p.detach().clone() for p in self._live]
        self._overwrite(self.averages.values())
        try:
            yield
        finally:
            self._overwrite(kept)

    @torch.no_grad()
    def _overwrite(self, tensors: Iterable[Tensor]) -> None:
        for parameter, tensor in zip(self._live, tensors, strict=True):
            parameter.copy_(tensor)
