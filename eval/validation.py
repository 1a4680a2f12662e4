"""A classifier's accuracy on labelled images: exact over all of them, whatever the number of ranks.

B images · C classes
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.index import ImageIndex
from pretrain.loader import answers
from pretrain.objective import Heldout
from zoo.errors import DataError, DivergedError
from zoo.images import Preprocess, read_image

TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Crops(Dataset):
    """Images by the card's evaluation transform; an unreadable one is an answer of its own."""

    index: ImageIndex
    preprocess: Preprocess

    def __getitem__(self, numbers: np.ndarray) -> tuple[Tensor, list[DataError]]:
        """(B, 3, S, S) uint8 of the images that could be read, and what is wrong with others."""
        crops: list[Tensor] = []
        bad: list[DataError] = []
        for number in numbers:
            try:
                path = self.index.path(int(number))
                crops.append(self.preprocess.eval_crop(read_image(path)))
            except DataError as error:
                bad.append(error)
        return torch.stack(crops) if crops else torch.empty(0), bad


def images_once(
    index: ImageIndex, preprocess: Preprocess, numbers: np.ndarray, *, batch: int, workers: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(B,) numbers and (B, 3, S, S) uint8 images, each of the ``numbers`` once and in order.

    Raises DataError with the list of images that cannot be read.
    """
    requests = [numbers[i : i + batch] for i in range(0, len(numbers), batch)]
    bad: list[DataError] = []
    crops = Crops(index=index, preprocess=preprocess)
    # Processes that have one batch or none to make would cost more than they save.
    workers = min(workers, len(requests) // 2)
    for request, (images, problems) in zip(
        requests, answers(crops, requests, workers=workers), strict=True
    ):
        bad += problems
        if not bad:
            yield request, images
    if bad:
        listed = "; ".join(f"{error.where}: {error.what}" for error in bad[:10])
        raise DataError(
            f"{len(bad)} images for validation cannot be read",
            where=listed + "; …" * (len(bad) > 10),
            fix="repair or remove them: no image is skipped or replaced where accuracy is measured",
        )


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
    for numbers, images in images_once(
        index, preprocess, mine, batch=heldout.batch, workers=heldout.workers
    ):
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
