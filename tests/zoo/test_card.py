"""The record of a model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zoo.card import Card, FileRecord, Score, TeacherRecord, read_card
from zoo.errors import IntegrityError

CARD = Card(
    name="tinymim-vit-s",
    method="tinymim",
    heads=6,
    last_trained_block=11,
    fresh_parameters=["blocks.11.norm2.weight"],
    relation_heads=16,
    teacher=TeacherRecord(
        name="mae-vit-b", digest="ab" * 32, block=12, license="cc-by-nc-4.0", relation_heads=12
    ),
    recipe={"training.epochs": 300, "data.crop_scale": [0.2, 1.0]},
    steps=93_600,
    environment={"torch": "2.14"},
    licenses={"code": "Apache-2.0", "weights": "cc-by-nc-4.0", "teacher": "cc-by-nc-4.0"},
    digest="cd" * 32,
    files={"config.json": FileRecord(sha256="ef" * 32, size=10)},
)
SCORE = Score(
    protocol="knn@1",
    metric="top-1",
    value=61.2,
    standard_error=0.78,
    samples=3925,
    data="imagenette",
    data_fingerprint="ab" * 32,
    settings={"neighbours": 20, "pooling": "cls"},
)


def written(folder: Path, record: dict[str, Any] | str | bytes) -> Path:
    path = folder / "zoo.json"
    text = json.dumps(record) if isinstance(record, dict) else record
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("card", [CARD, replace(CARD, teacher=None, name="é", scores=[SCORE])])
def test_there_and_back(tmp_path: Path, card: Card) -> None:
    assert read_card(written(tmp_path, card.to_json())) == card


def test_nan_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        replace(CARD, scores=[replace(SCORE, value=float("nan"))]).to_json()


WRONG = {
    "unknown key": ({"colour": "red"}, "colour"),
    "text for a number": ({"heads": "6"}, "heads"),
    "true for a number": ({"heads": True}, "heads"),
    "fraction for a number": ({"steps": 1.5}, "steps"),
    "number for a text": ({"name": 3}, "name"),
    "a list for a record": ({"files": []}, "files"),
    "a file without size": ({"files": {"a": {"sha256": "0"}}}, "files.a.size"),
    "an unknown key of a file": (
        {"files": {"a": {"sha256": "0", "size": 1, "url": "x"}}},
        "files.a.url",
    ),
    "a score without its samples": ({"scores": [{"protocol": "knn@1"}]}, "scores.0.metric"),
    "a wrong teacher": ({"teacher": {"name": "x"}}, "teacher.digest"),
}


@pytest.mark.parametrize(("changes", "key"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict, key: str) -> None:
    path = written(tmp_path, {**json.loads(CARD.to_json()), **changes})
    with pytest.raises(IntegrityError, match="not a model record") as caught:
        read_card(path)
    assert caught.value.where == f"{path}: {key}"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "<html>", "{}", b"\xff\xfe", "[" * 100_000, '{"name":' * 50_000]
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str | bytes) -> None:
    path = written(tmp_path, text)
    with pytest.raises(IntegrityError, match="not a model record") as caught:
        read_card(path)
    assert str(path) in caught.value.where
