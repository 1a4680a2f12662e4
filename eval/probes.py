"""Probes of frozen features."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch

from eval.probe import KNN, Pooling, accuracy, extract, knn_predict
from eval.results import Result
from pretrain.distributed import choose_device
from pretrain.index import ImageIndex, open_index
from pretrain.launch import code_version, environment
from pretrain.teachers.frozen import FrozenTokens
from pretrain.teachers.tokens import open_tokens
from zoo.errors import DataError
from zoo.folder import Model, holds_convnet, load_model
from zoo.hub import locate

PROBES = ("knn",)


def evaluate_probe(
    model: str,
    benchmark: str,
    data: Path,
    *,
    pooling: str | None,
    partial: bool,
    transform: str,
    workers: int,
    device: str,
    dtype: str,
    cache: Path | None,
    out: Path,
) -> Result:
    """Score a model's frozen features; the result is also written below ``out``."""
    folder, place = locate(model), choose_device(device)
    network = open_tokens(str(folder)) if holds_convnet(folder) else load_model(folder)
    knn = KNN(pooling=cast(Pooling, pooling or "cls"))
    result = score_knn(network, data, knn=knn, workers=workers, device=place)
    result.save(out)
    return result


def score_knn(
    network: Model | FrozenTokens, data: Path, *, knn: KNN, workers: int, device: torch.device
) -> Result:
    """kNN accuracy on ``data/val`` with ``data/train`` as the memory.  Raises DataError."""
    started = time.perf_counter()
    train, val = open_split(data)
    features = [
        extract(network, index, pooling=knn.pooling, device=device, workers=workers)
        for index in (train, val)
    ]
    train_labels, labels = (labels_of(index) for index in (train, val))
    predictions = knn_predict(
        features[0], train_labels, features[1], classes=len(train.classes), knn=knn
    )
    value, error = accuracy(predictions, labels)
    known = network.record if isinstance(network, FrozenTokens) else network
    assert known is not None, "only pixels have no record"
    return Result(
        protocol=KNN.protocol,
        model=known.name,
        model_digest=known.digest,
        metric="top-1",
        value=value,
        standard_error=error,
        samples=len(val),
        transform=asdict(network.preprocess),
        settings=asdict(knn),
        data=data.resolve().name,
        data_fingerprint=f"{train.fingerprint}+{val.fingerprint}",
        dtype="float32",
        seconds=round(time.perf_counter() - started, 2),
        code_version=code_version(),
        environment=environment(),
    )


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
