"""Frozen features and the weighted nearest-neighbour classifier.

B images · N tokens · D width · M training samples · C classes
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.index import ImageIndex
from pretrain.teachers.frozen import FrozenTokens
from zoo.errors import DataError, UsageError, ZooError
from zoo.folder import Model
from zoo.images import Preprocess, normalise, read_image
from zoo.tokens import block_tokens

Pooling = Literal["cls", "mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KNN:
    """DINO's weighted kNN (Caron et al. 2021, §F): cosine similarity, votes exp(s / T), fp32."""

    protocol: ClassVar[str] = "knn@1"

    neighbours: Annotated[int, Field(ge=1)] = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07
    pooling: Pooling = "cls"
    """Class token, or mean of the patch tokens, after the final norm."""


class EvalImages(Dataset):
    """Every image of an index once, by the card's evaluation transform.

    An unreadable image is an answer of its own, never replaced by another.
    """

    def __init__(self, index: ImageIndex, preprocess: Preprocess) -> None:
        self.index, self.preprocess = index, preprocess

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Tensor | ZooError:
        try:
            return self.preprocess.eval_crop(read_image(self.index.path(i)))
        except DataError as error:
            return error


def _stack(samples: list[Tensor | ZooError]) -> tuple[Tensor | None, list[ZooError]]:
    bad = [sample for sample in samples if isinstance(sample, ZooError)]
    good = [sample for sample in samples if isinstance(sample, Tensor)]
    return (None if bad else torch.stack(good)), bad


def images_of(
    index: ImageIndex, preprocess: Preprocess, *, batch: int = 64, workers: int = 0
) -> Iterator[Tensor]:
    """Batches (B, 3, S, S) uint8 of all images, in the index's order.

    Raises DataError with the list of images that cannot be read.
    """
    bad: list[ZooError] = []
    loader = DataLoader(
        EvalImages(index, preprocess),
        batch_size=batch,
        num_workers=workers,
        collate_fn=_stack,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    for images, problems in loader:
        bad += problems
        if images is not None and not bad:
            yield images
    if bad:
        listed = "; ".join(f"{error.where}: {error.what}" for error in bad[:10])
        raise DataError(
            f"{len(bad)} of {len(index)} images cannot be read",
            where=listed + ("; …" if len(bad) > 10 else ""),
            fix="repair them: an evaluation never skips or replaces an image",
        )


@torch.inference_mode()
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
    network_tokens = _tokens_of(network, pooling, device)
    parts = []
    for images in images_of(index, network.preprocess, batch=batch, workers=workers):
        tokens = network_tokens(images.to(device) / 255)
        pooled = tokens[:, 0] if pooling == "cls" else tokens.mean(1)
        parts.append(pooled.float().cpu())
    return torch.cat(parts)


def _tokens_of(
    network: Model | FrozenTokens, pooling: Pooling, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """From images (B, 3, S, S) in [0, 1] to (B, N, D): the class token, or all spatial tokens."""
    if isinstance(network, FrozenTokens):
        if pooling == "cls":
            raise UsageError(
                "a network of spatial tokens has no class token",
                where="pooling cls",
                fix="repeat with --pooling mean",
            )
        return network.to(device).float()
    vit = network.vit.to(device).eval().float()

    def read(images01: Tensor) -> Tensor:
        inputs = normalise(images01, network.preprocess.mean, network.preprocess.std)
        tokens = block_tokens(vit, inputs, network.last_trained_block)
        return tokens[:, :1] if pooling == "cls" else tokens[:, 1:]

    return read


def knn_predict(
    train: Tensor, labels: Tensor, queries: Tensor, *, classes: int, knn: KNN, chunk: int = 1024
) -> Tensor:
    """The predicted class of each query, int64.

    train: (M, D) features with labels (M,).  queries: (Q, D).  Raises UsageError where there are
    fewer training samples than neighbours.
    """
    if knn.neighbours > len(train):
        raise UsageError(
            f"{knn.neighbours} neighbours of {len(train)} training images",
            where="knn",
            fix="give more training images",
        )
    bank = F.normalize(train.float(), dim=1)
    predictions = []
    for part in queries.float().split(chunk):
        similarity, nearest = (F.normalize(part, dim=1) @ bank.T).topk(knn.neighbours, dim=1)
        # fp32: exp(1 / 0.07) overflows half precision.
        weights = (similarity / knn.temperature).exp()
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, labels.to(nearest.device)[nearest], weights)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


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
