"""A model's own scores, out of a folder of result files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from eval.results import Result
from zoo.scores import scores_of

DIGEST = "ab" * 32


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "protocol": "knn@1",
        "model": "m",
        "model_digest": DIGEST,
        "metric": "top-1",
        "value": 61.25,
        "standard_error": 0.75,
        "samples": 400,
        "transform": {"image_size": 32},
        "settings": {"pooling": "cls"},
        "data": "photos",
        "data_fingerprint": "cd" * 32,
        "dtype": "float32",
        "seconds": 1.5,
        "code_version": "tinyzoo 0",
    }
    return Result(**{**values, **changes})


def test_results_of_this_model_become_its_scores(tmp_path: Path) -> None:
    result().save(tmp_path)
    result(settings={"pooling": "mean"}, value=63).save(tmp_path)
    result(model_digest="ef" * 32, value=99).save(tmp_path)
    scores, skipped = scores_of(DIGEST, tmp_path)
    assert skipped == []
    assert [(s.settings["pooling"], s.value) for s in scores] == [("cls", 61.25), ("mean", 63.0)]
    assert (scores[0].samples, scores[0].data) == (400, "photos")


def test_no_folder_holds_no_scores(tmp_path: Path) -> None:
    assert scores_of(DIGEST, tmp_path / "none") == ([], [])


def test_the_newest_of_the_same_evaluation_counts(tmp_path: Path) -> None:
    result(value=2).save(tmp_path / "new")
    old = result(value=1).save(tmp_path)
    new = (tmp_path / "new" / old.name).rename(tmp_path / "a.json")
    os.utime(old, ns=(0, 0))
    scores, _ = scores_of(DIGEST, tmp_path)
    assert [score.value for score in scores] == [2]
    os.utime(new, ns=(0, 0))
    os.utime(old)
    scores, _ = scores_of(DIGEST, tmp_path)
    assert [score.value for score in scores] == [1]


def test_another_transform_is_another_evaluation(tmp_path: Path) -> None:
    result(transform={"image_size": 32}, value=1).save(tmp_path)
    result(transform={"image_size": 64}, value=2).save(tmp_path)
    scores, _ = scores_of(DIGEST, tmp_path)
    assert {score.value for score in scores} == {1, 2}


def test_what_the_record_says_stays_until_it_is_measured_anew(tmp_path: Path) -> None:
    result(value=1).save(tmp_path / "before")
    known, _ = scores_of(DIGEST, tmp_path / "before")
    assert scores_of(DIGEST, tmp_path / "none", known) == (known, [])
    result(value=2).save(tmp_path)
    scores, _ = scores_of(DIGEST, tmp_path, known)
    assert [score.value for score in scores] == [2]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "Expecting"),
        ("[" * 100_000, "recursion"),
        (json.dumps({"model_digest": DIGEST}), "protocol"),
        (json.dumps({**result().as_dict(), "value": "61"}), "value"),
        (json.dumps({**result().as_dict(), "samples": 1.5}), "samples"),
        (json.dumps({**result().as_dict(), "value": float("nan")}), "NaN"),
    ],
)
def test_what_is_no_result_is_told_and_left_out(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    result().save(tmp_path)
    scores, skipped = scores_of(DIGEST, tmp_path)
    assert len(scores) == 1
    assert len(skipped) == 1
    assert "odd.json is no result" in skipped[0]
    assert what in skipped[0]


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"model_digest": 3}', "{}"])
def test_other_peoples_json_is_none_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    assert scores_of(DIGEST, tmp_path) == ([], [])
