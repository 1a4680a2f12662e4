"""What a model says about itself: the typed record (``zoo.json``) and the page (``README.md``)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from pydantic import ConfigDict, TypeAdapter, ValidationError

from zoo.errors import IntegrityError

FORMAT = 1
_OF_EVERY_SOURCE = ("file", "sha256", "format")
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """What a file of the folder must be."""

    __pydantic_config__ = _STRICT

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRecord:
    """The network that a student learned from."""

    __pydantic_config__ = _STRICT

    name: str
    digest: str
    """The teacher's model digest."""
    block: int | None
    """1-based block whose relations or features were the target; null for a convnet."""
    license: str
    """Of the teacher's weights, as its folder states it."""
    relation_heads: int | None = None
    stride: int | None = None
    """Side of a cell of the convnet's stage whose features were the target, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The record of a model folder (``zoo.json``)."""

    __pydantic_config__ = _STRICT

    name: str
    method: str
    heads: int | None
    """Attention heads of every block: weight shapes cannot tell.  Null for a convnet."""
    last_trained_block: int | None
    """1-based; features are read after it.  Null for a convnet."""
    stride: int | None = None
    """Of a convnet's last trained stage, in pixels; null for its last one."""
    fresh_parameters: list[str] = field(default_factory=list)
    """Never trained: fine-tuning initialises them anew."""
    weights: str = "raw"
    """``raw`` or ``ema``."""
    relation_heads: int | None = None
    """How many heads the last block's relations were distilled with, if they were."""
    teacher: TeacherRecord | None = None
    source: dict[str, str] = field(default_factory=dict)
    """Of imported weights: the file's name, sha256 and format, and what else its format tells."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The recipe as resolved."""
    steps: int = 0
    """Optimizer steps taken."""
    data_fingerprint: str = ""
    code_version: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    """Each with its protocol id; empty until something was measured."""
    licenses: dict[str, str] = field(default_factory=dict)
    """Of the code, the weights and each ancestor."""
    digest: str = ""
    """sha256 over weights and configuration: the model's identity."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    """Every other file of the folder."""
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_card(path: Path) -> Card:
    """The record in a ``zoo.json``.  Raises IntegrityError where it is not one."""
    try:
        return TypeAdapter(Card).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"not a model record: {first['msg']}",
            where=f"{path}: {key}" if key else str(path),
            fix="export or fetch the model again",
        ) from error


def readme(card: Card, architecture: str, parameters: int) -> str:
    """The model's page on the Hub: front matter that timm and the Hub read, then the facts."""
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=[
            "timm",
            "image-feature-extraction",
            "self-supervised",
            card.method,
            "convnet" if card.heads is None else "vit",
        ],
        license="other",
        license_name="see-lineage",
        license_link="zoo.json",
        model_name=card.name,
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(
        _paragraphs(card, architecture, parameters)
    )


def _paragraphs(card: Card, architecture: str, parameters: int) -> list[str]:
    token_shape = "(B, tokens, width), class token first"
    shape = "(B, channels, rows, columns)" if card.heads is None else token_shape
    lines = [
        f"# {card.name}",
        _what_it_is(card, architecture, parameters),
        "```python\nimport timm\n\n"
        'model = timm.create_model("local-dir:PATH", pretrained=True).eval()\n'
        f"features = model.forward_features(images)  # {shape}\n```",
    ]
    if card.teacher:
        lines.append(f"Teacher: {_read_at(card.teacher)} (digest `{card.teacher.digest[:12]}`).")
    if card.source:
        what = "{format}; `{file}` (sha256 `{sha256}`)".format_map(card.source)
        lines.append(f"Imported from another project's file: {what}.")
        told = [f"- {k}: {v}" for k, v in card.source.items() if k not in _OF_EVERY_SOURCE]
        if told:
            lines.append("\n".join(told))
    if card.fresh_parameters:
        lines.append(_fresh(card))
    lines.append(_scores(card))
    lines.append(
        "Licences: " + "; ".join(f"{part}: {name}" for part, name in card.licenses.items()) + "."
    )
    lines.append("The full record (recipe, data fingerprint, environment, digests) is `zoo.json`.")
    return lines


def _what_it_is(card: Card, architecture: str, parameters: int) -> str:
    is_vit = card.heads is not None
    kind = "vision transformer" if is_vit else "convolutional network"
    network = f"timm `{architecture}`" + (f", {card.heads} heads" if is_vit else "")
    return (
        f"A {parameters / 1e6:.1f} M-parameter {kind} ({network}), pre-trained with {card.method}"
        + (f" for {card.steps:,} steps" if card.steps else "")
        + f" ({card.weights} weights)."
    )


def _fresh(card: Card) -> str:
    if card.stride:
        return f"Trained up to its stage of stride {card.stride}; what follows is as it was drawn."
    names = ", ".join(f"`{name}`" for name in card.fresh_parameters)
    return (
        f"Trained up to block {card.last_trained_block}. The method does not train {names}: "
        "the last block's output projections are zero, which makes that block an exact "
        "identity, and fine-tuning should initialise these parameters anew."
    )


def _read_at(teacher: TeacherRecord) -> str:
    places = {
        "block {}": teacher.block,
        "cells of {} px": teacher.stride,
        "{} relation heads": teacher.relation_heads,
    }
    stated = [text.format(value) for text, value in places.items() if value]
    return ", ".join([teacher.name, *stated])


def _scores(card: Card) -> str:
    if not card.scores:
        return "Scores: not measured."
    rows = [f"| {s['protocol']} | {s['value']} |" for s in card.scores]
    return "\n".join(["| protocol | value |", "|---|---|", *rows])
