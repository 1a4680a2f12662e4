"""Result files and predictions that the tests make for themselves."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.results import Result


def result(**changes: Any) -> Result:
    """A result of ImageNet's validation set; ``changes`` replace its fields."""
    values: dict[str, Any] = {
        "protocol": "in1k-val@1",
        "model": "tinymim-vit-s",
        "model_digest": "ab" * 32,
        "metric": "top-1",
        "value": 82.5,
        "standard_error": 0.17,
        "samples": 50_000,
        "transform": {"image_size": 224, "crop_pct": 0.875, "interpolation": "bicubic"},
        "settings": {},
        "data": "imagenet",
        "data_fingerprint": "cd" * 32,
        "dtype": "float32",
        "seconds": 1.5,
        "code_version": "tinyzoo 0",
    }
    return Result(**{**values, **changes})


def save_many(folder: Path, writer: int, count: int) -> None:
    """Results of one writer, one after another, and each a second time in its own place."""
    for number in range(count):
        name, digest = f"writer-{writer}", f"{writer:064x}"
        mine = result(model=name, model_digest=digest, seed=number, value=float(number % 100))
        mine.save(folder)
        replace(mine, seconds=2.5).save(folder)


def with_predictions(
    folder: Path,
    of: Result,
    *,
    labels: Sequence[int],
    taken_for: Sequence[int],
    names: Sequence[str] | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """Save a result with its predictions beside it; returns the result's file."""
    import torch

    from eval.predictions import save_predictions
    from eval.scoring import Predictions

    rest = torch.full((len(labels), 4), -1)
    predictions = Predictions(
        protocol=of.protocol,
        samples=torch.arange(len(labels)),
        labels=torch.tensor(labels)[:, None].short(),
        top5=torch.cat([torch.tensor(taken_for)[:, None], rest], 1).short(),
        confidence=torch.full((len(labels),), 0.75),
    )
    stated = replace(of, predictions=f"{of.stem}.parquet")
    file = folder / stated.predictions
    save_predictions(file, predictions, names=names, result=stated, classes=classes)
    return stated.save(folder)


if __name__ == "__main__":
    save_many(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
