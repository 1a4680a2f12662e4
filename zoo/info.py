"""``zoo info``: one model, what is known of it, and how to have it."""

import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from zoo.catalog import Catalog, Pin, import_command, recipe_command
from zoo.entry import METRICS, Entry, Figure, as_record
from zoo.listing import WIDTH, short_count
from zoo.settings import NAMESPACE, namespace

NOT_MEASURED = "not measured"
_UNPUBLISHED = "none published"


class Way(NamedTuple):
    """A command that leads to the model."""

    command: str
    note: str


def text(catalog: Catalog, name: str) -> str:
    """The page of a model.  Raises UsageError: unknown, or the user's catalog is broken."""
    entry = catalog.find(name)
    timm, ours = snippets(entry)
    sections = [
        [f"{entry.name}: {entry.title}", *_wrapped(entry.note or "", "  ")],
        _facts(entry),
        ["Lineage, with the licences of the code and of the weights", *_tree(catalog, entry)],
        ["Scores", *_scores(entry)],
        ["How to get it", *(line for way in ways(entry) for line in _lines(way))],
        ["How to load it", *(f"  {line}" for line in timm)],
        [f"  {line}" for line in ours],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections)


def as_dict(catalog: Catalog, name: str) -> dict[str, Any]:
    """The same for ``--json``.  Raises UsageError."""
    entry = catalog.find(name)
    timm, ours = snippets(entry)
    return {
        "name": entry.name,
        "state": entry.state,
        "figures": [],
        "measured": [],
        **as_record(entry),
        "lineage": [
            {"name": e.name, "title": e.title, "licenses": as_record(e)["licenses"]}
            for e in catalog.lineage(entry)
        ],
        "get": [way._asdict() for way in ways(entry)],
        "load": {"timm": timm, "zoo": ours},
    }


def ways(entry: Entry) -> list[Way]:
    """How to have it, the shortest way first.  Raises UsageError for a broken namespace."""
    found = []
    if entry.hosted:
        found.append(Way(f"zoo pull {entry.name}", f"from {entry.hosted.text()}"))
    if entry.is_ours:
        owner = namespace()
        place = f"from {owner}/{entry.name}" if owner else f"once a namespace is set ({NAMESPACE})"
        found.append(Way(f"zoo pull {entry.name}", place))
    if file := entry.importable:
        note = f"the file is {file.publisher}'s; it becomes {file.becomes}"
        found.append(Way(import_command(entry), note))
    if entry.recipe:
        found.append(Way(recipe_command(entry), "add data.source=folder:DIR"))
    return found


def snippets(entry: Entry) -> tuple[list[str], list[str]]:
    """Three lines with timm, three with ours.  Raises UsageError for a broken namespace."""
    source, ours = f"local-dir:models/{entry.name}", entry.name
    if entry.hosted:
        source = f"hf-hub:{Pin(entry.hosted.repository, entry.hosted.commit, {}).source}"
    elif entry.is_ours and (owner := namespace()):
        source = f"hf-hub:{owner}/{entry.name}"
    elif entry.state == "recipe":
        ours = f"runs/{entry.recipe}/export"
        source = f"local-dir:{ours}"
    use = "features = model.forward_features(images)"
    create = f'model = timm.create_model("{source}", pretrained=True).eval()'
    return ["import timm", create, use], ["import zoo", f'model = zoo.load("{ours}")', use]


def _facts(entry: Entry) -> list[str]:
    flops = "not stated" if entry.gflops is None else f"{entry.gflops:g} (two for a multiply-add)"
    facts = {
        "state": "recipe only" if entry.state == "recipe" else entry.state,
        "paper": entry.paper,
        "network": entry.network.text(),
        "parameters": f"{entry.parameters:,} ({short_count(entry.parameters)})",
        "GFLOPs": flops,
    }
    return [line for key, value in facts.items() for line in _wrapped(value, f"  {key:<12}")]


def _tree(catalog: Catalog, entry: Entry) -> list[str]:
    lineage = catalog.lineage(entry)
    labels = ["   " * (d - 1) + "└─ " * bool(d) + e.name for d, e in enumerate(lineage)]
    width = max(map(len, labels))
    return [
        f"  {label:<{width}}  code {e.licenses.code}, weights {e.licenses.weights or _UNPUBLISHED}"
        for label, e in zip(labels, lineage, strict=True)
    ]


def _scores(entry: Entry) -> Iterator[str]:
    rows = list(_compared(entry)) or [("", "–", NOT_MEASURED, "", "")]
    width = max(len(title) for title, *_ in rows)
    yield f"  {'':<{width}}  {'published':<9}  ours"
    for title, published, ours, source, note in rows:
        line = f"  {title:<{width}}  {published:<9}  {ours:<12}  {source}".rstrip()
        fits = len(line) <= WIDTH
        yield line if fits else line.removesuffix(source).rstrip()
        yield from _wrapped(note if fits else ": ".join(filter(None, (source, note))), "      ")


def _compared(entry: Entry) -> Iterator[tuple[str, str, str, str, str]]:
    """Metric, published figure, ours, source and note: a line a figure, the metrics in order."""
    for metric, what in METRICS.items():
        published = [f for f in entry.figures if f.metric == metric]
        ours = [f for f in entry.measured if f.metric == metric]
        title = what.title + (" (low is good)" if what.low_is_good else "")
        for place, figure in enumerate(published):
            absent = "" if ours or place else NOT_MEASURED
            yield title, _value(figure), absent, figure.source, figure.note or ""
        for figure in ours:
            yield title, "" if published else "–", _value(figure), figure.source, figure.note or ""


def _value(figure: Figure) -> str:
    return f"{figure.value:.1f} {METRICS[figure.metric].unit}".rstrip()


def _lines(way: Way) -> list[str]:
    return [f"  {way.command}", *_wrapped(way.note, "      ")]


def _wrapped(words: str, first: str) -> list[str]:
    """Lines of at most ``WIDTH`` columns, those after the first indented like it."""
    return textwrap.wrap(
        words, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), tabsize=1
    )
