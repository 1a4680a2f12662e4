"""zoo report: the page of a run that is done, goes on, was killed, failed, or has hardly begun."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from models import make_model
from runs import TINY, TINY_FINETUNE, TINY_MAE, Run, words, zoo

from eval.run_page import MOST_POINTS, distance_map, distance_profile, series
from eval.run_story import read_story
from pretrain.log import read_log

LOOKS = {"signal.every_steps": "5", "signal.images": "20"}


class Read(HTMLParser):
    """Headings, links and pictures of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self._in_heading = False
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_heading = tag == "h2"
        found = dict(attrs)
        if tag == "a":
            self.links.append(found["href"] or "")
        if tag == "img":
            self.pictures.append(found["alt"] or "")

    def handle_data(self, data: str) -> None:
        if self._in_heading and data.strip():
            self.headings.append(data)
            self._in_heading = False


@pytest.fixture(scope="module")
def distilled(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished TinyMIM run with a live signal."""
    folder = tmp_path_factory.mktemp("runs")
    source = str(make_model(folder / "teacher"))
    settings = {**TINY, **LOOKS, "method.teacher.source": source}
    out = folder / "run"
    assert zoo(words("tinymim-vit-t", photos, out, settings)) == 0
    return out


def told(out: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert zoo(["report", str(out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_finished_run_is_told_whole(
    distilled: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(distilled, capsys)
    assert (found["state"], found["step"], found["steps"]) == ("done", 14, 14)
    assert found["exports"] == ["export"]
    assert found["checkpoints"] == ["step-14", "step-12"]
    rows = read_log(distilled / "log.jsonl")
    looks = [row for row in rows if "signal_images" in row]
    assert found["signal"] == looks[-1]
    assert found["train"] == [row for row in rows if "total" in row][-1]
    cost = sum(row["signal_seconds"] for row in looks) / rows[-1]["seconds"]
    assert found["signal_share"] == pytest.approx(cost)
    page = Path(found["page"])
    read = Read(page)
    assert read.headings == [
        "Training",
        "Live signal",
        "In the folder",
        "The recipe",
        "The machine",
    ]
    assert len(read.pictures) == 2 + 5
    assert all(read.pictures)
    assert {"export", "checkpoints/step-14", "log.jsonl", "exit.json"} <= set(read.links)
    assert all((page.parent / link).exists() for link in read.links)
    text = page.read_text()
    assert str(photos.parent) not in text  # it may be handed on
    assert 'src="http' not in text
    score = looks[-1]["signal_probe@1"], looks[-1]["signal_probe@1_error"]
    assert f"{score[0]:.1f} ± {score[1]:.1f} %" in text


def test_the_same_folder_gives_the_same_page(distilled: Path) -> None:
    pages = []
    for _ in range(2):
        assert zoo(["report", str(distilled)]) == 0
        pages.append((distilled / "run.html").read_bytes())
    assert pages[0] == pages[1]


def test_in_words(distilled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert zoo(["report", str(distilled)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^state +done$", said, re.MULTILINE)
    assert re.search(r"^step +14 of 14$", said, re.MULTILINE)
    assert re.search(r"^error to the teacher +qk \S+, vv \S+$", said, re.MULTILINE)
    assert str(distilled / "run.html") in said


def test_a_run_that_goes_on_is_killed_and_continues(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = {**TINY_MAE, "training.steps": "100000", "signal.every_steps": "null"}
    started = Run(words("mae-vit-t", photos, out, settings))
    try:
        while not (out / "log.jsonl").exists() or not read_log(out / "log.jsonl"):
            assert started.running
            time.sleep(0.02)
        found = told(out, capsys)
        assert started.running
    finally:
        started.kill()
    assert (found["state"], found["steps"], found["signal"]) == ("going on", 100000, None)
    assert "time left, about" in (out / "run.html").read_text()
    found = told(out, capsys)
    assert found["state"] == "killed"
    assert "the same command continues it" in (out / "run.html").read_text()
    assert Read(out / "run.html").headings[:2] == ["Training", "In the folder"]


def test_a_run_that_failed_says_why(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert zoo(words("mae-vit-t", photos, out, {**TINY_MAE, "method.decoder_heads": "5"})) == 2
    found = told(out, capsys)
    assert (found["state"], found["step"], found["train"]) == ("exit 2", 0, None)
    page = (out / "run.html").read_text()
    assert found["error"] in page
    assert "No row of the log has been written yet." in page


def test_a_fine_tuning_keeps_its_own_page(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    validated = {**TINY_FINETUNE, "data.validation": f"folder:{photos}"}
    assert zoo(words("finetune-in1k-vit-s", photos, out, validated)) == 0
    (out / "report.html").write_text("its own")
    found = told(out, capsys)
    assert found["exports"] == ["export", "export-best"]
    assert "val_top1" in found["validation"]
    read = Read(out / "run.html")
    assert read.headings[:2] == ["Training", "Validation"]
    assert "report.html" in read.links
    assert (out / "report.html").read_text() == "its own"


def test_damaged_records_are_left_out(distilled: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    (out / "checkpoints" / "step-9").mkdir(parents=True)
    (out / "checkpoints" / "step-9" / "state.json").write_text("[]")
    (out / "recipe.json").write_bytes((distilled / "recipe.json").read_bytes())
    (out / "log.jsonl").write_bytes((distilled / "log.jsonl").read_bytes()[:-7])
    (out / "exit.json").write_text('{"code": ')
    (out / "quarantine.jsonl").write_text('{"index": 1}\n{"index": 2}\n{"ind')
    story = read_story(out)
    assert (story.state, story.quarantined, story.environment) == ("killed", 2, {})
    assert len(story.train) == 5
    assert [row["step"] for row in story.signal] == [0, 5, 10]  # the torn last line was the fourth
    assert zoo(["report", str(out)]) == 0


@pytest.mark.parametrize("content", [None, "", "[1]", "{"])
def test_what_is_no_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "recipe.json").write_text(content)
    assert zoo(["report", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert not (tmp_path / "run.html").exists()


def test_long_curves_are_thinned_to_their_means() -> None:
    rows = [{"step": step, "total": float(step % 2)} for step in range(5000)]
    steps, values = series(rows, "total")
    assert len(steps) == len(values) == MOST_POINTS
    assert steps == sorted(steps)
    assert values == pytest.approx([0.5] * MOST_POINTS, abs=0.05)
    assert series(rows[:3], "total") == ([0.0, 1.0, 2.0], [0.0, 1.0, 0.0])


def test_the_distances_drawn_are_those_of_the_rows() -> None:
    looks = [
        {"step": step, "signal_attention_distance": [[block + step, block] for block in range(4)]}
        for step in (0, 10, 40, 50)
    ]
    axes = distance_profile(looks).axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}  # type: ignore[call-overload]
    means = {f"step {s}": [block + s / 2 for block in range(4)] for s in (0, 40, 50)}
    assert drawn == means
    mesh = distance_map(looks).axes[0].collections[0].get_array()
    assert mesh is not None
    assert mesh.shape == (4, 4)
    assert mesh[1].tolist() == [1, 6, 21, 26]
