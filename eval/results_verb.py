"""``zoo results``: the table of what was scored, or what flipped between two models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval import table_page
from eval.flips import SUFFIXES, choose, find_flips, is_file_name
from eval.result_files import find_results
from eval.table import as_published, make_cells, select
from zoo.catalog import load_catalog
from zoo.errors import DataError, UsageError


class Shown(NamedTuple):
    """What a verb answers, for a reader and for ``--json``; and what was left out."""

    text: str
    record: dict[str, Any]
    notes: list[str]


def show_table(
    places: Sequence[Path],
    *,
    model: str | None = None,
    benchmark: str | None = None,
    published: Sequence[str] = (),
    write: Sequence[Path] = (),
) -> Shown:
    """The table of all results below some folders, also written into files by their endings.

    published: MODEL=NAME, whose published figures are those of which model.  Raises UsageError,
    DataError where there is no result, DiskError.
    """
    table_page.require_suffixes(write)
    names = dict(_pair(text) for text in published)
    found, notes = find_results(places)
    if not found:
        raise DataError(
            "there is no result here",
            where=", ".join(map(str, places)) + (f"; {notes[0]}" if notes else ""),
            fix="zoo eval writes them into its --out",
        )
    kept = as_published(select(found, model=model, benchmark=benchmark), names)
    cells = make_cells(kept, load_catalog().models)
    for path in write:
        table_page.write(path, cells, notes)
    return Shown(table_page.text(cells), table_page.as_dict(cells, notes), notes)


def show_flips(
    places: Sequence[Path],
    first: str,
    second: str,
    *,
    benchmark: str | None = None,
    write: Sequence[Path] = (),
) -> Shown:
    """What flipped between two results, also written into files.

    first, second: result files; or models, looked for below the folders.  Raises UsageError,
    DataError, IntegrityError, DiskError.
    """
    table_page.require_suffixes(write, SUFFIXES)
    by_file = is_file_name(first) and is_file_name(second)
    found, notes = ([], []) if by_file else find_results(places)
    flips = find_flips(choose(first, found, benchmark), choose(second, found, benchmark))
    for path in write:
        flips.write(path)
    return Shown(flips.text(), flips.as_dict(), notes)


def _pair(text: str) -> tuple[str, str]:
    model, _, name = text.partition("=")
    if not (model and name):
        raise UsageError(
            f"not a model and a published one: {text[:80]!r}",
            where="--published MODEL=NAME",
            fix="for example my-run=tinymim-vit-s",
        )
    return model, name
