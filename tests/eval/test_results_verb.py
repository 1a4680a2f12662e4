"""``zoo results`` through the front door: the table, its files, and what goes wrong."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from resultfiles import result
from runs import zoo

from eval.benchmarks import benchmarks
from zoo.errors import Exit

DIGEST = benchmarks()["in1k-val@1"].digest


@pytest.fixture
def results(settings: Any) -> Path:
    """Where ``zoo eval`` writes by default, below the current directory."""
    folder = Path("results")
    result(protocol_digest=DIGEST).save(folder)
    result(protocol_digest=DIGEST, model="mine", model_digest="12" * 32, value=80.0).save(folder)
    result(protocol="ours@1", model="mine", model_digest="12" * 32, value=60.0).save(folder)
    return folder


def test_the_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(["results"]) == 0
    told = capsys.readouterr()
    assert "tinymim-vit-s  82.50 ± 0.17       83.0  −0.50 (−2.1 SE)" in told.out
    assert "a protocol that this version of tinyzoo does not know" in told.out
    assert told.err == ""


def test_one_model_one_benchmark(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["results", "results", "--model", "mine", "--benchmark", "in1k-val", "--json"]
    assert zoo(words) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert (cell["model"], cell["protocol"], cell["value"]) == ("mine", "in1k-val@1", 80.0)


def test_compared_with_a_published_model(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(["results", "--published", "mine=tinymim-vit-t", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    (mine,) = [c for c in cells if c["model"] == "mine" and c["protocol"] == "in1k-val@1"]
    assert mine["difference"] == pytest.approx(80.0 - 75.8)


def test_several_files_at_once(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["t.md", "t.json", "t.csv", "t.html"]
    assert zoo(["results", *(f"--write=out/{name}" for name in names)]) == 0
    assert sorted(file.name for file in Path("out").iterdir()) == sorted(names)
    assert len(json.loads(Path("out/t.json").read_bytes())["cells"]) == 3
    with Path("out/t.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_what_is_left_out_is_said_and_costs_nothing(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "bad.json").write_text("{")
    assert zoo(["results", "--json"]) == 0
    told = capsys.readouterr()
    record = json.loads(told.out)
    assert len(record["cells"]) == 3
    assert "bad.json is no result" in record["notes"][0]
    assert told.err == f"skipped: {record['notes'][0]}\n"


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["none"], 2, "no such folder"),
        (["empty"], 3, "there is no result here"),
        (["--model", "you"], 2, "no result of a model called 'you'"),
        (["--write", "table.xls"], 2, "no kind of file"),
        (["--published", "mine"], 2, "--published MODEL=NAME"),
        (["--published", "mine=tinymim-vit-x"], 2, "did you mean tinymim-vit-"),
        (["--published", "you=tinymim-vit-s"], 2, "no result of a model called 'you'"),
    ],
)
def test_what_goes_wrong_is_said(
    results: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, what: str
) -> None:
    Path("empty").mkdir()
    assert zoo(["results", *words]) == code
    assert what in capsys.readouterr().err
    assert not Path("table.xls").exists()


@pytest.fixture
def too_many(results: Path) -> Path:
    """Results of which no form of the table fits on the disk of ``full_disk``."""
    for seed in range(8):
        settings = {f"k{n}": f"{seed}" * 1000 for n in range(1100)}
        result(model="big", model_digest="34" * 32, settings=settings, seed=seed).save(results)
    return results


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("name", ["t.json", "t.html"])
def test_a_full_disk_leaves_the_results_and_the_earlier_report(
    too_many: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    report = Path("out", name)
    assert zoo(["results", "--model", "mine", "--write", str(report)]) == 0
    earlier = report.read_bytes()
    rows = {file.name: file.read_bytes() for file in too_many.iterdir()}
    assert zoo(["results", "--write", str(report)]) == Exit.DISK
    assert "no space left" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in too_many.iterdir()} == rows
    assert report.read_bytes() == earlier
    assert [file.name for file in report.parent.iterdir()] == [name]
