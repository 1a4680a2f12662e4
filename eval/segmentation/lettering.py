"""Names from outside, as a figure can write them: in its font, and within its room."""

from bisect import bisect_right
from functools import cache

from matplotlib.font_manager import findfont, get_font
from matplotlib.ft2font import FT2Font

from eval.report import STYLE

LETTERS = {**STYLE, "text.parse_math": False}
"""The pages' style, in which a dollar sign is one."""
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_POINTS_PER_INCH, _FIXED_POINT = 72, 64


def written(name: str, *, inches: float, points: float) -> str:
    """The name, cut to a width; what the font lacks, or cannot be seen, becomes a mark."""
    seen = "".join(c if c.isprintable() and ord(c) in _known() else _UNKNOWN for c in name)
    if width(seen, points=points) <= inches:
        return seen
    cuts = [seen[:end].rstrip() + "…" for end in range(len(seen))]
    fitting = bisect_right(cuts, inches, key=lambda cut: width(cut, points=points))
    return cuts[max(0, fitting - 1)]


def width(text: str, *, points: float) -> float:
    """In inches, of text of which the font has every character."""
    font = _font()
    font.set_size(points, _POINTS_PER_INCH)
    font.set_text(text)
    return font.get_width_height()[0] / _FIXED_POINT / _POINTS_PER_INCH


@cache
def _known() -> frozenset[int]:
    return frozenset(_font().get_charmap())


@cache
def _font() -> FT2Font:
    return get_font(findfont(STYLE["font.family"]))
