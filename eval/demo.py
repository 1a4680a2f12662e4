"""``zoo demo``: the whole story in a few minutes on two cores, without network or data set.

Draw images, train a small MAE teacher and distil a smaller TinyMIM student from it; train a small
convnet and let the same student, anew, predict its features (Img2Vec).  Compare the frozen features
of all with those of the student untrained and MAE-trained as long.
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

from eval.crops import images_of
from eval.demo_page import CONVNET, IMG2VEC, MAE_TEACHER, TINYMIM, Score, Story, write_page
from eval.diversity import Diversity, measure
from eval.probe import (
    KNN,
    accuracy,
    extract,
    knn_predict,
    labels_of,
    open_split,
    ridge_predict,
)
from eval.shapes import draw_dataset
from pretrain.index import ImageIndex, open_index
from pretrain.launch import pretrain
from pretrain.recipe import Recipe, find_recipe
from pretrain.teachers.frozen import FrozenTokens
from pretrain.teachers.tokens import open_tokens
from zoo.card import Card
from zoo.errors import DataError
from zoo.folder import save_model
from zoo.images import Preprocess
from zoo.vit import build_vit

PROBE = KNN(pooling="mean")
TRAIN_PER_CLASS, VAL_PER_CLASS = 250, 100
PIXELS = "raw pixels"
TEACHERS = (MAE_TEACHER, CONVNET)


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoReport:
    """What the demo found, and where its page lies."""

    scores: Mapping[str, Score]
    """By network, in the order of the table."""
    diversity: Mapping[str, Diversity]
    """Of the teachers' tokens, by network."""
    page: Path
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        scores = {name: asdict(score) for name, score in self.scores.items()}
        diversity = {name: found.details() for name, found in self.diversity.items()}
        rest = {"page": str(self.page), "seconds": self.seconds}
        return {"scores": scores, "token_similarity": diversity, **rest}

    def text(self) -> str:
        width = max(map(len, self.scores))
        rows = [
            f"  {name:<{width}}  {s.linear:5.1f} ± {s.linear_error:.1f} %   "
            f"{s.knn:5.1f} ± {s.knn_error:.1f} %"
            for name, s in self.scores.items()
        ]
        title = f"{'Frozen features':<{width + 2}}  linear           kNN"
        diverse = [f"{name} {1 - d.raw.value:.2f}" for name, d in self.diversity.items()]
        tokens = f"Token diversity: {', '.join(diverse)}"
        return "\n".join([title, *rows, tokens, f"{self.seconds:.0f} s · page: {self.page}"])


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
    runs, folders = _train_all(images / "train", out)

    _say("frozen features and token diversity")
    networks = {name: open_tokens(str(folder)) for name, folder in folders.items()}
    train, val = open_split(images)
    scores = {name: _score(network, train, val) for name, network in networks.items()}
    scores[PIXELS] = _score_pixels(train, val)
    unit = max(network.cell for network in networks.values())
    diversity = {name: measure(networks[name], val, unit=unit, name=name) for name in TEACHERS}
    seconds = round(time.perf_counter() - started, 1)
    story = Story(
        scores=scores,
        diversity=diversity,
        folders=folders,
        networks=networks,
        runs=runs,
        images=val,
        drawn=data is None,
    )
    page = write_page(out / "index.html", story)
    return DemoReport(scores=scores, diversity=diversity, page=page, seconds=seconds)


def _train_all(images: Path, out: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Every run's folder, and every network's model folder, by network."""
    source = f"data.source=folder:{images}"
    recipes = {
        MAE_TEACHER: ("demo-teacher", "teacher"),
        TINYMIM: ("demo-tinymim", "tinymim"),
        "MAE student": ("demo-mae", "mae"),
        CONVNET: ("demo-convnet", "convnet"),
        IMG2VEC: ("demo-img2vec", "img2vec"),
    }
    teacher_of = {TINYMIM: MAE_TEACHER, IMG2VEC: CONVNET}
    runs, folders = {}, {}
    for name, (recipe, place) in recipes.items():
        overrides = [source]
        if name in teacher_of:
            overrides.append(f"method.teacher.source={folders[teacher_of[name]]}")
        runs[name] = out / place
        folders[name] = _train(find_recipe(recipe, overrides), runs[name])
    folders["untrained student"] = _untrained(find_recipe("demo-mae"), out / "untrained")
    return runs, folders


def _say(stage: str) -> None:
    print(f"demo: {stage} …", file=sys.stderr, flush=True)


def _train(recipe: Recipe, out: Path) -> Path:
    _say(f"{recipe.name}, {recipe.training.steps} steps")
    return pretrain(recipe, out)


def _untrained(recipe: Recipe, folder: Path) -> Path:
    """The student as each method starts it: the same seed, no step."""
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


def _score(network: FrozenTokens, train: ImageIndex, val: ImageIndex) -> Score:
    cpu = torch.device("cpu")
    memory, queries = (
        extract(network, index, pooling=PROBE.pooling, device=cpu, workers=0)
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
