"""``zoo results``: the table of what was scored, or what flipped between two models."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval import table_page
from eval.flips import SUFFIXES, choose, find_flips, is_file_name
from eval.papers import published_names
from eval.result_files import find_results
from eval.table import as_published, make_cells, select
from zoo.catalog import load_catalog
from zoo.entry import Entry
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
    models = load_catalog().models
    names = dict(_pair(text) for text in published)
    for name in names.values():
        _require_figures(name, models)
    found, notes = find_results(places)
    if not found:
        raise DataError(
            "there is no result here",
            where=", ".join(map(str, places)) + (f"; {notes[0]}" if notes else ""),
            fix="zoo eval writes them into its --out",
        )
    kept = as_published(select(found, model=model, benchmark=benchmark), names)
    cells = make_cells(kept, models)
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


def _require_figures(name: str, models: Mapping[str, Entry]) -> None:
    """Raise UsageError for a model that nobody published figures of, as far as is known here."""
    known = published_names(models)
    if name in known or any(_names(entry) & {name} for entry in models.values()):
        return
    close = difflib.get_close_matches(name, sorted(known), n=3)
    raise UsageError(
        f"no published figures of {name[:80]!r} are known",
        where="--published MODEL=NAME",
        fix=f"did you mean {', '.join(close)}?" if close else "zoo list shows the models",
    )


def _names(entry: Entry) -> set[str]:
    return {entry.hosted.repository, f"hf-hub:{entry.hosted.repository}"} if entry.hosted else set()


def _pair(text: str) -> tuple[str, str]:
    model, _, name = text.partition("=")
    if not (model and name):
        raise UsageError(
            f"not a model and a published one: {text[:80]!r}",
            where="--published MODEL=NAME",
            fix="for example my-run=tinymim-vit-s",
        )
    return model, name
