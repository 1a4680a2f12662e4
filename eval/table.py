"""The table of results: one cell a model, protocol and metric, ours beside the paper's.

Cells compare only within a protocol and a metric: ImageNet-C's mCE and its unnormalised mean error
are two columns of figures, never one.
"""

import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.benchmarks import benchmarks, newest
from eval.papers import Published, error_of_difference, published, sources_of
from eval.protocols import PROTOCOLS
from eval.result_files import Found
from eval.results import Result
from zoo.entry import Entry
from zoo.errors import UsageError

BOTH_SCALES = ("mce-alexnet-normalised", "mean-error-unnormalised")
"""Of ImageNet-C: where there is one, the other stands in the table too."""

SHORTEST_DIGEST = 6
"""Digits of a model's digest that stand for the model."""

_SHOWN_DIGEST = 8
_PRECISION = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One value, what others published of it, and what a reader must know of the two."""

    result: Result
    file: Path
    model: str
    """The model's name; where several bear it, with the beginning of its digest."""
    metric: str
    value: float
    standard_error: float | None
    """None where the result states none of this metric."""
    published: tuple[Published, ...]
    """The one to compare first."""
    compared: bool
    """Whether the first is of the same data and input size, by the same rules."""
    variant: str
    """What tells the cell from others of its protocol."""
    standing: str
    """What became of the protocol, where it is not the newest of its name; else empty."""
    remarks: tuple[str, ...]
    """What else is to be said of this cell."""

    @property
    def difference(self) -> float | None:
        """Ours less the published value, in points."""
        return self.value - self.published[0].value if self.compared else None

    @property
    def difference_in_errors(self) -> float | None:
        """The same in standard errors of the difference."""
        if self.difference is None or self.standard_error is None:
            return None
        error = error_of_difference(
            self.value,
            self.published[0],
            metric=self.metric,
            standard_error=self.standard_error,
            samples=self.result.samples,
        )
        return self.difference / error if error else None

    def as_dict(self) -> dict[str, Any]:
        """All of it in plain values; of the file only its name, which may be published."""
        result = self.result
        same = ("model", "model_digest", "protocol", "protocol_digest")
        of = ("samples", "complete", "data", "data_fingerprint", "dtype", "transform", "settings")
        rest = ("seed", "ranks", "seconds", "code_version", "predictions")
        return {
            **{key: getattr(result, key) for key in same},
            "metric": self.metric,
            "value": self.value,
            "standard_error": self.standard_error,
            **{key: getattr(result, key) for key in (*of, *rest)},
            "published": [
                {"value": p.value, "source": p.source, "image_size": p.inputs.image_size}
                | ({"note": p.note} if p.note else {})
                for p in self.published
            ],
            "compared": self.compared,
            "difference": self.difference,
            "difference_in_standard_errors": self.difference_in_errors,
            "variant": self.variant,
            "remarks": list(filter(None, (self.standing, *self.remarks))),
            "file": self.file.name,
        }


def select(
    found: Sequence[Found], *, model: str | None = None, benchmark: str | None = None
) -> list[Found]:
    """The results of a model (its name, or the beginning of its digest) and of a benchmark (of
    any version, or of the one stated).

    Raises UsageError where there is none, with what there is.
    """
    kept = list(found)
    if model is not None:
        kept = [one for one in kept if is_model(one.result, model)]
        _require(kept, "model", model, [one.result.model for one in found])
    if benchmark is not None:
        of_model = kept
        kept = [one for one in of_model if is_benchmark(one.result, benchmark)]
        _require(kept, "benchmark", benchmark, [one.result.protocol for one in of_model])
    return kept


def is_model(result: Result, text: str) -> bool:
    """Whether a name, or the beginning of a digest, is this result's model."""
    by_digest = len(text) >= SHORTEST_DIGEST and result.model_digest.startswith(text)
    return text == result.model or by_digest


def is_benchmark(result: Result, text: str) -> bool:
    """Whether a protocol's name, or its name and version, is this result's."""
    return text in (result.protocol, result.protocol.partition("@")[0])


def _require(
    kept: Sequence[Found], kind: str, text: str, known: Sequence[str], option: str = ""
) -> None:
    if kept:
        return
    names = sorted(set(known))
    close = difflib.get_close_matches(text, names, n=1)
    listed = ", ".join(names[:20]) + (", …" if names[20:] else "")
    raise UsageError(
        f"no result of a {kind} called {text[:80]!r}"
        + (f" (did you mean {close[0]!r}?)" if close else ""),
        where=option or f"--{kind}",
        fix=f"choose one of: {listed}" if names else "run zoo eval first",
    )


def as_published(found: Sequence[Found], names: Mapping[str, str]) -> list[Found]:
    """The same results, those of some models to be compared with another name's figures.

    names: by the model's name, or the beginning of its digest.  Raises UsageError for a model of
    which there is no result.
    """
    renamed = []
    for model in names:
        of_model = [one for one in found if is_model(one.result, model)]
        _require(of_model, "model", model, [o.result.model for o in found], "--published")
    for one in found:
        name = next((n for model, n in names.items() if is_model(one.result, model)), None)
        details = one.result.details | ({"published_as": name} if name else {})
        renamed.append(replace(one, result=replace(one.result, details=details)))
    return renamed


def make_cells(found: Sequence[Found], models: Mapping[str, Entry]) -> list[Cell]:
    """The table's cells, sorted by protocol, metric, model and what tells them apart.

    models: the catalog.
    """
    labels = _labels([one.result for one in found])
    variants = _variants(found)
    cells = [
        _cell(one, metric, value, error, labels, variants[place], models)
        for place, one in enumerate(found)
        for metric, value, error in _values(one.result, models)
    ]
    order = {protocol: place for place, protocol in enumerate(benchmarks())}

    def key(cell: Cell) -> tuple[Any, ...]:
        protocol, metric = cell.result.protocol, cell.metric
        known = PROTOCOLS[protocol].metrics if protocol in PROTOCOLS else ()
        rank = known.index(metric) if metric in known else len(known)
        name = (cell.model.casefold(), cell.model, cell.variant, str(cell.file))
        return order.get(protocol, len(order)), protocol, rank, metric, *name

    return sorted(cells, key=key)


def _values(
    result: Result, models: Mapping[str, Entry]
) -> Iterator[tuple[str, float, float | None]]:
    """Metric, value and standard error: the headline, and what else is compared or must be seen."""
    yield result.metric, result.value, result.standard_error
    known = PROTOCOLS.get(result.protocol)
    for metric in known.metrics if known else ():
        wanted = metric in BOTH_SCALES or published(result, metric, models)
        measured = _measured(result.details.get(metric))
        if metric != result.metric and wanted and measured:
            yield metric, *measured


def _measured(detail: Any) -> tuple[float, float | None] | None:
    """Value and standard error of a metric among a result's details."""
    if isinstance(detail, dict):
        error = _number(detail.get("standard_error"))
        value = _number(detail.get("percent", detail.get("value")))
        return None if value is None else (value, error)
    value = _number(detail)
    return None if value is None else (value, None)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _cell(
    one: Found,
    metric: str,
    value: float,
    error: float | None,
    labels: Mapping[tuple[str, str], str],
    variant: str,
    models: Mapping[str, Entry],
) -> Cell:
    result = one.result
    others = published(result, metric, models)
    obstacle = _obstacle(result, others[0]) if others else ""
    return Cell(
        result=result,
        file=one.file,
        model=labels[result.model, result.model_digest],
        metric=metric,
        value=value,
        standard_error=error,
        published=tuple(others),
        compared=bool(others) and not obstacle,
        variant=variant,
        standing=_standing(result.protocol),
        remarks=(*_remarks(result), *_on_published(result, others, obstacle)),
    )


def _obstacle(result: Result, figure: Published) -> str:
    """Why a figure is not compared; empty if it is."""
    if not result.complete:
        return "the set is incomplete"
    if _has_other_rules(result) or overridden(result):
        return "the rules differ"
    size = result.transform.get("image_size")
    if figure.mismatch(result.transform) == 2:
        return f"ours is at {size} px" if isinstance(size, int) else "our input size is not known"
    return ""


def _on_published(result: Result, figures: Sequence[Published], obstacle: str) -> Iterator[str]:
    if not figures:
        return
    first, *rest = figures
    if obstacle:
        yield f"published: {first.text()}; not compared, {obstacle}"
    elif first.mismatch(result.transform):
        ours = [str(result.transform.get(key)) for key in ("crop_pct", "interpolation")]
        yield f"published: {first.text()}; ours is at crop {', '.join(ours)}"
    else:
        yield f"published: {first.text()}"
    if rest:
        yield f"also published: {sources_of(rest)}"


def _standing(protocol: str) -> str:
    name, _, version = protocol.partition("@")
    latest = newest(name)
    if latest is None:
        return "a protocol that this version of tinyzoo does not know"
    if int(version) < int(latest.id.partition("@")[2]):
        return f"the protocol has moved on to {latest.id}"
    if protocol not in benchmarks():
        return f"of a newer version of tinyzoo: here {latest.id} is the newest"
    return ""


def _remarks(result: Result) -> Iterator[str]:
    """What sets a result apart from what its protocol's name promises."""
    protocol, known = result.protocol, benchmarks().get(result.protocol)
    if _has_other_rules(result):
        yield f"scored by other rules than {protocol} has here: the protocol's digest differs"
    elif known and not result.protocol_digest:
        yield "does not state its protocol's digest"
    if not result.complete:
        due = _due(protocol)
        of = f" of {due:,}" if result.samples < due else ""
        yield f"an incomplete set: {result.samples:,}{of} images"
    if override := result.settings.get("transform"):
        yield f"not the protocol's transform but {override}"
    precision = PROTOCOLS[protocol].precision if protocol in PROTOCOLS else _PRECISION
    if result.dtype != precision:
        yield f"in {result.dtype}, not {precision}"


def _due(protocol: str) -> int:
    """Images that the complete set has scored; 0 where that is not known."""
    known = PROTOCOLS.get(protocol)
    if not (known and known.images) or known.labels == "sets":  # some have none, and do not count
        return 0
    return known.images[0] * max(len(known.parts), 1)


def overridden(result: Result) -> bool:
    """Whether it was trained or scored otherwise than its protocol says: of a segmentation."""
    of_segmentation = {"from_scratch", "split"} & result.settings.keys()
    return bool(of_segmentation) or any("." in key for key in result.settings)


def _has_other_rules(result: Result) -> bool:
    known = benchmarks().get(result.protocol)
    return bool(known and result.protocol_digest and known.digest != result.protocol_digest)


def _labels(results: Sequence[Result]) -> dict[tuple[str, str], str]:
    """How models are called, by name and digest: names that several bear, with the digest."""
    models = {(result.model, result.model_digest) for result in results}
    bearers = Counter(name for name, _ in models)
    return {
        (name, digest): f"{name} ({digest[:_SHOWN_DIGEST]})" if bearers[name] > 1 else name
        for name, digest in models
    }


def _variants(found: Sequence[Found]) -> list[str]:
    """What tells each result from the others of its protocol.

    Settings, data and seed that differ within a protocol; preprocessing that differs within a
    model, for each has its own; and the file, where nothing else does.
    """
    parts: list[list[str]] = [[] for _ in found]
    for places in _grouped(found, lambda r: (r.protocol,)):
        results = [found[place].result for place in places]
        for place, text in zip(places, _differences([r.settings for r in results]), strict=True):
            parts[place] += text
        for place, text in zip(places, _data_names(results), strict=True):
            parts[place] += text
        seeds = _differences([{"seed": r.seed} for r in results])
        for place, text in zip(places, seeds, strict=True):
            parts[place] += text
    of_model = lambda r: (r.protocol, r.model, r.model_digest)  # noqa: E731
    for places in _grouped(found, of_model):
        texts = _differences([found[place].result.transform for place in places])
        types = _differences([{"": found[place].result.dtype} for place in places])
        for place, text, dtype in zip(places, texts, types, strict=True):
            parts[place] += [*text, *dtype]
        if len({tuple(parts[place]) for place in places}) < len(places):
            for place in places:
                file = found[place].file
                parts[place].append(f"{file.parent.name}/{file.name}")
    return [", ".join(part) for part in parts]


def _grouped(
    found: Sequence[Found], key: Callable[[Result], tuple[str, ...]]
) -> Iterator[list[int]]:
    groups = defaultdict(list)
    for place, one in enumerate(found):
        groups[key(one.result)].append(place)
    yield from groups.values()


def _differences(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of each record the keys, with values, in which the records are not all the same."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    varied = [key for key in keys if len({_written(record, key) for record in records}) > 1]
    return [[f"{key} {_written(record, key)}".strip() for key in varied] for record in records]


def _written(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        return "card" if key == "transform" else "not stated"  # said only where it is another
    value = record[key]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _data_names(results: Sequence[Result]) -> list[list[str]]:
    """Of each result its data, where they are not all of the same."""
    if len({(r.data, r.data_fingerprint) for r in results}) == 1:
        return [[] for _ in results]
    prints = defaultdict(set)
    for result in results:
        prints[result.data].add(result.data_fingerprint)
    return [
        [f"{r.data} ({r.data_fingerprint[:_SHOWN_DIGEST]})" if len(prints[r.data]) > 1 else r.data]
        for r in results
    ]
