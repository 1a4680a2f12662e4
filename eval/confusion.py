"""What a classifier takes for what: the matrix, its worst places, and the surest mistakes.

N images · C classes
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from eval.crops import images_of
from eval.report import STYLE, Table
from pretrain.index import ImageIndex
from zoo.folder import Classifier
from zoo.images import read_image

MOST_DRAWN = 20
"""Classes of a matrix that can still be read."""
_LISTED = 12
_LONGEST = 18


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Guesses:
    """What each image was taken for."""

    names: Sequence[str]
    """Of the C classes."""
    right: np.ndarray
    guess: np.ndarray
    """(N,) class numbers, both."""
    confidence: np.ndarray
    """(N,) of the guess, in (0, 1]."""

    @property
    def matrix(self) -> np.ndarray:
        """(C, C) int64: how many images of a class (row) were taken for which (column)."""
        classes = len(self.names)
        flat = np.bincount(self.right * classes + self.guess, minlength=classes**2)
        return flat.reshape(classes, classes)

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * int((self.right == self.guess).sum()) / len(self.right)

    def pairs(self) -> list[tuple[int, int, int]]:
        """(true class, taken for, images) of every confusion, the most frequent first."""
        matrix_CC = self.matrix
        np.fill_diagonal(matrix_CC, 0)
        found = [(int(a), int(b), int(matrix_CC[a, b])) for a, b in np.argwhere(matrix_CC)]
        return sorted(found, key=lambda pair: (-pair[2], pair))

    def mistakes(self) -> list[int]:
        """The images that were taken for another class, the surest first."""
        wrong = np.flatnonzero(self.right != self.guess)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")].tolist()


@torch.inference_mode()
def guess(
    model: Classifier, index: ImageIndex, *, device: torch.device, workers: int = 0
) -> Guesses:
    """What a model takes each image of an index for.  Raises DataError."""
    net = model.net.to(device).eval()
    guesses, sure = [], []
    for images in images_of(index, model.preprocess, workers=workers):
        logits = net(model.preprocess.normalise(images.to(device))).float()
        best = logits.softmax(1).max(1)
        guesses.append(logits.argmax(1).cpu())
        sure.append(best.values.cpu())
    assert index.labels is not None
    return Guesses(
        names=model.labels,
        right=index.labels.astype(np.int64),
        guess=torch.cat(guesses).numpy(),
        confidence=torch.cat(sure).numpy(),
    )


def matrix_figure(guesses: Guesses) -> Figure:
    """The matrix, a row's colours being shares of its class; for MOST_DRAWN classes at most."""
    matrix_CC = guesses.matrix
    share_CC = matrix_CC / np.maximum(matrix_CC.sum(1, keepdims=True), 1)
    names = [shortened(name) for name in guesses.names]
    side = 0.36 * len(names)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + side, 1.2 + side), layout="constrained")
        axes = figure.add_subplot()
        axes.pcolormesh(share_CC, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
        for row, column in np.argwhere(matrix_CC):
            dark = share_CC[row, column] > 0.5
            axes.text(
                column + 0.5,
                row + 0.5,
                str(matrix_CC[row, column]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )
        places = np.arange(len(names)) + 0.5
        axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, names)
        axes.set(xlabel="taken for", ylabel="true class", aspect="equal")
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def classes_table(guesses: Guesses) -> Table:
    """Accuracy by class, the worst first; of many classes only those."""
    matrix_CC = guesses.matrix
    images_C = matrix_CC.sum(1)
    share_C = matrix_CC.diagonal() / np.maximum(images_C, 1)
    order = np.argsort(share_C, kind="stable")[: MOST_DRAWN if len(share_C) > MOST_DRAWN else None]
    rows = []
    for c in order.tolist():
        others = matrix_CC[c].copy()
        others[c] = 0
        worst = int(others.argmax())
        taken = f"{shortened(guesses.names[worst])} ({others[worst]})" if others.any() else "–"
        rows.append([guesses.names[c], f"{images_C[c]:,}", f"{100 * share_C[c]:.1f}", taken])
    return Table(
        columns=["class", "images", "right, %", "most often taken for"],
        rows=rows,
        sides=["left", "right", "right", "left"],
        caption=f"The {len(rows)} worst of {len(share_C):,} classes."
        if len(rows) < len(share_C)
        else "",
    )


def pairs_table(guesses: Guesses) -> Table:
    """The most frequent confusions; there is at least one."""
    images_C = guesses.matrix.sum(1)
    rows = [
        [guesses.names[a], guesses.names[b], f"{count:,}", f"{100 * count / images_C[a]:.1f}"]
        for a, b, count in guesses.pairs()[:_LISTED]
    ]
    return Table(
        columns=["true class", "taken for", "images", "of its class, %"],
        rows=rows,
        sides=["left", "left", "right", "right"],
    )


def mistakes_figure(guesses: Guesses, index: ImageIndex, model: Classifier) -> Figure:
    """The images that were surest taken for another class; there is at least one."""
    shown = guesses.mistakes()[:8]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.5 * columns, 2.0 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for axes, i in zip(panels.flat, shown, strict=False):
            crop = model.preprocess.eval_crop(read_image(index.path(i)))
            axes.imshow(crop.permute(1, 2, 0).numpy())
            right = guesses.names[int(guesses.right[i])]
            taken = guesses.names[int(guesses.guess[i])]
            title = f"{shortened(right)}\ntaken for {shortened(taken)}"
            axes.set_title(f"{title}\n{100 * guesses.confidence[i]:.0f} % sure", fontsize=7)
    return figure


def shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
