"""LARS: the optimizer of linear probes at batches of many thousands.

You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks" (arXiv 1708.03888), as MAE
and MoCo v3 use it: momentum, the update of a matrix scaled to ``TRUST`` times the norm of its
weights, biases and norms left at the plain rate.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim.lars import Lars as TimmLars
from torch import Tensor

TRUST = 0.001


class Lars(TimmLars):
    """timm's LARS, whose step is none where ``found_inf`` is 1, as with torch's fused optimizers.

    groups: of parameters that are all matrices, or all of at most one dimension.  Without weight
    decay the rule is MAE's to the last bit; with it the ratio is that of timm, which adds the two
    norms where MAE takes the norm of the sum.
    """

    found_inf: Tensor | None = None
    """Scalar 0 or 1 on the parameters' device; whoever sets it decides."""

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        for group in groups:
            deep = {p.ndim > 1 for p in group["params"]}
            assert len(deep) == 1, "matrices and vectors stand in groups of their own"
            # Without it timm adapts where there is weight decay, and nowhere else.
            group["always_adapt"] = deep.pop()
        super().__init__(groups, momentum=momentum, trust_coeff=TRUST, eps=0.0)  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One update, or none.  Does not wait for the device; keeps a copy of what it changes."""
        assert closure is None
        if self.found_inf is None:
            super().step()
            return
        parameters = [p for group in self.param_groups for p in group["params"]]
        kept = [(p.clone(), self._momentum(p).clone()) for p in parameters]
        super().step()
        for parameter, before in zip(parameters, kept, strict=True):
            for now, earlier in zip((parameter, self._momentum(parameter)), before, strict=True):
                now.copy_(torch.where(self.found_inf > 0, earlier, now))

    def _momentum(self, parameter: Tensor) -> Tensor:
        """What timm keeps; before the first step, the zeros that it stands for."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]
