"""A bar for each class's IoU, the best first, beside the class's colour.

C classes
"""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eval.report import PALETTE
from eval.segmentation.lettering import LETTERS, written
from eval.segmentation.overlays import swatch

MOST = 50
"""Classes in a figure."""
_COLUMNS = 2
# In inches.
_WIDTH, _GAP, _LINE, _SWATCH = 5.4, 0.25, 0.17, 0.09
_COLUMN = (_WIDTH - (_COLUMNS - 1) * _GAP) / _COLUMNS
_NAME, _VALUE = 1.3, 0.34
_BAR = _COLUMN - _NAME - _VALUE
_LETTER = 7.5
"""Points."""


def class_bars(
    names: Sequence[str], palette_C3: np.ndarray, iou_C: np.ndarray, *, mean: float
) -> list[tuple[Figure, list[int]]]:
    """Figures and their classes, MOST at most, read down the left column and then the right.

    iou_C: in percent; a class whose IoU is NaN has no bar.  mean: of these, a dashed line.
    """
    order = np.argsort(-iou_C, kind="stable")[: np.count_nonzero(~np.isnan(iou_C))]
    parts = [order[start : start + MOST].tolist() for start in range(0, len(order), MOST)]
    return [(_figure(part, names, palette_C3, iou_C, mean), part) for part in parts]


def _figure(
    shown: Sequence[int],
    names: Sequence[str],
    palette_C3: np.ndarray,
    iou_C: np.ndarray,
    mean: float,
) -> Figure:
    rows = -(-len(shown) // _COLUMNS)
    with mpl.rc_context(LETTERS):
        figure = Figure(figsize=(_WIDTH, rows * _LINE))
        sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(rows * _LINE, 0))
        sheet.set_axis_off()
        for place, c in enumerate(shown):
            column, row = divmod(place, rows)
            left, middle = column * (_COLUMN + _GAP), (row + 0.5) * _LINE
            sheet.add_patch(swatch(left + 0.01, middle, _SWATCH, palette_C3[c]))
            room = _NAME - 1.8 * _SWATCH - 0.04
            name = written(names[c], inches=room, points=_LETTER)
            sheet.text(left + 1.8 * _SWATCH, middle, name, va="center_baseline", fontsize=_LETTER)
            _bar(sheet, left + _NAME, middle, float(iou_C[c]))
        for column in range(-(-len(shown) // rows)):
            tall = min(rows, len(shown) - column * rows) * _LINE
            at = column * (_COLUMN + _GAP) + _NAME + _BAR * mean / 100
            sheet.plot([at, at], [0, tall], color="#1d1d1f", lw=0.7, ls=(0, (4, 2)))
    return figure


def _bar(sheet: Axes, left: float, middle: float, iou: float) -> None:
    """Zero to 100 is the whole of the bar's room, in every figure."""
    high = 0.62 * _LINE
    sheet.add_patch(Rectangle((left, middle - high / 2), _BAR, high, facecolor="#dedad2", lw=0))
    long = _BAR * iou / 100
    sheet.add_patch(Rectangle((left, middle - high / 2), long, high, facecolor=PALETTE[0], lw=0))
    sheet.text(
        left + _BAR + _VALUE,
        middle,
        f"{iou:.1f}",
        va="center_baseline",
        ha="right",
        fontsize=_LETTER,
    )
