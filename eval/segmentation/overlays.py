"""Pictures of a segmentation: classes laid over the photograph, the annotation beside the guess.

H, W height and width of an image in pixels · C classes
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from eval.report import PALETTE
from eval.segmentation.lettering import LETTERS, width, written
from eval.segmentation.recipe import IGNORED

SIDE = 300
"""Longest side, in pixels, at which an image is shown."""
WRONG = tuple(int(PALETTE[1][i : i + 2], 16) for i in (1, 3, 5))
"""Laid over pixels that were guessed wrong."""
MOST_NAMED = 12
"""Classes in a legend."""
TITLES = ("photograph", "annotation", "prediction", "where they differ")

# As pages write pictures.  With all lengths whole pixels, none of an image's is drawn twice.
_PIXELS_PER_INCH = 230.4
_PANEL, _GAP, _LINE, _SWATCH = (n / _PIXELS_PER_INCH for n in (SIDE, 14, 44, 23))
_WIDTH = len(TITLES) * _PANEL + (len(TITLES) - 1) * _GAP
_LETTER = 8
"""Points."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Example:
    """An image to be shown, with what is to be seen in it and what was.

    Raises ValueError for masks of another size than the image's, and for other types.
    """

    name: str
    """Of its file."""
    image_HW3: np.ndarray  # noqa: N815  (a shape suffix, here and below)
    """uint8, RGB."""
    truth_HW: np.ndarray  # noqa: N815
    """uint8 class numbers from 0; IGNORED where there is no label."""
    guess_HW: np.ndarray  # noqa: N815
    """uint8 class numbers from 0."""
    miou: float
    """In percent, of this image alone; NaN where it has no labelled pixel."""

    def __post_init__(self) -> None:
        arrays = (self.image_HW3, self.truth_HW, self.guess_HW)
        size = self.truth_HW.shape
        if len(size) != 2 or 0 in size or [a.shape for a in arrays] != [(*size, 3), size, size]:
            raise ValueError(f"{self.name}: image and masks are {[a.shape for a in arrays]}")
        if any(array.dtype != np.uint8 for array in arrays):
            raise ValueError(f"{self.name}: image and masks are {[a.dtype for a in arrays]}")


def shrunk(example: Example) -> Example:
    """The example at the size that is shown: its longest side is SIDE pixels.

    What is smaller is enlarged.  Masks keep their class numbers: each pixel has the nearest one.
    """
    height, width = example.truth_HW.shape
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return example
    masks = (example.truth_HW, example.guess_HW)
    truth, guess = (_resized(mask, size, Image.Resampling.NEAREST) for mask in masks)
    smooth = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
    image = _resized(example.image_HW3, size, smooth)
    return replace(example, image_HW3=image, truth_HW=truth, guess_HW=guess)


def _resized(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize(size, how))


def overlay(
    image_HW3: np.ndarray, classes_HW: np.ndarray, palette_C3: np.ndarray, *, alpha: float = 0.55
) -> np.ndarray:
    """(H, W, 3) uint8: each class's colour over the image, and light lines between classes.

    image_HW3: uint8 RGB.  classes_HW: class numbers, IGNORED where there is none; there the image
    stands grey and pale.  A line lies on the pixels to the left of a border and above it.
    alpha: share of the class's colour, in [0, 1].
    Raises ValueError for sizes that differ and for numbers that the palette has no colour for.
    """
    if image_HW3.shape != (*classes_HW.shape, 3):
        raise ValueError(f"classes of {classes_HW.shape} for an image of {image_HW3.shape}")
    labelled_HW = classes_HW != IGNORED
    if (strange := int(np.max(classes_HW, where=labelled_HW, initial=0))) >= len(palette_C3):
        raise ValueError(f"class {strange} of a palette of {len(palette_C3)} colours")
    tint_HW3 = palette_C3[np.where(labelled_HW, classes_HW, 0)]
    shown_HW3 = _blend(image_HW3, tint_HW3, alpha)
    shown_HW3[~labelled_HW] = _blend(_grey(image_HW3), 255, alpha)[~labelled_HW]
    lines_HW = _borders(classes_HW)
    shown_HW3[lines_HW] = _blend(shown_HW3, 255, 0.6)[lines_HW]
    return shown_HW3


def difference(example: Example) -> np.ndarray:
    """(H, W, 3) uint8: WRONG laid over what was guessed wrong, what was right in dark grey.

    Pixels without a label are grey and pale, as in an overlay.
    """
    labelled_HW = example.truth_HW != IGNORED
    wrong_HW = labelled_HW & (example.truth_HW != example.guess_HW)
    grey_HW3 = _grey(example.image_HW3)
    shown_HW3 = _blend(grey_HW3, 0, 0.4)
    shown_HW3[~labelled_HW] = _blend(grey_HW3, 255, 0.55)[~labelled_HW]
    shown_HW3[wrong_HW] = _blend(grey_HW3, np.array(WRONG), 0.7)[wrong_HW]
    return shown_HW3


def _coarse(image_HW3: np.ndarray, step: int) -> np.ndarray:
    """In steps of brightness that are hardly seen: noise in the last bits is half of a PNG."""
    return image_HW3 // step * step + step // 2


def _grey(image_HW3: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image_HW3).convert("L").convert("RGB")).copy()


def _blend(below_HW3: np.ndarray, above: np.ndarray | int, alpha: float) -> np.ndarray:
    return np.rint((1 - alpha) * below_HW3 + alpha * np.asarray(above)).astype(np.uint8)


def _borders(classes_HW: np.ndarray) -> np.ndarray:
    borders_HW = np.zeros(classes_HW.shape, bool)
    borders_HW[:, :-1] |= classes_HW[:, :-1] != classes_HW[:, 1:]
    borders_HW[:-1] |= classes_HW[:-1] != classes_HW[1:]
    return borders_HW


def examples_figure(
    examples: Sequence[Example], names: Sequence[str], palette_C3: np.ndarray
) -> Figure:
    """A row per image: the photograph, the annotation, the prediction and where the two differ.

    Above stands a legend of the MOST_NAMED classes that fill most of the annotations and
    predictions.  names: of the C classes.  palette_C3: uint8, their colours.
    Raises ValueError for no examples and for class numbers without a name or a colour.
    """
    if not examples or len(names) != len(palette_C3):
        raise ValueError(f"{len(examples)} images, {len(names)} names, {len(palette_C3)} colours")
    shown = [shrunk(example) for example in examples]
    heights = [example.truth_HW.shape[0] / _PIXELS_PER_INCH for example in shown]
    seen, more = most_seen(shown, len(names))
    lines = -(-(len(seen) + (more > 0)) // len(TITLES))
    total = _LINE * (lines + 1.75) + sum(heights) + (_LINE + _GAP) * len(shown)
    with mpl.rc_context(LETTERS):
        figure = Figure(figsize=(_WIDTH, total))
        sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(total, 0))
        sheet.set_axis_off()
        _write_legend(sheet, seen, more, names, palette_C3)
        top = _LINE * (lines + 1.75)
        for column, title in enumerate(TITLES):
            sheet.text(column * (_PANEL + _GAP), top - 0.06, title, fontweight="bold", va="bottom")
        for example, height in zip(shown, heights, strict=True):
            _write_head(sheet, example, top)
            top += _LINE
            _show_row(figure, example, palette_C3, top, height)
            top += height + _GAP
    return figure


def most_seen(examples: Sequence[Example], classes: int) -> tuple[list[int], int]:
    """The classes that fill most of annotations and predictions, and how many more appear.

    Raises ValueError for a number that is none of the C classes.
    """
    masks = np.concatenate([m.ravel() for e in examples for m in (e.truth_HW, e.guess_HW)])
    pixels_C = np.bincount(masks[masks != IGNORED], minlength=classes)
    if len(pixels_C) > classes:
        raise ValueError(f"class {len(pixels_C) - 1} of {classes}")
    order = np.argsort(-pixels_C, kind="stable")[: np.count_nonzero(pixels_C)].tolist()
    named = MOST_NAMED if len(order) <= MOST_NAMED else MOST_NAMED - 1
    return order[:named], len(order[named:])


def _write_legend(
    sheet: Axes, seen: Sequence[int], more: int, names: Sequence[str], palette_C3: np.ndarray
) -> None:
    room = _PANEL - 1.6 * _SWATCH
    for place in range(len(seen) + (more > 0)):
        row, column = divmod(place, len(TITLES))
        left, middle = column * (_PANEL + _GAP), (row + 0.5) * _LINE
        if place == len(seen):
            sheet.text(left, middle, f"and {more} more", va="center_baseline", fontsize=_LETTER)
            continue
        sheet.add_patch(swatch(left + 0.01, middle, _SWATCH, palette_C3[seen[place]]))
        name = written(names[seen[place]], inches=room, points=_LETTER)
        sheet.text(left + 1.6 * _SWATCH, middle, name, va="center_baseline", fontsize=_LETTER)


def swatch(left: float, middle: float, side: float, colour_3: np.ndarray) -> Rectangle:
    """A square of a class's colour, with an edge that shows white ones."""
    colour = tuple(colour_3 / 255)
    return Rectangle(
        (left, middle - side / 2), side, side, facecolor=colour, edgecolor="#66645f", linewidth=0.4
    )


def _write_head(sheet: Axes, example: Example, top: float) -> None:
    """Name and score, on the line above the pictures."""
    score = "no labelled pixel" if np.isnan(example.miou) else f"mIoU {example.miou:.1f} %"
    room = _WIDTH - width(score, points=_LETTER) - 2 * _GAP
    name = written(example.name, inches=room, points=_LETTER)
    sheet.text(0, top + _LINE - 0.05, name, fontsize=_LETTER)
    sheet.text(_WIDTH, top + _LINE - 0.05, score, fontsize=_LETTER, ha="right")


def _show_row(
    figure: Figure, example: Example, palette_C3: np.ndarray, top: float, height: float
) -> None:
    # Over grey a hue means a class, and nothing else; the photograph stands beside it.
    ground = replace(example, image_HW3=_coarse(_grey(example.image_HW3), 16))
    pictures = (
        _coarse(example.image_HW3, 8),
        overlay(ground.image_HW3, ground.truth_HW, palette_C3),
        overlay(ground.image_HW3, ground.guess_HW, palette_C3),
        difference(ground),
    )
    whole = figure.get_size_inches()[1]
    wide = example.truth_HW.shape[1] / _PIXELS_PER_INCH
    for column, picture_HW3 in enumerate(pictures):
        left = column * (_PANEL + _GAP)
        box = (left / _WIDTH, 1 - (top + height) / whole, wide / _WIDTH, height / whole)
        axes = figure.add_axes(box)
        axes.imshow(picture_HW3, interpolation="nearest", aspect="auto")
        axes.set_axis_off()


def chosen(count: int, images: int) -> list[int]:
    """At most ``count`` indices of so many images, evenly spaced and always the same."""
    count = min(count, images)
    return [(2 * i + 1) * images // (2 * count) for i in range(count)]


def worst(mious_M: np.ndarray, count: int = 10) -> list[int]:
    """Indices of the lowest scores, lowest first; of equal ones the first.  NaN is no score."""
    order = np.argsort(mious_M, kind="stable")  # NaN last
    return order[: min(count, np.count_nonzero(~np.isnan(mious_M)))].tolist()
