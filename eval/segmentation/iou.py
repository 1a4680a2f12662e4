"""Intersection over union: mmseg's IoUMetric, in integers.

Counts of all images are added up before anything is divided.  A class that is neither labelled nor
guessed has no IoU and is left out of the mean, one that is guessed and never labelled counts 0.

C classes · M images · H, W an image's own size
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from eval.segmentation.recipe import IGNORED
from zoo.errors import DataError

RESAMPLES, SEED = 1000, 0
"""Of the bootstrap."""
_AT_ONCE = 50


def count(guess_HW: np.ndarray | Tensor, truth_HW: np.ndarray | Tensor, classes: int) -> np.ndarray:
    """(3, C) int64 of one image: pixels guessed rightly, guessed and labelled, by class.

    Pixels of truth 255 are in none of them.  Raises DataError for another size or for a label that
    is no class.
    """
    guess, truth = (_array(pixels) for pixels in (guess_HW, truth_HW))
    if guess.shape != truth.shape:
        raise DataError(
            f"a mask of {_size(truth)} pixels; its image has {_size(guess)}",
            fix="give masks of their images' sizes",
        )
    counted = truth != IGNORED
    guess, truth = guess[counted], truth[counted]
    labelled = np.bincount(truth, minlength=classes)
    if len(labelled) > classes:
        raise DataError(
            f"a mask has the label {len(labelled) - 1}; there are {classes} classes",
            fix=f"number the classes from 0 to {classes - 1}, and {IGNORED} for none",
        )
    guessed = np.bincount(guess, minlength=classes)
    assert len(guessed) == classes, "a guess is one of the classes"
    right = np.bincount(guess[guess == truth], minlength=classes)
    return np.stack([right, guessed, labelled]).astype(np.int64)


def _array(pixels: np.ndarray | Tensor) -> np.ndarray:
    return pixels.cpu().numpy() if isinstance(pixels, Tensor) else pixels


def _size(pixels: np.ndarray) -> str:
    return " × ".join(str(side) for side in pixels.shape)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """Of a set of images, in percent."""

    images: int
    miou: float
    macc: float
    aacc: float
    standard_error: float
    """Of the mIoU, by resampling the images; NaN where fewer than two have a label."""
    iou: np.ndarray
    """(C,), NaN where the class is neither labelled nor guessed."""
    acc: np.ndarray
    """(C,), NaN where the class is not labelled."""
    pixels: np.ndarray
    """(3, C) int64: guessed rightly, guessed, labelled."""

    @property
    def valid(self) -> int:
        """The classes that have an IoU."""
        return int(np.isfinite(self.iou).sum())

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """For JSON: what is not defined is None.  names: of the C classes, each another."""
        assert len(set(names)) == len(self.iou), "a name for every class"
        return {
            "images": self.images,
            "aAcc": self.aacc,
            "mAcc": self.macc,
            "mIoU": self.miou,
            "standard_error": _or_none(self.standard_error),
            "valid_classes": self.valid,
            "classes": len(self.iou),
            "per_class": {name: self._of_class(number) for number, name in enumerate(names)},
        }

    def _of_class(self, number: int) -> dict[str, float | int | None]:
        return {
            "iou": _or_none(float(self.iou[number])),
            "acc": _or_none(float(self.acc[number])),
            "pixels": int(self.pixels[2, number]),
            "pixels_guessed": int(self.pixels[1, number]),
        }


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def scores_of(counts_M3C: np.ndarray) -> Scores:
    """The scores of images' counts.  Raises DataError where no pixel of any has a label."""
    total = counts_M3C.sum(0)
    right, _, labelled = total
    if labelled.sum() == 0:
        raise DataError(
            f"no pixel of {len(counts_M3C)} masks has a label",
            fix="check that the masks are those of the images, and their zero label",
        )
    iou, acc = 100 * _iou(total), 100 * _divide(right, labelled)
    return Scores(
        images=len(counts_M3C),
        miou=float(np.nanmean(iou)),
        macc=float(np.nanmean(acc)),
        aacc=float(100 * right.sum() / labelled.sum()),
        standard_error=_bootstrap(counts_M3C),
        iou=iou,
        acc=acc,
        pixels=total,
    )


def image_miou(counts_3C: np.ndarray) -> float:
    """The mean IoU in percent over the classes in one image's truth or guess: for finding the
    worst.  NaN where no pixel has a label."""
    iou = _iou(counts_3C)
    return float(100 * np.nanmean(iou)) if np.isfinite(iou).any() else np.nan


def _iou(counts: np.ndarray) -> np.ndarray:
    """(…, C) of (…, 3, C)."""
    right, guessed, labelled = np.moveaxis(counts, -2, 0)
    return _divide(right, guessed + labelled - right)


def _divide(some: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.divide(some, of, out=np.full(of.shape, np.nan), where=of > 0)


def _bootstrap(counts_M3C: np.ndarray) -> float:
    """The standard deviation of the mIoU over resamples of the images."""
    images = counts_M3C[counts_M3C[:, 2].any(1)]
    if len(images) < 2:
        return np.nan
    rng, flat = np.random.default_rng(SEED), images.reshape(len(images), -1).astype(float)
    share = np.full(len(images), 1 / len(images))
    found = []
    for _ in range(RESAMPLES // _AT_ONCE):
        times = rng.multinomial(len(images), share, size=_AT_ONCE)  # each image is drawn
        found.append(np.nanmean(_iou((times @ flat).reshape(_AT_ONCE, *images.shape[1:])), axis=1))
    return float(100 * np.std(np.concatenate(found), ddof=1))
