"""Frozen features in memory and quick probes of them: for the demo, for small sets.

What ``zoo eval`` scores goes through ``eval/probes.py``, which keeps features on disk.

M training samples · Q queries · D width · C classes
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from eval.backbone import Pooling, of_tokens, of_vit, require_pooling
from eval.crops import images_of
from eval.nearest import BANK_BLOCK, nearest, vote
from pretrain.index import ImageIndex, open_index
from pretrain.teachers.frozen import FrozenTokens
from zoo.errors import DataError, UsageError
from zoo.folder import Model


@dataclass(frozen=True, kw_only=True, slots=True)
class KNN:
    """DINO's weighted kNN (Caron et al. 2021, §F): cosine similarity, votes exp(s / T), fp32."""

    protocol: ClassVar[str] = "knn@1"

    neighbours: Annotated[int, Field(ge=1)] = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07
    pooling: Pooling = "cls"
    """Class token, or mean of the patch tokens, after the final norm."""


def extract(
    network: Model | FrozenTokens,
    index: ImageIndex,
    *,
    pooling: Pooling,
    device: torch.device,
    batch: int = 64,
    workers: int = 2,
) -> Tensor:
    """Features of every image, (M, D) float32 on the CPU, in the index's order.

    A ViT is read after its last trained block and the final norm.  Any network that gives spatial
    tokens is read as their mean.  Raises DataError with the list of images that cannot be read,
    UsageError for a class token where there is none.
    """
    backbone = (
        of_tokens(network, device=device)
        if isinstance(network, FrozenTokens)
        else of_vit(network, device=device)
    )
    require_pooling(backbone, pooling)
    batches = images_of(index, backbone.preprocess, batch=batch, workers=workers)
    return torch.cat([backbone.pool(images.to(device) / 255, pooling).cpu() for images in batches])


def knn_predict(
    train: Tensor, labels: Tensor, queries: Tensor, *, classes: int, knn: KNN, chunk: int = 1024
) -> Tensor:
    """The predicted class of each query, int64.

    train: (M, D) features with labels (M,).  queries: (Q, D).  Raises UsageError where there are
    fewer training samples than neighbours.
    """
    require_neighbours(knn.neighbours, len(train))
    similarity, places = nearest(train.split(BANK_BLOCK), queries, knn.neighbours, block=chunk)
    found, _ = vote(
        similarity,
        labels[places.cpu()],
        neighbours=knn.neighbours,
        temperature=knn.temperature,
        classes=classes,
    )
    return found[:, 0]


def require_neighbours(neighbours: int, samples: int) -> None:
    """Raise UsageError for fewer training images than neighbours."""
    if neighbours > samples:
        raise UsageError(
            f"{neighbours} neighbours of {samples} training images",
            where="knn",
            fix="give more training images",
        )


def ridge_predict(
    train: Tensor, labels: Tensor, queries: Tensor, *, classes: int, penalty: float = 1e-2
) -> Tensor:
    """The predicted class of each query, int64, by a linear classifier in closed form (ridge@1).

    Least squares on the one-hot labels of standardised, unit-norm features, in fp64: a quick
    frozen probe without a learning rate to choose.  Shapes as in ``knn_predict``.
    """
    mean, deviation = train.double().mean(0), train.double().std(0).clamp_min(1e-12)
    bank, asked = (F.normalize((x.double() - mean) / deviation, dim=1) for x in (train, queries))
    targets = F.one_hot(labels, classes).double() - 1 / classes
    gram = bank.T @ bank + penalty * torch.eye(bank.shape[1], dtype=bank.dtype)
    return (asked @ torch.linalg.solve(gram, bank.T @ targets)).argmax(1)


def accuracy(predictions: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 in percent and its standard error, exact over all samples."""
    share = (predictions.cpu() == labels.cpu()).double().mean().item()
    return 100 * share, 100 * float(np.sqrt(share * (1 - share) / len(labels)))


def open_split(data: Path) -> tuple[ImageIndex, ImageIndex]:
    """``train/`` and ``val/`` with the same class folders.  Raises DataError."""
    for name in ("train", "val"):
        if not (data / name).is_dir():
            raise DataError(
                f"there is no {name}/ folder",
                where=str(data),
                fix="give a folder that holds train/<class>/ and val/<class>/",
            )
    train, val = open_index(data / "train"), open_index(data / "val")
    if not train.classes or train.classes != val.classes:
        only = sorted(set(train.classes) ^ set(val.classes))
        raise DataError(
            "train/ and val/ do not hold the same class folders"
            if train.classes
            else "the images lie in no class folders",
            where=f"{data}: " + (f"only in one of them: {', '.join(only[:10])}" if only else ""),
            fix="give a folder that holds train/<class>/ and val/<class>/",
        )
    return train, val


def labels_of(index: ImageIndex) -> torch.Tensor:
    """(N,) int64 labels of an index that ``open_split`` gave."""
    assert index.labels is not None
    return torch.from_numpy(index.labels).long()
