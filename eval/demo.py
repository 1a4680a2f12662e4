"""``zoo demo``: the whole story in a few minutes on two cores, without network or data set.

Draw images, train a small MAE teacher, distil a smaller TinyMIM student from it, and compare the
frozen features of both with those of the same student untrained and MAE-trained as long.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.demo_page import Score, write_page
from eval.probe import KNN, accuracy, extract, images_of, knn_predict, ridge_predict
from eval.run import labels_of, open_split
from eval.shapes import draw_dataset
from pretrain.index import ImageIndex, open_index
from pretrain.launch import pretrain
from pretrain.recipe import Recipe, find_recipe
from zoo.card import Card
from zoo.errors import DataError
from zoo.folder import Model, load_model, save_model
from zoo.images import Preprocess
from zoo.vit import build_vit

PROBE = KNN(pooling="mean")
TRAIN_PER_CLASS, VAL_PER_CLASS = 250, 100
PIXELS = "raw pixels"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoReport:
    """What the demo found, and where its page lies."""

    scores: Mapping[str, Score]
    """By network, in the order of the table."""
    page: Path
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        scores = {name: asdict(score) for name, score in self.scores.items()}
        return {"scores": scores, "page": str(self.page), "seconds": self.seconds}

    def text(self) -> str:
        width = max(map(len, self.scores))
        rows = [
            f"  {name:<{width}}  {s.linear:5.1f} ± {s.linear_error:.1f} %   "
            f"{s.knn:5.1f} ± {s.knn_error:.1f} %"
            for name, s in self.scores.items()
        ]
        title = f"{'Frozen features':<{width + 2}}  linear           kNN"
        return "\n".join([title, *rows, f"{self.seconds:.0f} s · page: {self.page}"])


def run_demo(out: Path, *, data: Path | None = None) -> DemoReport:
    """Run it all in ``out``, or continue there.  Raises DataError, UsageError, DiskError.

    data: the user's own class folders, with or without ``train/`` and ``val/``.
    """
    started = time.perf_counter()
    images = out / "images"
    _say("images")
    if data is None:
        draw_dataset(
            images, image_size=48, train_per_class=TRAIN_PER_CLASS, val_per_class=VAL_PER_CLASS
        )
    else:
        images = _link_images(data, out / "your-images")
    source = f"data.source=folder:{images / 'train'}"
    folders: dict[str, Path] = {}
    teacher = _train(find_recipe("demo-teacher", [source]), out / "teacher")
    folders["MAE teacher"] = teacher
    distilled = find_recipe("demo-tinymim", [source, f"method.teacher.source={teacher}"])
    folders["TinyMIM student"] = _train(distilled, out / "tinymim")
    folders["MAE student"] = _train(find_recipe("demo-mae", [source]), out / "mae")
    folders["untrained student"] = _untrained(distilled, out / "untrained")

    _say("frozen features")
    models = {name: load_model(folder) for name, folder in folders.items()}
    train, val = open_split(images)
    scores = {name: _score(model, train, val) for name, model in models.items()}
    scores[PIXELS] = _score_pixels(train, val)
    seconds = round(time.perf_counter() - started, 1)
    runs = {"MAE teacher": out / "teacher", "TinyMIM student": out / "tinymim"}
    runs["MAE student"] = out / "mae"
    page = write_page(
        out / "index.html",
        scores=scores,
        models=models,
        runs=runs,
        images=val,
        drawn=data is None,
    )
    return DemoReport(scores=scores, page=page, seconds=seconds)


def _say(stage: str) -> None:
    print(f"demo: {stage} …", file=sys.stderr, flush=True)


def _train(recipe: Recipe, out: Path) -> Path:
    _say(f"{recipe.name}, {recipe.training.steps} steps")
    return pretrain(recipe, out)


def _untrained(recipe: Recipe, folder: Path) -> Path:
    """The student as TinyMIM starts it: the same seed, no step."""
    vit = build_vit(recipe.student, seed=recipe.training.seed)
    card = Card(
        name="untrained-student",
        method="none",
        heads=recipe.student.heads,
        last_trained_block=recipe.student.depth,
        licenses={"code": "Apache-2.0"},
    )
    save_model(folder, recipe.student, vit.state_dict(), card)
    return folder


def _link_images(data: Path, folder: Path) -> Path:
    """A small train/val view of the user's images, made of links.  Raises DataError."""
    if (data / "train").is_dir() and (data / "val").is_dir():
        train, val = open_split(data)
        chosen = {
            "train": _per_class(train, TRAIN_PER_CLASS),
            "val": _per_class(val, VAL_PER_CLASS),
        }
        names = train.classes
    else:
        index = open_index(data)
        names = index.classes
        everything = _per_class(index, TRAIN_PER_CLASS + VAL_PER_CLASS)
        # Every fifth image is for validation: both parts keep the classes' proportions.
        chosen = {
            "train": _split(everything, fifth=False),
            "val": _split(everything, fifth=True),
        }
    smallest = min((len(paths) for part in chosen.values() for paths in part), default=0)
    if len(names) < 2 or smallest == 0:
        raise DataError(
            f"{len(names)} class folders, the smallest part with {smallest} images",
            where=str(data),
            fix="give at least two class folders with five images or more in each",
        )
    for split, classes in chosen.items():
        for name, paths in zip(names, classes, strict=True):
            _link_class(folder / split / name.replace("/", "-"), paths)
    return folder


def _per_class(index: ImageIndex, most: int) -> list[list[Path]]:
    labels = np.zeros(0) if index.labels is None else index.labels
    return [
        [index.path(int(i)) for i in np.flatnonzero(labels == label)[:most]]
        for label in range(len(index.classes))
    ]


def _split(classes: list[list[Path]], *, fifth: bool) -> list[list[Path]]:
    return [[path for i, path in enumerate(paths) if (i % 5 == 4) is fifth] for paths in classes]


def _link_class(folder: Path, paths: list[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        link = folder / path.name
        if not link.is_symlink():
            link.symlink_to(path.resolve())


def _score(model: Model, train: ImageIndex, val: ImageIndex) -> Score:
    cpu = torch.device("cpu")
    memory, queries = (
        extract(model, index, pooling=PROBE.pooling, device=cpu, workers=0)
        for index in (train, val)
    )
    return _probe(memory, queries, train, val)


def _score_pixels(train: ImageIndex, val: ImageIndex) -> Score:
    """What the pixels alone give: 16 px images, centred."""
    memory, queries = (
        torch.cat([batch.flatten(1) / 255 for batch in images_of(index, Preprocess(image_size=16))])
        for index in (train, val)
    )
    mean = memory.mean(0)
    return _probe(memory - mean, queries - mean, train, val)


def _probe(memory: Tensor, queries: Tensor, train: ImageIndex, val: ImageIndex) -> Score:
    labels, truth = labels_of(train), labels_of(val)
    classes = len(train.classes)
    linear = accuracy(ridge_predict(memory, labels, queries, classes=classes), truth)
    near = accuracy(knn_predict(memory, labels, queries, classes=classes, knn=PROBE), truth)
    return Score(linear=linear[0], linear_error=linear[1], knn=near[0], knn_error=near[1])
