"""What a model says about itself: the typed record, ``zoo.json``."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from zoo.errors import IntegrityError
from zoo.files import sha256_of

FORMAT = 1
TEACHER, BASE = "teacher", "base"
"""How the parts of ``Card.licenses`` begin that speak of ancestors."""
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """What a file of the folder must be."""

    __pydantic_config__ = _STRICT

    sha256: str
    size: int


def record_of(path: Path) -> FileRecord:
    """What a file holds."""
    return FileRecord(sha256=sha256_of(path), size=path.stat().st_size)


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
    ancestors: dict[str, str] = field(default_factory=dict)
    """Licences of the weights of the teacher's own teachers, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseRecord:
    """The network that a fine-tuned one began as."""

    __pydantic_config__ = _STRICT

    name: str
    digest: str
    """The base's model digest."""
    license: str
    """Of the base's weights, as its folder states it."""
    method: str = ""
    """How it was pre-trained; empty where its folder does not say."""
    ancestors: dict[str, str] = field(default_factory=dict)
    """Licences of the weights that the base was made from, as its own ``Card.licenses`` has them:
    by ``teacher NAME`` or ``base NAME``."""

    @property
    def licenses(self) -> dict[str, str]:
        """Its part, and its ancestors', of the ``licenses`` of what was fine-tuned from it."""
        return {f"{BASE} {self.name}": self.license, **self.ancestors}


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One measured value, with what it depends on."""

    __pydantic_config__ = _STRICT

    protocol: str
    """Name and version, such as ``knn@1``."""
    metric: str
    value: float
    """Accuracies in percent."""
    standard_error: float
    samples: int
    data: str
    """Name of the data folder."""
    data_fingerprint: str
    settings: dict[str, Any] = field(default_factory=dict)
    """The protocol's own."""
    transform: dict[str, Any] = field(default_factory=dict)
    """Preprocessing as resolved."""
    dtype: str = ""
    code_version: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeRecord:
    """What somebody allowed to change in the middle of a run."""

    __pydantic_config__ = _STRICT

    step: int
    """Optimizer steps taken before it."""
    field: str
    """Of the recipe, or of what else must stay: data, ranks, teacher, code."""
    before: Any
    after: Any


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
    classes: int | None = None
    """Of its classifier; null without one.  Their names are in ``config.json``."""
    base: BaseRecord | None = None
    """What it was fine-tuned from."""
    source: dict[str, str] = field(default_factory=dict)
    """Of imported weights: the file's name, sha256 and format, and what else its format tells."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The recipe as resolved."""
    changes: list[ChangeRecord] = field(default_factory=list)
    """Of it and of the data, during the run; the recipe is the last one."""
    steps: int = 0
    """Optimizer steps taken."""
    data_fingerprint: str = ""
    code_version: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    """Empty until something was measured."""
    licenses: dict[str, str] = field(default_factory=dict)
    """Of the ``code``, the ``weights`` and each ``teacher NAME`` and ``base NAME``."""
    repository: str | None = None
    """``org/name`` that it was published as."""
    digest: str = ""
    """sha256 over weights and configuration: the model's identity."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    """Every other file of the folder."""
    format: int = FORMAT

    @property
    def ancestors(self) -> dict[str, str]:
        """Licences of the weights it was made from, by ``teacher NAME`` or ``base NAME``."""
        parts = {
            part: text
            for part, text in self.licenses.items()
            if part.partition(" ")[0] in {TEACHER, BASE}
        }
        return {**parts, **(self.base.licenses if self.base else {})}

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
