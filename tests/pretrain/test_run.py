"""The run folder: one run at a time, of one recipe, on one data set; stopped and continued."""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from runs import LONG, TINY_MAE, Run, last_words, outcome, run, wait_for_row, words, zoo

from pretrain.log import read_log

SETTINGS = {**TINY_MAE, "training.steps": "8"}


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_finished_run_leaves_its_last_words(finished: Path) -> None:
    assert last_words(finished) == {"code": 0, "error": "", "rank": 0, "step": 8}


def test_finished_run_started_again_changes_nothing(photos: Path, out: Path) -> None:
    files = {p.name: p.read_bytes() for p in (out / "export").iterdir()}
    log = (out / "log.jsonl").read_bytes()
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0
    assert {p.name: p.read_bytes() for p in (out / "export").iterdir()} == files
    assert (out / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("content", ["", '{"name": "mae', "[1, 2]"])
def test_a_recipe_that_cannot_be_read_is_refused(
    photos: Path, out: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "recipe.json").write_text(content)
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 4
    assert "recipe.json" in capsys.readouterr().err


def test_second_run_in_a_folder_is_refused_and_a_third_takes_over(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = Run(words("mae-vit-t", photos, out, LONG))
    wait_for_row(out, first)
    began = time.monotonic()
    assert zoo(words("mae-vit-t", photos, out, LONG)) == 2
    assert time.monotonic() - began < 5
    said = capsys.readouterr().err
    assert f"process {first.processes[0].pid} on {socket.gethostname()}" in said
    assert "--out" in said
    assert first.running
    assert not (out / "exit.json").exists()  # the folder is not the second one's to write in
    first.kill()
    (out / "log.jsonl").unlink()
    third = Run(words("mae-vit-t", photos, out, LONG))
    wait_for_row(out, third)
    third.terminate()
    assert third.wait() == [75]


def test_another_recipe_is_refused_field_by_field(
    photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (out / "recipe.json").read_bytes()
    other = {**SETTINGS, "training.seed": "9", "training.optim.weight_decay": "0.1"}
    assert zoo(words("mae-vit-t", photos, out, other)) == 2
    said = capsys.readouterr().err
    assert "training.seed: 0 → 9" in said
    assert "training.optim.weight_decay: 0.05 → 0.1" in said
    assert "student.width" not in said
    assert (out / "recipe.json").read_bytes() == before
    assert last_words(out)["code"] == 2


def test_what_does_not_reach_the_weights_may_change(photos: Path, out: Path) -> None:
    expected = outcome(out)
    shutil.rmtree(out / "checkpoints" / "step-8")
    settings = {
        **SETTINGS,
        "data.workers": "1",
        "data.max_bad": "5",
        "training.save_every_steps": "5",
        "training.keep_checkpoints": "3",
    }
    assert zoo(words("mae-vit-t", photos, out, settings)) == 0
    assert outcome(out) == expected
    assert json.loads((out / "recipe.json").read_bytes())["data.max_bad"] == 5


def test_a_start_that_failed_does_not_stand_in_the_way(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    wrong = {**TINY_MAE, "method.decoder_heads": "5"}
    assert zoo(words("mae-vit-t", photos, out, wrong)) == 2
    assert "decoder of width" in last_words(out)["error"]
    assert zoo(words("mae-vit-t", photos, out, TINY_MAE)) == 0
    assert zoo(words("mae-vit-t", photos, out, wrong)) == 2
    assert "began otherwise" in last_words(out)["error"]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_terminated_run_continues_to_the_same_bits(
    photos: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    settings = {
        **TINY_MAE,
        "data.workers": str(workers),
        "training.steps": "60",
        "training.save_every_steps": "1000",
    }
    undisturbed = words("mae-vit-t", photos, tmp_path / "undisturbed", settings)
    assert set(run(undisturbed, ranks=ranks)) == {0}
    out = tmp_path / "run"
    command = words("mae-vit-t", photos, out, settings)
    for rows in (3, 10):
        started = Run(command, ranks=ranks)
        wait_for_row(out, started, rows)
        os.kill(started.processes[-1].pid or 0, signal.SIGTERM)  # one rank hears it, all stop
        assert started.wait() == [75] * ranks
        started.wait_gone()
        left = last_words(out)
        assert left["code"] == 75
        assert (out / "checkpoints" / f"step-{left['step']}").is_dir()
        assert 3 * rows <= left["step"] < 60
    assert run(command, ranks=ranks) == [0] * ranks
    assert outcome(out) == outcome(tmp_path / "undisturbed")


def test_a_burst_of_signals_is_one_request(photos: Path, tmp_path: Path) -> None:
    """A scheduler signals every process, and torchrun passes on what it gets."""
    out = tmp_path / "run"
    started = Run(words("mae-vit-t", photos, out, LONG))
    wait_for_row(out, started)
    for _ in range(5):
        os.kill(started.processes[0].pid or 0, signal.SIGTERM)
    assert started.wait(10) == [75]
    assert last_words(out)["code"] == 75


def test_torn_log_is_cut_to_whole_rows(photos: Path, out: Path) -> None:
    expected = outcome(out)
    shutil.rmtree(out / "checkpoints" / "step-8")
    log = out / "log.jsonl"
    with log.open("a") as file:
        file.write('{"step": 8, "tot')
    assert [row["step"] for row in read_log(log)] == [3, 6, 8]
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0
    assert outcome(out) == expected


@pytest.mark.parametrize("left", [0, 1, 40, -3])
def test_log_shorter_than_the_checkpoint_knew_stays_readable(
    photos: Path, out: Path, left: int
) -> None:
    shutil.rmtree(out / "checkpoints" / "step-8")
    log = out / "log.jsonl"
    rows = log.read_bytes().splitlines(keepends=True)[:2]
    log.write_bytes(b"".join(rows)[:left])
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0
    steps = [row["step"] for row in read_log(log)]
    assert steps == ([3, 8] if left == -3 else [8])


def test_run_folder_names_of_any_kind(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / ("ünï 'code' " + "x" * 200)
    settings = {**SETTINGS, "training.steps": "1"}
    assert zoo(words("mae-vit-t", photos, out, settings)) == 0
    link = tmp_path / "link"
    link.symlink_to(out)
    assert zoo(words("mae-vit-t", photos, link, settings)) == 0


def test_place_that_is_no_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert zoo(words("mae-vit-t", photos, tmp_path / "file" / "run", SETTINGS)) in {2, 6}
