"""A classifier's accuracy on labelled images: exact over all of them, whatever the number of ranks.

B images · C classes
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.crops import crops_of
from pretrain.distributed import lost_rank
from pretrain.objective import Heldout
from zoo.errors import DivergedError
from zoo.images import Preprocess

TOP = 5


def score(
    logits_of: Callable[[Tensor], Tensor], heldout: Heldout, preprocess: Preprocess
) -> dict[str, float]:
    """``top1``, ``top5`` (with more than five classes), both in percent, and ``loss``.

    logits_of: (B, 3, S, S) normalised to (B, C).  Sums are made over every image once, rank r's
    being r::world; all ranks return the same.  Raises DataError, DivergedError.
    """
    world, index = heldout.world, heldout.images
    assert index.labels is not None
    labels = torch.from_numpy(index.labels).long()
    mine = np.arange(world.rank, len(index), world.size)
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    batches = [mine[i : i + heldout.batch] for i in range(0, len(mine), heldout.batch)]
    crops = crops_of(index, batches, [preprocess], workers=heldout.workers)
    for numbers, (images,) in zip(batches, crops, strict=True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            logits = logits_of(preprocess.normalise(images.to(world.device))).float()
        right = labels[numbers].to(world.device)
        five = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        sums += torch.stack(
            [
                (logits.argmax(1) == right).sum(),
                (five == right[:, None]).any(1).sum(),
                F.cross_entropy(logits, right, reduction="sum").double(),
            ]
        )
    with lost_rank(world):
        top1, top5, loss = world.sum_(sums).tolist()
    if not math.isfinite(loss):
        raise DivergedError(
            "the loss on validation images is not finite",
            where=str(index.root),
            fix="lower the learning rate (training.optim.lr_per_256)",
        )
    shown = {"top1": 100 * top1 / len(index), "top5": 100 * top5 / len(index)}
    if len(index.classes) <= TOP:
        del shown["top5"]
    return {**shown, "loss": loss / len(index)}
