"""A segmentation's page: its scores, each class's IoU, and pictures of what was seen.

C classes
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eval.report import Page, Table, curves
from eval.segmentation.class_bars import class_bars
from eval.segmentation.overlays import Example, examples_figure
from zoo.files import atomic_write
from zoo.leaks import portable

NONE = "–"
MOST_POINTS = 400
"""Of a curve; beyond, neighbours are averaged."""


class Scored(Protocol):
    """The scores of a split, in percent."""

    @property
    def miou(self) -> float: ...
    @property
    def macc(self) -> float: ...
    @property
    def aacc(self) -> float: ...
    @property
    def standard_error(self) -> float:
        """Of the mIoU, over the images."""
        ...

    @property
    def iou(self) -> np.ndarray:
        """(C,); NaN for a class neither labelled nor guessed."""
        ...

    @property
    def acc(self) -> np.ndarray:
        """(C,); NaN for a class that is not labelled."""
        ...

    @property
    def valid(self) -> int:
        """Classes that have an IoU."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Told:
    """All that a page tells."""

    title: str
    subtitle: str
    scores: Scored
    names: Sequence[str]
    """Of the C classes."""
    palette: np.ndarray
    """(C, 3) uint8."""
    pixels: np.ndarray
    """(C,) labelled pixels of the scored split."""
    images: int
    fixed: Sequence[Example]
    """The same for every model."""
    worst: Sequence[Example]
    """Of the lowest mIoU, lowest first."""
    log: Sequence[Mapping[str, Any]]
    """Rows of training (iteration, loss, lr) and of validation (iteration, mIoU, aAcc); none where
    nothing was trained."""
    record: Mapping[str, Any]
    """The recipe as resolved, flat."""
    notes: Sequence[str]
    """Sentences that stand under the score."""


def write_page(told: Told, path: Path) -> None:
    """Write the page.  Raises DiskError, and ValueError for class numbers without a name."""
    page = Page(told.title, told.subtitle)
    _tell_scores(page, told)
    _tell_bars(page, told)
    _tell_pictures(page, told)
    _tell_training(page, told.log)
    _tell_classes(page, told)
    page.heading("The recipe")
    record = [[key, str(value)] for key, value in portable(told.record).items()]
    page.table(Table(columns=["field", "value"], rows=record, sides=["left", "left"]))
    # A file's name need not be UTF-8; what is not comes as surrogates, which nothing can write.
    atomic_write(path, page.html().encode("utf-8", "replace"))


def _tell_scores(page: Page, told: Told) -> None:
    scores = told.scores
    # One image does not tell how much images differ.
    sure = told.images > 1 and math.isfinite(scores.standard_error)
    error = f" ± {scores.standard_error:.2f}" if sure else ""
    row = [
        _percent(scores.miou) + error,
        _percent(scores.macc),
        _percent(scores.aacc),
        f"{scores.valid} of {len(told.names)}",
        f"{told.images:,}",
    ]
    columns = ["mIoU, %", "mAcc, %", "aAcc, %", "valid classes", "images"]
    page.table(Table(columns=columns, rows=[row]))
    page.text(
        "mIoU is the mean over classes of intersection over union; mAcc the mean over classes of "
        "the share of a class's pixels that was found; aAcc that share of all pixels. Pixels are "
        "counted over all images before anything is divided."
        + (" ± is one standard error over the images." if error else ""),
        "Pixels without a label are left out of annotation and prediction alike. "
        + _about_valid(scores.valid, len(told.names)),
        *told.notes,
    )


def _about_valid(valid: int, classes: int) -> str:
    if valid == classes:
        return f"The mean is over all {classes} classes." if classes > 1 else "There is one class."
    return (
        f"{valid} of {classes} classes occur in one or the other, and the mean is over these: it "
        "compares only with a mean over the same classes."
    )


def _tell_bars(page: Page, told: Told) -> None:
    names, iou_C = told.names, told.scores.iou
    valid_C = ~np.isnan(iou_C)
    page.heading("IoU by class")
    last = 0
    for figure, shown in class_bars(names, told.palette, iou_C, mean=told.scores.miou):
        first, last = last + 1, last + len(shown)
        which = f"Classes {first} to {last} of {valid_C.sum()}" if last > first else "One class"
        page.figure(
            figure,
            f"{which}, by IoU in percent, best first; read down each column. Dashed: the mean.",
            f"Bars from {names[shown[0]]}, {iou_C[shown[0]]:.1f} %, "
            f"to {names[shown[-1]]}, {iou_C[shown[-1]]:.1f} %.",
        )
    if absent := [name for name, valid in zip(names, valid_C, strict=True) if not valid]:
        listed = ", ".join(absent)
        page.text(f"Neither labelled nor guessed, and in no mean ({len(absent)}): {listed}.")


def _tell_pictures(page: Page, told: Told) -> None:
    if told.fixed:
        page.heading("Examples")
        _tell_examples(
            page,
            told,
            told.fixed,
            "Chosen by their place in the split, whatever the model. The classes' colours lie over "
            "the photograph in grey, with light lines between them; pale and without colour is "
            "what has no label. In the last column, what was guessed wrong is orange.",
        )
    if told.worst:
        page.heading("The worst images")
        _tell_examples(
            page,
            told,
            told.worst,
            "Of the lowest mIoU of their own: the mean over the classes in the image's annotation "
            "or prediction. Often the place to find wrong labels.",
        )


def _tell_examples(page: Page, told: Told, examples: Sequence[Example], caption: str) -> None:
    scores = ", ".join(f"{e.name} ({_percent(e.miou, 1)})" for e in examples)
    page.figure(
        examples_figure(examples, told.names, told.palette),
        caption,
        f"Photograph, annotation, prediction and their difference; mIoU in percent: {scores}.",
    )


def _tell_training(page: Page, log: Sequence[Mapping[str, Any]]) -> None:
    curves_of = (
        ("loss", "loss", "Loss of the training batches"),
        ("mIoU", "mIoU, %", "mIoU of the validation images"),
        ("lr", "learning rate", "Learning rate of the heads; blocks below them learn more slowly"),
    )
    heading = "Training"
    for key, label, caption in curves_of:
        rows = [row for row in log if row.get(key) is not None]
        if not rows:
            continue
        if heading:
            page.heading(heading)
            heading = ""
        at, values = ([float(row[k]) for row in rows] for k in ("iteration", key))
        shown = -(-len(rows) // MOST_POINTS)
        if shown > 1:
            at, values = _averaged(at, shown), _averaged(values, shown)
            caption += f"; each point the mean of {shown} that were logged"
        page.figure(
            curves({label: (at, values)}, ylabel=label, xlabel="iteration"),
            f"{caption}.",
            f"From {values[0]:.4g} at iteration {at[0]:.0f} to {values[-1]:.4g} at {at[-1]:.0f}.",
        )


def _averaged(values: Sequence[float], together: int) -> list[float]:
    parts = range(0, len(values), together)
    return [float(np.mean(values[start : start + together])) for start in parts]


def _tell_classes(page: Page, told: Told) -> None:
    """In the order of the set, to look a class up."""
    total = max(1, int(told.pixels.sum()))
    rows = [
        [
            name,
            _percent(told.scores.iou[c], 1),
            _percent(told.scores.acc[c], 1),
            _share(int(told.pixels[c]) / total),
        ]
        for c, name in enumerate(told.names)
        if not np.isnan(told.scores.iou[c])
    ]
    if rows:
        page.heading("The classes in order").table(
            Table(columns=["class", "IoU, %", "accuracy, %", "of labelled pixels, %"], rows=rows)
        )


def _share(part: float) -> str:
    """In percent; what is there is not written as nothing."""
    return f"{100 * part:.2f}" if part >= 5e-5 else "< 0.01" if part else "0"


def _percent(value: float, digits: int = 2) -> str:
    return NONE if math.isnan(value) else f"{value:.{digits}f}"
