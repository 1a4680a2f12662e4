"""How a teacher's features are scaled before a student is asked to predict them."""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.vit import LAYER_NORM_EPS

TargetScale = Literal["layernorm", "none", "whiten"]
"""``layernorm``: every token to mean 0 and variance 1 over its channels, without parameters.
``none``: as they are.  ``whiten``: every channel to mean 0 and variance 1 over all tokens of the
run so far, on all ranks (a diagonal whitening)."""


class TargetNorm(nn.Module):
    """Targets in fp32, scaled.  (…, T) to the same."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, scale: TargetScale, width: int) -> None:
        super().__init__()
        self.scale, self.width = scale, width
        if scale == "whiten":  # part of the checkpoint: a resumed run goes on with the same targets
            # fp64: after billions of tokens, a batch would vanish in fp32's last digit.
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))
            self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
            self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        features = features.float()
        if self.scale == "layernorm":
            return F.layer_norm(features, (self.width,), eps=LAYER_NORM_EPS)
        if self.scale == "whiten":
            if self.training:
                self._take_in(features.flatten(0, -2))
            deviation = (self.squares / self.count.clamp_min(1)).sqrt()
            # A channel that never fires has no deviation: it stays at zero.
            return (features - self.mean.float()) / deviation.float().clamp_min(1e-6)
        return features

    def _take_in(self, features: Tensor) -> None:
        """Merge the tokens (N, T) into the running moments (Chan, Golub and LeVeque 1979)."""
        moments = torch.stack([torch.ones_like(features).sum(0), features.sum(0)])
        if dist.is_initialized():
            dist.all_reduce(moments)
        count, mean = moments[0, 0], moments[1] / moments[0, 0]
        squares = (features - mean).square().sum(0)
        if dist.is_initialized():
            dist.all_reduce(squares)
        count, mean, squares = count.double(), mean.double(), squares.double()
        total = self.count + count
        step = mean - self.mean
        self.squares += squares + step.square() * self.count * count / total
        self.mean += step * count / total
        self.count.copy_(total)
