"""What others published of a model, as far as it is comparable with a result of ours.

A figure belongs to one protocol and one metric, and to an input size.  The catalog's figures come
first; ``papers.toml`` has those that it has no place for.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from math import hypot, sqrt
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from eval.results import Result
from zoo.entry import Entry, Figure

_FILE = Path(__file__).with_name("papers.toml")
_STRICT = ConfigDict(extra="forbid", strict=True)
_ACCURACIES = {"top-1", "top-5"}

_Value = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """How files became inputs, as far as a publisher says."""

    __pydantic_config__ = _STRICT

    image_size: int
    """In pixels."""
    crop_pct: float | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One publisher's figures of several models."""

    __pydantic_config__ = _STRICT

    title: str
    date: date
    """Of the tables; where they bear none, when they were read."""
    transform: Inputs
    models: Mapping[str, Mapping[str, _Value]]
    """By the model's name and the metric's key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Papers:
    """The file of published figures."""

    __pydantic_config__ = _STRICT

    format: Literal[1]
    metrics: Mapping[str, tuple[str, str]]
    """Protocol with its version, and metric, by key."""
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        keys = {key for s in self.sources for figures in s.models.values() for key in figures}
        if unknown := keys - self.metrics.keys():
            raise ValueError(f"no such metric: {min(unknown)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One figure, of a result's own model, protocol and metric."""

    value: float
    """In the metric's unit."""
    source: str
    inputs: Inputs
    note: str = ""
    """What sets it apart."""

    def text(self) -> str:
        """Source and inputs in a few words."""
        crop = f", crop {self.inputs.crop_pct:g}" if self.inputs.crop_pct else ""
        how = f"{self.inputs.image_size} px{crop}"
        return ", ".join(filter(None, (self.source, how, self.inputs.interpolation, self.note)))

    def mismatch(self, transform: Mapping[str, Any]) -> int:
        """0: the same inputs, as far as is known; 1: another crop or filter; 2: another size."""
        if transform.get("image_size") != self.inputs.image_size:
            return 2
        stated = {"crop_pct": self.inputs.crop_pct, "interpolation": self.inputs.interpolation}
        return int(any(v is not None and transform.get(k) != v for k, v in stated.items()))


_Cells = Mapping[str, tuple[tuple[str, str], ...]]

CATALOG_CELLS: _Cells = {
    "top1": (("in1k-val@1", "top-1"), ("in1k-finetune@1", "top-1")),
    "a": (("in1k-a@1", "top-1"),),
    "r": (("in1k-r@1", "top-1"),),
    "c": (("in1k-c@1", "mean-error-unnormalised"),),
    "mce": (("in1k-c@1", "mce-alexnet-normalised"),),
    "linear": (("in1k-linear@1", "top-1"),),
    "knn": (("in1k-knn@1", "top-1"),),
    "ade20k": (("ade20k-upernet@1", "mIoU"),),
}
"""Which protocol and metric each metric of the catalog is of."""

_INPUT_SIZE = {"ade20k": 512}
"""Of the metrics that are not taken at the model's own."""

_CAVEATS = {
    ("c", "TinyMIM Table 4"): "that table says mCE; that it is not normalised is inferred",
}
"""By metric and source of the catalog's figures."""


@cache
def papers() -> Papers:
    """The shipped file."""
    return parse_papers(_FILE.read_text("utf-8"))


def parse_papers(text: str) -> Papers:
    """Raises ValueError (pydantic's and tomllib's kinds included)."""
    # By way of JSON, whose arrays are tuples and whose texts are dates to a strict check.
    return TypeAdapter(Papers).validate_json(json.dumps(tomllib.loads(text), default=_as_text))


def _as_text(value: object) -> str:
    if type(value) is not date:
        raise ValueError(f"no key takes a {type(value).__name__}")
    return value.isoformat()


def published(result: Result, metric: str, models: Mapping[str, Entry]) -> list[Published]:
    """What others published of the result's model, by its protocol and in this metric.

    The one to compare comes first: with the result's own inputs, if any has them; of several, the
    catalog's first.  models: the catalog.  A model is known by ``details["published_as"]``, where
    its card says whose figures are its own, or else by its name.
    """
    stated = result.details.get("published_as")
    name = stated if isinstance(stated, str) and stated else result.model
    cell = (result.protocol, metric)
    found = [*_of_catalog(name, cell, models), *_of_papers(name, cell, models)]
    return sorted(found, key=lambda one: one.mismatch(result.transform))


def _of_catalog(
    name: str, cell: tuple[str, str], models: Mapping[str, Entry]
) -> Iterator[Published]:
    for entry in _entries(name, models):
        for figure in entry.figures:
            size = _INPUT_SIZE.get(figure.metric, entry.network.image_size)
            inputs = Inputs(image_size=size)
            if cell in CATALOG_CELLS[figure.metric] and not _by_other_rules(figure):
                note = figure.note or _CAVEATS.get((figure.metric, figure.source), "")
                yield Published(value=figure.value, source=figure.source, inputs=inputs, note=note)


def _by_other_rules(figure: Figure) -> bool:
    # in1k-linear is MAE's protocol.  DINO and others train their linear classifiers otherwise.
    return figure.metric == "linear" and not figure.source.startswith("MAE")


def _of_papers(
    name: str, cell: tuple[str, str], models: Mapping[str, Entry]
) -> Iterator[Published]:
    names = [_plain(name), *(entry.name for entry in _entries(name, models))]
    table = papers()
    for source in table.sources:
        for model in dict.fromkeys(names):
            for key, value in source.models.get(model, {}).items():
                if table.metrics[key] == cell:
                    title = f"{source.title}, {source.date}"
                    yield Published(value=value, source=title, inputs=source.transform)


def _entries(name: str, models: Mapping[str, Entry]) -> Iterator[Entry]:
    """The catalog's entries of a model's name, or of the repository it was pulled from."""
    for entry in models.values():
        repository = entry.hosted.repository if entry.hosted else ""
        if name == entry.name or _plain(name) == _plain(repository):
            yield entry


def published_names(models: Mapping[str, Entry]) -> set[str]:
    """The models that have figures, by the names they go by.  models: the catalog."""
    in_papers = {name for source in papers().sources for name in source.models}
    return in_papers | {entry.name for entry in models.values() if entry.figures}


def _plain(name: str) -> str:
    """timm's own repositories by timm's names; another's copy of one is not the same model."""
    return name.removeprefix("timm/").removeprefix("hf-hub:timm/")


def error_of_difference(
    ours: float, figure: Published, *, metric: str, standard_error: float, samples: int
) -> float:
    """Standard error of ours − published, in points; 0 where neither has one.

    No paper states an error.  Of an accuracy it is taken to be binomial over as many images as
    ours; of another metric, as large as ours.  The two are combined as if they were independent.
    They are of the same images, and so their difference is known better than that: what looks
    significant here is.
    """
    share = min(figure.value / 100, 1)
    binomial = 100 * sqrt(share * (1 - share) / samples) if samples else 0
    return hypot(standard_error, binomial if metric in _ACCURACIES else standard_error)


def sources_of(figures: Sequence[Published]) -> str:
    """``35.9 (MAE paper, robustness)``, for those that are not compared."""
    return ", ".join(f"{figure.value} ({figure.source})" for figure in figures)
