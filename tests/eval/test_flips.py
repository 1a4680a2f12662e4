"""What flipped between two results, through the front door, against hand-made cases."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from resultfiles import result, with_predictions
from runs import zoo

from eval.benchmarks import benchmarks
from eval.predictions import read_saved
from eval.result_files import Found, read_result
from zoo.errors import Exit

LABELS = [0, 0, 1, 1, 2, 2, 3, 3]
FIRST = [0, 9, 1, 9, 2, 9, 3, 9]
SECOND = [0, 0, 1, 1, 8, 2, 3, 7]
# 0 both right, 1 won, 2 both, 3 won, 4 lost, 5 won, 6 both, 7 both wrong but differently.
NAMES = [f"img/{n}.jpg" for n in range(7)] + ["=cmd\x1b[2J.jpg"]
DIGESTS = {"a": "aa" * 32, "b": "bb" * 32}


def side(folder: Path, name: str, taken_for: list[int], **changes: Any) -> Path:
    of = {"model": name, "model_digest": DIGESTS[name], "samples": 8}
    kept = {key: changes.pop(key) for key in ("names", "classes", "labels") if key in changes}
    digest = benchmarks()["in1k-val@1"].digest
    given = {"labels": LABELS, "names": NAMES, **kept}
    made = result(**{**of, "protocol_digest": digest, **changes})
    return with_predictions(folder, made, taken_for=taken_for, **given)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two result files in a folder of results."""
    folder = tmp_path / "results"
    return side(folder, "a", FIRST), side(folder, "b", SECOND)


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = zoo(["results", *words])
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    return zoo(["results", *words]), capsys.readouterr().err


def test_what_flipped(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    told = output(capsys, "--diff", *map(str, pair))
    facts = dict(re.findall(r"^(\S.*?) {2,}(\S.*)$", told, re.MULTILINE))
    assert facts["both right"] == "3"
    assert facts["both wrong"] == "1"
    assert facts["won by B"] == "3"
    assert facts["lost by B"] == "1"
    assert facts["another class"] == "5 images, right or wrong"
    # Exact, of 4 flips: 2·(1 + 4)/16.
    assert facts["McNemar"] == "p = 0.625 (exact binomial)"
    # 100·√(4 − 2²/8)/8
    assert facts["B less A"] == "+25.00 ± 23.39 points, paired"
    assert re.search(r"^A  a +50\.00 %$", told, re.MULTILINE)
    assert re.search(r"^B  b +75\.00 %$", told, re.MULTILINE)
    flips = told.partition("flips:\n")[2]
    assert re.findall(r"(won|lost) +(\S+):", flips) == [
        ("won", "img/1.jpg"),
        ("won", "img/3.jpg"),
        ("lost", "img/4.jpg"),
        ("won", "img/5.jpg"),
    ]
    assert "img/1.jpg: tench" in flips
    assert "A ostrich (0.75), B tench (0.75)" in flips
    assert "\x1b" not in told


def test_the_same_as_json_and_the_other_way_round(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    there = json.loads(output(capsys, "--diff", *map(str, pair), "--json"))
    back = json.loads(output(capsys, "--diff", *map(str, pair[::-1]), "--json"))
    assert (there["won"], there["lost"]) == (back["lost"], back["won"]) == ([1, 3, 5], [4])
    assert there["difference"] == -back["difference"] == 25
    assert there["p"] == back["p"] == 0.625
    assert there["standard_error_paired"] == pytest.approx(100 * 3.5**0.5 / 8)
    assert (there["first"]["model"], there["second"]["model"]) == ("a", "b")
    assert [flip["flip"] for flip in there["flips"]] == ["won", "won", "lost", "won"]


def test_models_are_found_by_name_and_by_digest(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(pair[0].parent)
    side(pair[0].parent, "a", FIRST, protocol="in1k-real@1", protocol_digest="")
    by_file = output(capsys, "--diff", *map(str, pair))
    asked = [folder, "--benchmark", "in1k-val"]
    assert output(capsys, *asked, "--diff", "a", "b") == by_file
    assert output(capsys, *asked, "--diff", "aaaaaa", "b" * 10) == by_file
    assert output(capsys, *asked, "--diff", str(pair[0]), "b") == by_file


def test_all_flips_go_into_a_file(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "flips.csv", tmp_path / "flips.json"]
    output(capsys, "--diff", *map(str, pair), *(f"--write={file}" for file in files))
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["flip"], row["index"], row["labels"]) for row in rows] == [
        ("won", "1", "tench"),
        ("won", "3", "goldfish"),
        ("lost", "4", "great white shark"),
        ("won", "5", "great white shark"),
    ]
    assert rows[2]["second"] == "hen"
    assert float(rows[2]["second_confidence"]) == 0.75
    assert len(json.loads(files[1].read_bytes())["flips"]) == 4


def test_only_the_first_ten_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many: dict[str, Any] = {"labels": [1] * 30, "names": None}
    files = [side(tmp_path, "a", [0] * 30, **many), side(tmp_path, "b", [1] * 30, **many)]
    table = tmp_path / "flips.csv"
    told = output(capsys, "--diff", *map(str, files), "--write", str(table))
    assert "first 10 of 30 flips:" in told
    assert len(re.findall(r"^  won ", told, re.MULTILINE)) == 10
    assert "  won   image 0: goldfish" in told
    assert "chi-square with continuity correction, 28.03" in told
    assert len(table.read_text().splitlines()) == 31


def test_classes_of_ones_own_are_called_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own: dict[str, Any] = {"protocol": "mine@1", "protocol_digest": "", "labels": [0, 1]}
    own |= {"names": None, "samples": 2}
    files = [
        side(tmp_path, "a", [1, 1], classes=["ant", "bee\x1b"], **own),
        side(tmp_path, "b", [0, 0], classes=["ant", "bee\x1b"], **own),
    ]
    told = output(capsys, "--diff", *map(str, files))
    assert "image 0: ant\n        A bee\\x1b (0.75), B ant (0.75)" in told
    files = [side(tmp_path / "c", "a", [1, 1], **own), side(tmp_path / "c", "b", [0, 0], **own)]
    assert "image 0: class 0" in output(capsys, "--diff", *map(str, files))


def test_a_model_against_itself(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    told = output(capsys, "--diff", str(pair[0]), str(pair[0]))
    assert "0.00 ± 0.00 points" in told
    assert "p = 1 (exact binomial)" in told
    assert "flips" not in told


@pytest.mark.parametrize(
    ("changes", "code", "what"),
    [
        ({"protocol": "in1k-real@1", "protocol_digest": ""}, 2, "of different protocols"),
        ({"protocol_digest": "00" * 32}, 2, "different versions of the rules"),
        ({"data_fingerprint": "ee" * 32}, 3, "not of the same data"),
        ({"labels": [0, 0, 1, 1, 2, 2, 3, 4]}, 3, "not of the same images"),
        ({"names": [f"{n}" for n in range(8)]}, 3, "other names"),
    ],
)
def test_what_does_not_compare_is_refused(
    pair: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    code: int,
    what: str,
) -> None:
    other = side(tmp_path / "other", "b", SECOND, **changes)
    found, told = refusal(capsys, "--diff", str(pair[0]), str(other))
    assert (found, what in told) == (code, True), told


def test_missing_predictions_are_said(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    of = read_result(pair[1])
    assert of is not None
    replace(of, predictions="").save(pair[1].parent)
    code, told = refusal(capsys, str(pair[1].parent), "--diff", "a", "b")
    assert (code, "no predictions of single images" in told) == (Exit.DATA, True)
    of.save(pair[1].parent)
    pair[1].with_name(of.predictions).unlink()
    code, told = refusal(capsys, str(pair[1].parent), "--diff", "a", "b")
    assert (code, "there is no file of predictions" in told) == (Exit.DATA, True)


def test_predictions_of_another_result_are_refused(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (pair[n].with_suffix(".parquet") for n in (0, 1))
    assert read_saved(first).header.model == "a"
    second.replace(first)
    code, told = refusal(capsys, "--diff", *map(str, pair))
    assert (code, "not those of the result" in told) == (Exit.INTEGRITY, True)


def test_several_results_of_a_model_are_a_question(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = side(pair[0].parent, "b", FIRST, dtype="float16")
    code, told = refusal(capsys, str(other.parent), "--diff", "a", "b")
    assert code == Exit.USAGE
    assert "2 results are meant by 'b'" in told
    assert other.name in told
    output(capsys, str(other.parent), "--diff", "a", str(other))


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--diff", "a", "c"], 2, "no result of a model called 'c'"),
        (["--diff", "a", "b", "--benchmark", "in1k-a"], 2, "called 'a' by in1k-a"),
        (["--diff", "a", "b", "--write", "flips.html"], 2, "no kind of file"),
        (["--diff", "a", "b", "--model", "a"], 2, "takes neither"),
        (["--diff", "a"], 2, "--diff"),
        (["--diff", "a", "odd.json"], 3, "not a result file: it does not claim"),
        (["--diff", "a", "bad.json"], 3, "not a result file: Expecting"),
    ],
)
def test_what_is_asked_wrongly_is_said(
    pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    what: str,
) -> None:
    monkeypatch.chdir(pair[0].parent.parent)
    Path("odd.json").write_text("{}")
    Path("bad.json").write_text("{")
    found, told = refusal(capsys, *words)
    assert (found, what in told) == (code, True), told


def test_found_is_what_was_saved(pair: tuple[Path, Path]) -> None:
    of = read_result(pair[0])
    assert of is not None
    saved = read_saved(Found(result=of, file=pair[0]).file.with_name(of.predictions))
    assert saved.predictions.top5[:, 0].tolist() == FIRST
    assert list(saved.names) == NAMES
