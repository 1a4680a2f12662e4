"""What every teacher is: a network in eval mode that never takes a gradient."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.card import TeacherRecord
from zoo.images import Preprocess, normalise

Precision = Literal["fp32", "bf16"]
"""bf16 holds the weights themselves in bf16: half the memory, no autocast."""


def dtype_of(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


class Frozen(nn.Module):
    """Images in [0, 1] in, whatever ``read`` takes from the network out.

    In eval mode whatever ``train()`` is called: running statistics do not move.
    """

    def __init__(
        self,
        net: nn.Module,
        read: Callable[..., Any],
        preprocess: Preprocess,
        *,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.dtype = dtype_of(precision)
        self.net = net.to(self.dtype).eval().requires_grad_(False)
        self.preprocess = preprocess
        self._read = read

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    @torch.no_grad()  # not inference_mode: the student's loss saves these tensors for backward
    def forward(self, images01: Tensor, **how: Any) -> Any:
        """What is read for images (B, 3, S, S) in [0, 1].  how: goes to ``read``."""
        images = normalise(images01, self.preprocess.mean, self.preprocess.std).to(self.dtype)
        # Weights held in bf16 need no autocast, which would only add casts.
        as_is = contextlib.nullcontext()
        pure = self.dtype == torch.bfloat16
        with torch.autocast(images.device.type, enabled=False) if pure else as_is:
            return self._read(self.net, images, **how)


class FrozenTokens(Frozen):
    """A teacher read as spatial tokens: (B, K, D) in row order, one for each of its cells."""

    def __init__(
        self,
        net: nn.Module,
        read: Callable[[Any, Tensor], Tensor],
        preprocess: Preprocess,
        *,
        record: TeacherRecord | None,
        cell: int,
        width: int,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(net, read, preprocess, precision=precision)
        self.record = record
        """None where there is no network to speak of."""
        self.cell = cell
        """Side of a token's cell, in pixels."""
        self.width = width
        """D, channels of a token."""

    @property
    def grid(self) -> int:
        """Cells along one side."""
        return self.preprocess.image_size // self.cell
