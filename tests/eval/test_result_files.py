"""Which files below a folder are results, whoever wrote them and whatever else lies there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import resultfiles
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from resultfiles import result

import eval.result_files as module
from eval.result_files import find_results, read_results
from eval.results import Result
from zoo.errors import DataError, UsageError

FIRST = ("protocol", "model", "model_digest", "metric", "value", "standard_error", "samples",
         "transform", "settings", "data", "data_fingerprint", "dtype", "seconds",
         "code_version")  # fmt: skip
"""The fields of the first result files."""


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    saved = [result(seed=seed, details={"top-5": 9.5}) for seed in range(3)]
    for one in saved:
        one.save(tmp_path / "deep" / "down")
    found, notes = read_results(tmp_path)
    assert sorted(found, key=lambda r: r.seed) == saved
    assert notes == []


def test_files_of_earlier_and_later_versions_are_read(tmp_path: Path) -> None:
    whole = result().as_dict()
    first = {key: whole[key] for key in FIRST}
    (tmp_path / "a.json").write_text(json.dumps(first))
    (tmp_path / "b.json").write_text(json.dumps({**whole, "seed": 1, "of the future": [1]}))
    found, notes = read_results(tmp_path)
    assert [(r.protocol_digest, r.complete, r.seed) for r in found] == [
        ("", True, 0),
        ("", True, 1),
    ]
    assert notes == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "Expecting value"),
        (json.dumps({**result().as_dict(), "environment": {"\x1b[2J": 3}}), "environment"),
        ("{", "Expecting property"),
        ("[" * 100_000, "recursion"),
        ("\xff", "decode"),
        (json.dumps({"protocol": "a@1", "model_digest": "ab"}), "model: Field required"),
        (json.dumps({**result().as_dict(), "value": "61"}), "value"),
        (json.dumps({**result().as_dict(), "value": float("nan")}), "NaN"),
        (json.dumps(result().as_dict()).replace("82.5", "1e999"), "value"),
        (json.dumps({**result().as_dict(), "standard_error": -1.0}), "below zero"),
        (json.dumps({**result().as_dict(), "samples": -1}), "below zero"),
        (json.dumps({**result().as_dict(), "samples": 10**400}), "samples"),
        (json.dumps({**result().as_dict(), "complete": "yes"}), "complete"),
        (json.dumps({**result().as_dict(), "protocol": "in1k-val"}), "protocol"),
        (json.dumps({**result().as_dict(), "protocol": "in1k val@1"}), "protocol"),
        (json.dumps({**result().as_dict(), "protocol": "in1k-val@0"}), "protocol"),
        (json.dumps({**result().as_dict(), "model": "\x1b[2J"}), "cannot be printed"),
        (json.dumps({**result().as_dict(), "model": "a" * 1001}), "too long"),
        (json.dumps({**result().as_dict(), "settings": {"a": "\u202e"}}), "cannot be printed"),
        (json.dumps({**result().as_dict(), "transform": {"\n": 1}}), "cannot be printed"),
        (json.dumps({**result().as_dict(), "predictions": "../a.parquet"}), "not the name"),
        (json.dumps({**result().as_dict(), "details": {"a": 1}}).replace(": 1}", ": 1e999}"),
         "not finite"),
    ],
)  # fmt: skip
def test_what_is_no_result_is_told_and_left_out(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "odd.json").write_bytes(text.encode("latin-1"))
    result().save(tmp_path)
    found, notes = read_results(tmp_path)
    assert found == [result()]
    assert len(notes) == 1
    assert "odd.json is no result" in notes[0]
    assert what in notes[0]
    assert notes[0].isprintable()


def test_other_peoples_json_is_told_in_one_line(tmp_path: Path) -> None:
    for number, text in enumerate(["[]", "null", "3", "{}", '{"model_digest": 3}']):
        (tmp_path / f"{number}.json").write_text(text)
    found, notes = read_results(tmp_path)
    assert found == []
    assert notes == [f"{tmp_path / '0.json'} and 4 more JSON files: no result of ours"]


def test_what_is_no_file_or_too_large_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(10_000_001)
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".tmp-1-a.json").write_text("{")
    (tmp_path / "b.txt").write_text("{")
    (tmp_path / ".hidden").mkdir()
    result().save(tmp_path / ".hidden")
    found, notes = read_results(tmp_path)
    assert found == []
    assert ["over 10,000,000 bytes" in notes[0], "not a plain file" in notes[1]] == [True, True]
    assert len(notes) == 2


def test_nothing_of_a_files_name_is_obeyed(tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J.json").write_text("{")
    (tmp_path / "\x1b[2K.json").write_text("{}")
    _, notes = read_results(tmp_path)
    assert len(notes) == 2
    assert all(note.isprintable() for note in notes)


def test_folders_do_not_lead_out_through_links(tmp_path: Path) -> None:
    result().save(tmp_path / "elsewhere")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "results" / "loop").symlink_to(tmp_path / "results")
    assert read_results(tmp_path / "results") == ([], [])


def test_a_copy_counts_once_and_another_run_of_the_same_is_another(tmp_path: Path) -> None:
    for place in ("a", "b"):
        result().save(tmp_path / place)
    result(value=83.0).save(tmp_path / "c")
    found, _ = find_results([tmp_path / place for place in ("a", "b", "c", "a")])
    assert [(one.result.value, one.file.parent.name) for one in found] == [(82.5, "a"), (83.0, "c")]


def test_a_file_can_be_named_itself(tmp_path: Path) -> None:
    file = result().save(tmp_path)
    assert [one.file for one in find_results([file])[0]] == [file]


def test_no_folder_is_an_error_and_an_empty_one_is_not(tmp_path: Path) -> None:
    assert read_results(tmp_path) == ([], [])
    with pytest.raises(UsageError, match="no such folder"):
        read_results(tmp_path / "none")
    with pytest.raises(UsageError, match="no such folder"):
        read_results(tmp_path / ("a" * 300))


def test_more_files_than_can_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 2)
    for seed in range(3):
        result(seed=seed).save(tmp_path)
    with pytest.raises(DataError, match="more than 2"):
        read_results(tmp_path)


RECORD = json.dumps(result(details={"top-5": 95.1}).as_dict()).encode()


@examples(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(RECORD) - 1), byte=st.integers(0, 255))
def test_damage_is_never_more_than_a_note(tmp_path: Path, place: int, byte: int) -> None:
    damaged = bytearray(RECORD)
    damaged[place] = byte
    (tmp_path / "a.json").write_bytes(damaged)
    found, notes = read_results(tmp_path)
    assert len(found) + len(notes) == 1


def written_at_once(folder: Path, writers: int, each: int) -> None:
    """Many processes write; meanwhile this one reads, and sees whole results only."""
    script = str(Path(resultfiles.__file__))
    path = os.pathsep.join([*sys.path, str(Path(module.__file__).parents[1])])
    folder.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(folder), str(writer), str(each)],
            env={**os.environ, "PYTHONPATH": path},
        )
        for writer in range(writers)
    ]
    seen: list[int] = []
    while any(process.poll() is None for process in processes):
        found, notes = read_results(folder)
        assert notes == []
        seen.append(len(found))
    assert [process.wait() for process in processes] == [0] * writers
    found, notes = read_results(folder)
    expected = {(f"writer-{w}", seed, 2.5) for w in range(writers) for seed in range(each)}
    assert {(r.model, r.seed, r.seconds) for r in found} == expected
    assert len(found) == len(list(folder.iterdir())) == writers * each
    assert notes == []
    assert seen
    assert all(count <= writers * each for count in seen)


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    written_at_once(tmp_path / "results", writers=3, each=25)


@pytest.mark.slow
def test_eight_writers_of_a_hundred_lose_nothing(tmp_path: Path) -> None:
    written_at_once(tmp_path / "results", writers=8, each=100)


def test_two_writers_of_the_same_evaluation_leave_one_whole_result(tmp_path: Path) -> None:
    script = str(Path(resultfiles.__file__))
    path = os.pathsep.join([*sys.path, str(Path(module.__file__).parents[1])])
    same: dict[str, Any] = {"env": {**os.environ, "PYTHONPATH": path}}
    command = [sys.executable, script, str(tmp_path), "0", "20"]
    processes = [subprocess.Popen(command, **same) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    found, notes = read_results(tmp_path)
    assert (len(found), notes) == (20, [])
    assert all(isinstance(one, Result) for one in found)
