"""One look for every page and figure: matplotlib and Jinja2, written as a single HTML file.

A page needs nothing but itself: no script, no font, no request.  The same content gives the same
bytes, so that a page can be compared and cached.  Figures are drawn for a light card, in colours
that stay apart for colour-blind readers and line styles that stay apart without any.
"""

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from zoo.files import atomic_write

Side = Literal["left", "right"]

# Okabe and Ito's colours, less the yellow, which white paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_INK, _QUIET, _RULE = "#1d1d1f", "#66645f", "#dedad2"
# Any: matplotlib's own type of the keys is younger than the oldest matplotlib we work with.
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _QUIET,
    "axes.edgecolor": _QUIET,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "svg.hashsalt": "tinyzoo",  # else identifiers are random
    "svg.fonttype": "path",
}
# A figure is shown this much larger than drawn: its 9-point type then matches the page's tables.
_ZOOM = 1.2
_CSS_PIXELS_PER_INCH = 96
# Pictures get two device pixels for each CSS pixel shown.
_PNG_DPI = 2 * _ZOOM * _CSS_PIXELS_PER_INCH


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of formatted cells under named columns; the first column names the row.

    sides: one per column; by default the first is set left and the others right, for numbers.
    highlight: indices of the rows to set off.  notes: one per row, written below it; may be empty.
    Raises ValueError where the counts differ.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    sides: Sequence[Side] | None = None
    highlight: Collection[int] = ()
    caption: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        lengths = {len(row) for row in [*self.rows, self.columns, self.sides or self.columns]}
        if len(lengths) != 1 or len(self.notes or self.rows) != len(self.rows):
            raise ValueError(f"a table's columns, sides, rows or notes differ in length: {lengths}")
        if not set(self.highlight) <= set(range(len(self.rows))):
            raise ValueError(f"highlighted rows {self.highlight} of a table of {len(self.rows)}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Relation:
    """How networks relate one patch of an image to all others; or one network, several patches.

    image_HW3: uint8.  query: (row, column) of the patch in the grid, or of each map's own.
    maps: title → (grid, grid) relation of the query to each patch, higher is closer.
    """

    image_HW3: np.ndarray  # noqa: N815  (a shape suffix)
    query: tuple[int, int] | Mapping[str, tuple[int, int]]
    maps: Mapping[str, np.ndarray]

    def query_of(self, title: str) -> tuple[int, int]:
        """(row, column) of the query in the grid of this map."""
        return self.query if isinstance(self.query, tuple) else self.query[title]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """One meaning of the colours for every map: blue low, white midway, red high, with a bar."""

    low: float
    high: float
    label: str


class Page:
    """A page under construction; each method adds a block below the last and returns the page.

    All strings are plain text: markup in them is shown, not obeyed.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title, self._subtitle = title, subtitle
        self._blocks: list[dict[str, Any]] = []

    def heading(self, text: str) -> Self:
        """Start a section."""
        return self._add("heading", text=text)

    def text(self, *paragraphs: str) -> Self:
        """Add paragraphs."""
        for paragraph in paragraphs:
            self._add("text", text=paragraph)
        return self

    def table(self, table: Table) -> Self:
        """Add a table; where it is wider than the screen, it scrolls by itself."""
        sides = table.sides or ["left"] + ["right"] * (len(table.columns) - 1)
        notes = table.notes or [""] * len(table.rows)
        columns = [{"name": n, "side": s} for n, s in zip(table.columns, sides, strict=True)]
        rows = [
            {
                "cells": [{"text": t, "side": s} for t, s in zip(row, sides, strict=True)],
                "highlight": index in table.highlight,
                "note": note,
            }
            for index, (row, note) in enumerate(zip(table.rows, notes, strict=True))
        ]
        return self._add("table", columns=columns, rows=rows, caption=table.caption)

    def figure(self, figure: Figure, caption: str, alt: str) -> Self:
        """Add a figure: SVG, or PNG where it shows pictures.

        ``alt`` says in words what a reader should see in it.
        """
        width, height = figure.get_size_inches() * _CSS_PIXELS_PER_INCH * _ZOOM
        size = {"width": round(width), "height": round(height)}
        return self._add("figure", src=_data_uri(figure), caption=caption, alt=alt, **size)

    def links(self, places: Mapping[str, str]) -> Self:
        """Add a list of links: text → address, relative to the page."""
        return self._add("links", places=places)

    def html(self) -> str:
        """The page as one self-contained HTML document."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("eval"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("page.html.j2")
        return template.render(title=self._title, subtitle=self._subtitle, blocks=self._blocks)

    def write(self, path: Path) -> None:
        """Write the page.  Raises DiskError."""
        atomic_write(path, self.html())

    def _add(self, kind: str, **fields: Any) -> Self:
        self._blocks.append({"kind": kind, **fields})
        return self


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    ylabel: str,
    xlabel: str = "step",
    log_y: bool = False,
) -> Figure:
    """Lines over training: name → (steps, values).  Values that are not finite leave a gap.
    Raises ValueError for no series, or steps and values of different lengths."""
    if not series:
        raise ValueError("no series to draw")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = _quiet_axes(figure.add_subplot())
        for index, (name, (steps, values)) in enumerate(series.items()):
            style, colour = _DASHES[index % len(_DASHES)], PALETTE[index % len(PALETTE)]
            dot = "o" if len(steps) == 1 else ""  # one point is no line
            axes.plot(steps, values, label=name, color=colour, ls=style, lw=1.5, marker=dot)
        axes.set(xlabel=xlabel, ylabel=ylabel, xmargin=0.01)
        axes.grid(axis="y", color=_RULE, linewidth=0.6)
        if log_y:
            axes.set_yscale("log")
        if len(series) > 1:
            figure.legend(
                loc="outside upper left", frameon=False, ncols=min(len(series), 3), handlelength=2.6
            )
    return figure


def bars(
    values: Mapping[str, float],
    *,
    xlabel: str,
    errors: Mapping[str, float] | None = None,
    form: str = ".1f",
    highlight: Collection[str] = (),
) -> Figure:
    """Horizontal bars from zero, first on top, each with its value written at its end.

    errors: name → half-width of an interval, for some or all bars.  form: how a value is written.
    highlight: names drawn in colour, the others in grey; without any, all are in colour.
    Raises ValueError for no values, or for a name in ``errors`` or ``highlight`` that has no bar.
    """
    errors = errors or {}
    strangers = {*errors, *highlight} - {*values}
    if not values or strangers:
        raise ValueError(f"no bar for {sorted(strangers)}" if values else "no values to draw")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 0.4 + 0.34 * len(values)), layout="constrained")
        axes = _quiet_axes(figure.add_subplot())
        for row, (name, value) in enumerate(values.items()):
            strong = not highlight or name in highlight
            axes.barh(row, value, height=0.62, color=PALETTE[0] if strong else "#b9b6b0")
            if error := errors.get(name, 0.0):
                axes.errorbar(value, row, xerr=error, color=_INK, capsize=2.5, linewidth=1)
            text = f"{value:{form}}".replace("-", "\N{MINUS SIGN}")
            text += f" ± {error:{form}}" if error else ""
            _write_value(axes, text, value, error, row, bold=strong and bool(highlight))
        if min(values.values()) < 0:
            left, right = axes.get_xlim()
            axes.set_xlim(left - 0.2 * (right - left))  # room between the names and the values
        axes.axvline(0, color=_QUIET, linewidth=0.7)
        axes.set_yticks(range(len(values)), list(values), color=_INK)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xticks([])  # the values are written
        axes.tick_params(left=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_xlabel(xlabel)
    return figure


def _write_value(
    axes: Axes, text: str, value: float, error: float, row: int, *, bold: bool
) -> None:
    """Write beyond the end of bar and interval, on the side away from zero."""
    sign = -1 if value < 0 else 1
    axes.annotate(
        text,
        (value + sign * error, row),
        xytext=(4 * sign, 0),
        textcoords="offset points",
        va="center",
        ha="left" if sign > 0 else "right",
        fontweight="bold" if bold else "normal",
    )


def relation_maps(relations: Sequence[Relation], *, scale: Scale | None = None) -> Figure:
    """One row per image: the image with each query patch marked, then one heat map per title.

    Without a scale, a map lies over the greyed image and runs from its own least value (dark) to
    its own greatest (bright): it shows where a network looks, not how strongly compared with the
    others.  With one, the same colour is the same value everywhere.  Raises ValueError for no
    images, rows of different maps, or maps that are no squares with the query in them.
    """
    titles = list(relations[0].maps) if relations else []
    if not titles or any(list(relation.maps) != titles for relation in relations):
        raise ValueError("relation maps need one image or more, and the same networks for each")
    for relation in relations:
        _require_squares(relation)
    columns, rows = 1 + len(titles), len(relations)
    with mpl.rc_context(STYLE):
        tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, compress=True)
        lines = max(title.count("\n") for title in titles)
        height = 1.2 * rows + 0.25 + 0.15 * lines + (0.65 if scale else 0)
        figure = Figure(figsize=(1.2 * columns, height), layout=tight)
        panels = figure.subplots(rows, columns, squeeze=False)
        for row, relation in zip(panels, relations, strict=True):
            _marked_image(row[0], relation)
            for axes, title in zip(row[1:], titles, strict=True):
                _heat_map(axes, relation, title, scale)
        for axes, title in zip(panels[0], ["image", *titles], strict=True):
            axes.set_title(title, pad=4)
        if scale:
            _colour_bar(figure, panels, scale)
    return figure


def _require_squares(relation: Relation) -> None:
    shapes = {title: np.shape(map_GG) for title, map_GG in relation.maps.items()}
    if isinstance(relation.query, tuple) and len(set(shapes.values())) > 1:
        raise ValueError(f"one query in maps of several sizes: {shapes}")
    for title, shape in shapes.items():
        query = relation.query_of(title)
        if shape != (shape[0], shape[0]) or not all(0 <= place < shape[0] for place in query):
            raise ValueError(f"no patch {query} in a square map of {shape}")


def _heat_map(axes: Axes, relation: Relation, title: str, scale: Scale | None) -> None:
    map_GG = np.asarray(relation.maps[title], np.float64)
    height, width = relation.image_HW3.shape[:2]
    rows = np.arange(height) * len(map_GG) // height
    columns = np.arange(width) * len(map_GG) // width
    level_HW = map_GG[rows][:, columns]
    if scale:  # nothing mixed in: a colour can be looked up in the bar
        _show(axes, mpl.colormaps["RdBu_r"](Normalize(scale.low, scale.high)(level_HW))[..., :3])
        axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, color=_RULE))
    else:
        level_HW = (level_HW - map_GG.min()) / (np.ptp(map_GG) or 1.0)
        grey_HW1 = relation.image_HW3.mean(-1, keepdims=True) / 255
        _show(axes, 0.75 * mpl.colormaps["inferno"](level_HW)[..., :3] + 0.25 * grey_HW1)
    _frame(axes, relation, title)


def _marked_image(axes: Axes, relation: Relation) -> None:
    """The image and every query; where they differ in one grid, numbered like the maps."""
    _show(axes, relation.image_HW3)
    grids = {title: len(map_GG) for title, map_GG in relation.maps.items()}
    marks = {(grids[title], relation.query_of(title)): title for title in reversed(grids)}
    numbered = len(marks) > 1 and len(set(grids.values())) == 1
    for title in marks.values():
        frame = _frame(axes, relation, title)
        if numbered:
            _number(axes, frame, 1 + list(grids).index(title))


def _show(axes: Axes, picture_HW3: np.ndarray) -> None:
    axes.imshow(picture_HW3, interpolation="nearest")
    axes.set_axis_off()


def _frame(axes: Axes, relation: Relation, title: str) -> Rectangle:
    """Frame the query of a map, white in black: seen on any ground."""
    grid = len(relation.maps[title])
    height, width = (side / grid for side in relation.image_HW3.shape[:2])
    row, column = relation.query_of(title)
    corner = (column * width - 0.5, row * height - 0.5)
    for colour, thickness in (("black", 2.6), ("white", 1.3)):
        frame = Rectangle(corner, width, height, fill=False, color=colour, linewidth=thickness)
        axes.add_patch(frame)
        frame.set_clip_on(False)
    return frame


def _number(axes: Axes, frame: Rectangle, number: int) -> None:
    """Write a number beside a frame, on the side where the picture has more room."""
    (left, right), middle = axes.get_xlim(), frame.get_x() + frame.get_width() / 2
    on_right = middle < (left + right) / 2
    text = axes.annotate(
        str(number),
        (frame.get_x() + on_right * frame.get_width(), frame.get_y() + frame.get_height() / 2),
        xytext=(3.5 if on_right else -3.5, 0),
        textcoords="offset points",
        va="center_baseline",
        ha="left" if on_right else "right",
        color="white",
        fontweight="bold",
    )
    text.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _colour_bar(figure: Figure, panels: np.ndarray, scale: Scale) -> None:
    colours = ScalarMappable(Normalize(scale.low, scale.high), "RdBu_r")
    bar = figure.colorbar(
        colours, ax=list(panels.flat), location="bottom", fraction=0.04, shrink=0.6, aspect=40
    )
    bar.set_label(scale.label)
    bar.set_ticks(np.linspace(scale.low, scale.high, 5).tolist())
    bar.outline.set_visible(False)  # type: ignore[operator]  # matplotlib's Spine


def _quiet_axes(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(width=0.7, length=3)
    axes.set_axisbelow(True)
    return axes


def _data_uri(figure: Figure) -> str:
    """The figure as a ``data:`` address: pictures as PNG, lines and bars as SVG."""
    pictures = any(axes.images for axes in figure.axes)
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        if pictures:
            figure.savefig(buffer, format="png", transparent=True, dpi=_PNG_DPI)
        else:
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    kind = "png" if pictures else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def save_png(figure: Figure, path: Path) -> None:
    """The figure as a picture on white, to be used elsewhere.  Raises DiskError."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", facecolor="white", dpi=_PNG_DPI)
    atomic_write(path, buffer.getvalue())
