"""The table of results to be read: in a terminal, as Markdown, CSV, JSON or an HTML page.

A section holds the cells of one protocol and one metric, for these alone compare.
"""

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from eval.benchmarks import benchmarks
from eval.table import Cell
from zoo.errors import UsageError
from zoo.files import atomic_write
from zoo.listing import WIDTH

NONE = "–"
_ABOUT_ERRORS = "± is one standard error over the images."
_ABOUT_DIFFERENCES = (
    " A difference is ours less the published value, in points, and in standard errors of it (SE): "
    "no paper states its own, so a published accuracy is given a binomial one over as many images, "
    "and the two are combined as if independent. Both are of the same images, so what looks "
    "significant is. A figure in brackets is not compared; the remark says why."
)

_TITLES = {
    "top-1": "top-1, %",
    "top-5": "top-5, %",
    "mce-alexnet-normalised": "mCE: normalised, AlexNet has 100; low is good",
    "mean-error-unnormalised": "mean error, %: not normalised, not an mCE; low is good",
    "mean-error-of-some-parts": "mean error of some of its parts, %: neither of its two scores",
}
_HEADS = ("model", "ours", "published", "difference", "images")
_NARROWEST = 18
# What spreadsheets begin a formula with, the wide forms too, and what they skip before it.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")


def title_of(cell: Cell) -> str:
    """Protocol and metric: what a section's cells have in common."""
    return f"{cell.result.protocol} · {_TITLES.get(cell.metric, cell.metric)}"


def sections(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of the same protocol and metric together; in the order that they came in."""
    return [list(group) for _, group in groupby(cells, lambda c: (c.result.protocol, c.metric))]


def text(cells: Sequence[Cell]) -> str:
    """For a terminal, at most ``WIDTH`` columns wide."""
    rows = [_figures(cell) for cell in cells]
    widths = [max(map(len, column)) for column in zip(_HEADS, *rows, strict=True)]
    room = WIDTH - 2 - sum(widths[1:]) - 2 * (len(widths) - 1)
    widths[0] = min(widths[0], max(_NARROWEST, room))
    parts = []
    for section in sections(cells):
        lines = [title_of(section[0]), *_wrapped(section[0].standing), _line(_HEADS, widths)]
        for cell in section:
            lines.append(_line(_figures(cell), widths))
            lines += _wrapped(about(cell))
        parts.append("\n".join(lines))
    parts.append("\n".join(textwrap.wrap(legend(cells), WIDTH)))
    return "\n\n".join(parts)


def legend(cells: Sequence[Cell]) -> str:
    """What the figures mean, as far as there are any of the kind."""
    differ = any(cell.published for cell in cells)
    return _ABOUT_ERRORS + (_ABOUT_DIFFERENCES if differ else "")


def _of_protocol(cell: Cell) -> list[str]:
    """What the protocol is, in words, and what became of it."""
    known = benchmarks().get(cell.result.protocol)
    return [*([known.about] if known else []), *filter(None, [cell.standing])]


def about(cell: Cell) -> str:
    """What tells the cell from others, and the remarks on it, in one line."""
    return "; ".join(filter(None, (cell.variant, *cell.remarks)))


def _line(figures: Sequence[str], widths: Sequence[int]) -> str:
    name, *rest = figures
    # A long name by its end, where a path differs from another and a digest stands.
    cut = name if len(name) <= widths[0] else "…" + name[1 - widths[0] :]
    cells = [f"{text:>{width}}" for text, width in zip(rest, widths[1:], strict=True)]
    return "  ".join(["", cut.ljust(widths[0]), *cells]).removeprefix("  ").rstrip()


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(
        words, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 6, break_on_hyphens=False
    )


def _figures(cell: Cell) -> tuple[str, str, str, str, str]:
    """The cell under each of the heads, as written."""
    digits = digits_of(cell.standard_error)
    ours = f"{cell.value:.{digits}f}"
    if cell.standard_error is not None:
        ours += f" ± {cell.standard_error:.{digits}f}"
    theirs = str(cell.published[0].value) if cell.published else NONE
    if cell.published and not cell.compared:
        theirs = f"({theirs})"
    difference = NONE
    if cell.difference is not None:
        difference = signed(cell.difference, 2)
        if cell.difference_in_errors is not None:
            difference += f" ({signed(cell.difference_in_errors, 1)} SE)"
    return cell.model, ours, theirs, difference, f"{cell.result.samples:,}"


def digits_of(error: float | None) -> int:
    """Digits after the point, so that the standard error shows one that is not zero."""
    return 2 if not error or error >= 0.015 else 3 if error >= 0.0015 else 4


def signed(value: float, digits: int) -> str:
    """With its sign, and a zero without one."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:+.{digits}f}".replace("-", "\N{MINUS SIGN}") if rounded else f"{0:.{digits}f}"


def as_dict(cells: Sequence[Cell], notes: Sequence[str]) -> dict[str, Any]:
    """The same for ``--json``, with all that the cells depend on."""
    return {"cells": [cell.as_dict() for cell in cells], "notes": list(notes)}


def markdown(cells: Sequence[Cell]) -> str:
    """A section and a table for each protocol and metric."""
    parts = ["# Results"]
    for section in sections(cells):
        parts.append(f"## {markdown_text(title_of(section[0]))}")
        parts += map(markdown_text, _of_protocol(section[0]))
        rows = [(*_figures(cell), about(cell)) for cell in section]
        table = ["| " + " | ".join((*_HEADS, "")) + " |", "|---|---:|---:|---:|---:|---|"]
        table += ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
        parts.append("\n".join(table))
    return "\n\n".join([*parts, markdown_text(legend(cells))]) + "\n"


def markdown_text(words: str) -> str:
    """Plain text in a cell of a table: nothing in it is markup, or ends the cell."""
    # The entities of HTML first: a backslash would not keep a tag from a browser.
    escaped = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = re.sub(r"([\\`*\[\]|~$#!])", r"\\\1", escaped)
    # Within a word an underscore is one: names of networks stay readable.
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)
    # Bare addresses would become links.
    return re.sub(r"(?i)(https?|ftp|www)([:.])", r"\1&#8203;\2", escaped)


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows under a head, as RFC 4180 has it; numbers in full, records as JSON.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(columns)
    writer.writerows([_csv_value(row.get(column)) for column in columns] for row in rows)
    return buffer.getvalue()


def _csv_value(value: Any) -> Any:
    if isinstance(value, dict | list):
        value = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return value


_CSV_COLUMNS = (
    *("protocol", "metric", "model", "model_digest", "value", "standard_error", "samples"),
    *("published_value", "published_source", "compared", "difference"),
    *("difference_in_standard_errors", "variant", "remarks", "complete", "dtype", "data"),
    *("data_fingerprint", "transform", "settings", "seed", "protocol_digest", "code_version"),
    "file",
)


def csv_table(cells: Sequence[Cell]) -> str:
    """A row a cell."""
    rows = []
    for cell in cells:
        first = cell.published[0] if cell.published else None
        record = cell.as_dict()
        rows.append(
            {
                **record,
                "published_value": first.value if first else None,
                "published_source": first.text() if first else None,
                "remarks": "; ".join(record["remarks"]),
            }
        )
    return csv_text(rows, _CSV_COLUMNS)


def html(cells: Sequence[Cell]) -> str:
    """A page that needs nothing but itself."""
    from eval.report import Page, Table

    models = len({(cell.result.model, cell.result.model_digest) for cell in cells})
    protocols = len({cell.result.protocol for cell in cells})
    about_it = f"{_counted(models, 'model')}, {_counted(protocols, 'protocol')}"
    page = Page("Results", about_it)
    for section in sections(cells):
        page.heading(title_of(section[0]))
        page.text(*_of_protocol(section[0]))
        page.table(
            Table(
                columns=_HEADS,
                rows=[_figures(cell) for cell in section],
                notes=[about(cell) for cell in section],
            )
        )
    return page.heading("How to read it").text(legend(cells)).html()


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


Writer = Callable[[Sequence[Cell], Sequence[str]], str]

_WRITERS: dict[str, Writer] = {
    ".md": lambda cells, _: markdown(cells),
    ".json": lambda cells, notes: (
        json.dumps(as_dict(cells, notes), indent=2, allow_nan=False) + "\n"
    ),
    ".csv": lambda cells, _: csv_table(cells),
    ".html": lambda cells, _: html(cells),
}


def require_suffixes(paths: Sequence[Path], known: Sequence[str] = tuple(_WRITERS)) -> None:
    """Raise UsageError for a file of a kind that is not written; before anything is."""
    for path in paths:
        if path.suffix.lower() not in known:
            raise UsageError(
                f"no kind of file that this is written as: {path.name[-80:]!r}",
                where="--write",
                fix=f"end the name with one of {', '.join(known)}",
            )


def write(path: Path, cells: Sequence[Cell], notes: Sequence[str]) -> None:
    """Write the table as its name's ending says.  Raises UsageError, DiskError."""
    require_suffixes([path])
    atomic_write(path, _WRITERS[path.suffix.lower()](cells, notes))
