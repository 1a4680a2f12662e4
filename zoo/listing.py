"""``zoo list``: the catalog as one table, filtered and sorted."""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from zoo.catalog import Catalog
from zoo.entry import METRICS, STATES, Entry, as_record
from zoo.errors import UsageError

WIDTH = 100
"""Columns of a terminal."""

TASKS = {
    "classification": ("top1",),
    "segmentation": ("ade20k",),
    "features": ("linear", "knn"),
}
"""A model is for a task if somebody has published, or we have measured, one of these of it."""

_SHOWN = {"top1": "top-1", "ade20k": "ADE20K", "a": "A", "r": "R", "c": "C"}
_SIZES = {"params": "parameters", "gflops": "gflops"}
SORTS = ("name", *_SIZES, *_SHOWN)

_COUNT = re.compile(r"(\d{1,15}(?:\.\d{1,15})?(?:e\d{1,2})?)([kmbg]?)", re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_NONE = "–"
_GAP = "  "
_NARROWEST = 12
_LEGEND = (
    "GFLOPs: two for each multiply-add, one image. weights: the licence of published ones.",
    "Figures: %, as published; top-1 and ADE20K after fine-tuning; A, R, C: ImageNet's; C is an",
    "error, unnormalised.",
)
_MARKS = {
    "*": "* of another kind than the rest of its column: zoo info MODEL says how.",
    "+": "+ measured by us; no figure was published.",
}


def select(
    catalog: Catalog,
    *,
    sort: str = "name",
    task: str | None = None,
    max_params: str | None = None,
    terms: str | None = None,
    state: str | None = None,
) -> list[Entry]:
    """The models that every filter admits, sorted; best figures first, missing values last.

    max_params: such as 30M, 5.7e6 or 30000000.  terms: a text that the licence of the model and of
    each of its ancestors holds, in whatever case.  Raises UsageError for a value that is none.
    """
    _require(sort, SORTS, "--sort")
    found: Iterable[Entry] = catalog.models.values()
    if task is not None:
        _require(task, TASKS, "--task")
        found = [e for e in found if any(map(e.headline, TASKS[task]))]
    if max_params is not None:
        most = parse_count(max_params)
        found = [e for e in found if e.parameters <= most]
    if terms is not None:
        found = [e for e in found if _admits(terms.casefold(), catalog.lineage(e))]
    if state is not None:
        _require(state, STATES, "--state")
        found = [e for e in found if e.state == state]
    return sorted(found, key=_order(sort))


def parse_count(text: str) -> float:
    """A number of parameters: 30M, 5.7e6, 30000000.  Raises UsageError."""
    match = _COUNT.fullmatch(text)
    if match is None:
        raise UsageError(
            f"not a number of parameters: {text[:80]!r}",
            where="--max-params",
            fix="give for example 30M, 5.7e6 or 30000000",
        )
    return float(match[1]) * _FACTORS[match[2].lower()]


def terms_of(entry: Entry) -> str:
    """What binds a user of this model alone: its weights' licence, or else that of its code."""
    return entry.licenses.weights or entry.licenses.code


def _admits(text: str, lineage: Iterable[Entry]) -> bool:
    return all(text in terms_of(entry).casefold() for entry in lineage)


def _require(value: str, valid: Collection[str], option: str) -> None:
    if value in valid:
        return
    close = difflib.get_close_matches(value, valid, n=1)
    raise UsageError(
        f"{option} cannot be {value[:80]!r}" + (f" (did you mean {close[0]!r}?)" if close else ""),
        where=option,
        fix=f"choose one of {', '.join(valid)}",
    )


def _order(key: str) -> Callable[[Entry], tuple[float, str]]:
    def order(entry: Entry) -> tuple[float, str]:
        if key == "name":
            return 0, entry.name
        if key in _SIZES:
            value = getattr(entry, _SIZES[key])
            return math.inf if value is None else value, entry.name
        figure = entry.headline(key)
        if figure is None:
            return math.inf, entry.name
        return figure.value if METRICS[key].low_is_good else -figure.value, entry.name

    return order


def text(entries: Iterable[Entry]) -> str:
    """The table, at most ``WIDTH`` columns, with a legend."""
    heads = ["model", "params", "GFLOPs", *_SHOWN.values(), "state", "weights"]
    rows = [_cells(entry) for entry in entries]
    if not rows:
        return "no model is like that"
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    room = WIDTH - sum(widths[1:-1]) - len(_GAP) * (len(widths) - 1)
    widths[-1] = min(widths[-1], max(_NARROWEST, room - widths[0]))
    widths[0] = min(widths[0], room - widths[-1])
    lines = [_line(row, widths) for row in [heads, *rows]]
    used = {cell[-1] for row in rows for cell in row[3:-2]}
    legend = [*_LEGEND, *(meaning for mark, meaning in _MARKS.items() if mark in used)]
    return "\n".join([*lines, "", *legend])


def _cells(entry: Entry) -> list[str]:
    flops = _NONE if entry.gflops is None else f"{entry.gflops:.4g}"
    figures = [_figure(entry, metric) for metric in _SHOWN]
    weights = entry.licenses.weights or _NONE
    return [entry.name, short_count(entry.parameters), flops, *figures, entry.state, weights]


def _figure(entry: Entry, metric: str) -> str:
    figure = entry.headline(metric)
    if figure is None:
        return _NONE + " "
    mark = " " if figure in entry.figures else "+"
    return f"{figure.value:.1f}" + ("*" if figure.note else mark)


def short_count(number: int) -> str:
    """``5.5 M``"""
    unit, name = next((u for u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= u[0]), (1, ""))
    return f"{number / unit:.1f} {name}" if name else str(number)


def _line(cells: list[str], widths: list[int]) -> str:
    # Numbers to the right; name, state and licence to the left, cut where they do not fit.
    last = len(cells) - 1
    padded = []
    for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        cut = cell if len(cell) <= width else cell[: width - 1] + "…"
        left = place in (0, last - 1, last)
        padded.append(cut.ljust(width) if left else cut.rjust(width))
    return _GAP.join(padded).rstrip()


def as_dict(catalog: Catalog, entries: Iterable[Entry]) -> dict[str, Any]:
    """The same for ``--json``, everything that the catalog says of each."""
    return {
        "models": [{"name": e.name, "state": e.state, **as_record(e)} for e in entries],
        "skipped": [str(problem) for problem in catalog.problems.values()],
    }
