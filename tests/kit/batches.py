"""Batches side by side."""

import torch

from pretrain.objective import Batch


def same(ones: list[Batch], others: list[Batch]) -> bool:
    """Whether all are equal, bit for bit, and there are any."""
    return len(ones) == len(others) > 0 and all(
        torch.equal(one.images, other.images)
        and torch.equal(one.indices, other.indices)
        and torch.equal(one.draws, other.draws)
        and one.bad == other.bad
        and (one.labels is None) == (other.labels is None)
        and (one.labels is None or torch.equal(one.labels, other.labels))  # type: ignore[arg-type]
        for one, other in zip(ones, others, strict=True)
    )
