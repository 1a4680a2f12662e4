"""Faults of a run that is alone: each ends with its code, and says what, where and what to do.

Which row of the table in docs/reliability.md each test shows is written there.
"""

import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from faults import (
    assert_error,
    problems_of,
    saved_step,
    slow_save,
    temporaries,
    unprivileged,
)
from models import make_model
from runs import (
    LONG,
    POISONED,
    TINY,
    TINY_MAE,
    Run,
    last_words,
    met_in_step,
    outcome,
    run,
    wait_for_row,
    words,
    zoo,
)

from zoo.errors import Exit

SETTINGS = {**TINY_MAE, "training.steps": "4"}
POISON = {k: v for k, v in TINY.items() if not k.startswith("student.")} | {"method.rank": "0"}


def send_at_open(name: str, number: int) -> None:
    """A signal to this very process when it opens a file whose name ends so."""

    def look(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).endswith(name):
            os.kill(os.getpid(), number)

    sys.addaudithook(look)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_a_signal_before_the_first_step_has_nothing_to_save(
    photos: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "run"
    prepare = partial(send_at_open, "recipe.json", number)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    (tmp_path / "run" / "checkpoints" / "step-2").mkdir(parents=True)
    assert run(words("mae-vit-t", photos, out, SETTINGS), prepare=prepare) == [code]
    if number == signal.SIGINT:  # SIGTERM ends it there and then: a shell sees 143
        told = last_words(out)
        assert_error(told, 130, what="nothing to save", where="before the first", fix="again")


@pytest.mark.parametrize(("signals", "code"), [(2, 75), (3, 143)])
def test_signals_while_it_saves(photos: Path, tmp_path: Path, signals: int, code: int) -> None:
    """The second is ignored; the third ends the run at once, and the save leaves nothing."""
    out, saving = tmp_path / "run", tmp_path / "saving"
    command = words("mae-vit-t", photos, out, {**SETTINGS, "training.save_every_steps": "2"})
    assert run(command) == [0]
    shutil.rmtree(out / "checkpoints" / "step-4")
    started = Run(command, prepare=partial(slow_save, 2.5 if signals == 3 else 1.5, saving))
    while not saving.exists():
        assert started.running
        time.sleep(0.01)
    for _ in range(signals):
        os.kill(started.processes[0].pid or 0, signal.SIGTERM)
        time.sleep(1.05)  # those within a second are one
    # Saved at the last step, it has nothing left to be stopped in.
    assert started.wait(20) == [0 if code == 75 else code]
    assert saved_step(out / "checkpoints") == (4 if code == 75 else 2)
    assert problems_of(out / "checkpoints") == []
    assert bool(temporaries(out)) == (code == 143)
    assert run(command) == [0]
    assert temporaries(out) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_says_so(photos: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "run"
    started = Run(words("mae-vit-t", photos, out, LONG))
    wait_for_row(out, started)
    os.kill(started.processes[0].pid or 0, number)
    assert started.wait(10) == [75]
    told = last_words(out)
    where, fix = f"step {told['step']} of 100000", "run the same command again"
    assert_error(told, Exit.PREEMPTED, what="stopped by a signal", where=where, fix=fix)


def test_a_disk_that_is_too_small_is_refused_before_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert zoo(words("mae-vit-t", photos, tmp_path / "run", SETTINGS)) == 6
    told = last_words(tmp_path / "run")
    assert_error(told, Exit.DISK, what="bytes needed, 1,000 free", where="run", fix="free some")
    assert told["step"] == 0
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_words_that_cannot_be_printed_change_no_exit_code(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the output goes to a file on the very disk that is full."""
    with Path("/dev/full").open("w") as out, Path("/dev/full").open("w") as errors:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", errors)
        assert zoo([*words("mae-vit-t", photos, tmp_path, {"x": "1"}), "--json"]) == 2


def test_all_checkpoints_damaged(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = words("mae-vit-t", photos, out, SETTINGS)
    assert zoo(command) == 0
    for path in (out / "checkpoints").iterdir():
        (path / "state.json").write_text("{}")
    assert zoo(command) == 4
    what, where = "every checkpoint of this run is damaged", "step-2: state.json has other bytes"
    assert_error(last_words(out), Exit.INTEGRITY, what=what, where=where, fix="from a backup")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_learning_rate_that_explodes(photos: Path, tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "run"
    settings = {**SETTINGS, "training.optim.lr_per_256": "1e20", "training.warmup_steps": "0"}
    settings["training.optim.clip_norm"] = "null"
    assert run(words("mae-vit-t", photos, out, settings), ranks=ranks) == [7] * ranks
    told = last_words(out)
    where = f"step {told['step'] + 1}; the state before it is saved as checkpoints/step-"
    assert_error(told, Exit.DIVERGED, what="not finite", where=where, fix="lower the learning")
    assert saved_step(out / "checkpoints") == told["step"]
    batch = json.loads((out / "diverged.json").read_bytes())
    assert batch["step"] == told["step"] + 1
    assert [len(rank["indices"]) for rank in batch["ranks"]] == [8 // ranks] * ranks
    assert all(Path(name).is_file() for rank in batch["ranks"] for name in rank["files"])


def test_a_second_run_in_the_folder(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    first = Run(words("mae-vit-t", photos, out, LONG))
    wait_for_row(out, first)
    assert zoo([*words("mae-vit-t", photos, out, LONG), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    what = f"another run is at work in this folder: process {first.processes[0].pid} on "
    assert_error(told, Exit.USAGE, what=what, where=str(out), fix="another folder with --out")
    first.kill()


def test_a_teacher_that_is_not_there(photos: Path, tmp_path: Path) -> None:
    settings = {**TINY, "method.teacher.source": str(tmp_path / "nowhere")}
    assert zoo(words("tinymim-vit-t", photos, tmp_path / "run", settings)) == 2
    told, where = last_words(tmp_path / "run"), "neither a folder here, nor in the catalog"
    what = f"no model of this name: '{tmp_path / 'nowhere'}'"
    assert_error(told, Exit.USAGE, what=what, where=where, fix="zoo list")


def test_a_teacher_of_other_bytes_than_its_record(photos: Path, tmp_path: Path) -> None:
    teacher = make_model(tmp_path / "teacher")
    weights = teacher / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    settings = {**TINY, "method.teacher.source": str(teacher)}
    assert zoo(words("tinymim-vit-t", photos, tmp_path / "run", settings)) == 4
    told, where = last_words(tmp_path / "run"), "model.safetensors"
    assert_error(told, Exit.INTEGRITY, what="not what its record", where=where, fix="again")
    assert told["step"] is None


def test_out_of_memory_says_what_to_lower(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**POISON, "method.where": "memory", "training.steps": "20"}
    settings |= {"method.sample": str(met_in_step(2))}  # after the first checkpoint
    assert run(words(POISONED, photos, out, settings)) == [1]
    told = last_words(out)
    where, fix = "rank 0 of 1, cpu", "lower training.rank_batch"
    assert_error(told, Exit.BUG, what="out of memory: can't allocate", where=where, fix=fix)
    assert "data.workers" in told["fix"]
    assert [place.name for place in (out / "checkpoints").iterdir()] == ["step-2"]
    assert problems_of(out / "checkpoints") == []


def test_a_bug_is_one_line_and_keeps_its_traceback(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**POISON, "method.where": "bug", "method.sample": "0", "training.steps": "20"}
    assert run(words(POISONED, photos, out, settings)) == [1]
    told = last_words(out)
    what, where = "unexpected: KeyError: 'a bug'", "a bug in tinyzoo"
    assert_error(told, Exit.BUG, what=what, where=where, fix="--debug")
    assert "poisoned_mae.py" in "".join(told["traceback"])


@pytest.mark.parametrize("there", [True, False])
def test_a_place_that_cannot_be_written(photos: Path, tmp_path: Path, there: bool) -> None:
    place = tmp_path / "shelf"
    out = place / "run"
    (out if there else place).mkdir(parents=True)
    (out if there else place).chmod(0o555)
    command, errors = words("mae-vit-t", photos, out, SETTINGS), tmp_path / "errors"
    assert run(command, prepare=partial(unprivileged, errors)) == [6]
    said = errors.read_text()
    assert "error: the place cannot be written to" in said
    assert f"where: {out}" in said
    assert "to do: choose another folder or change its permissions" in said
    (out if there else place).chmod(0o755)
    assert run(command, prepare=partial(unprivileged, errors)) == [0]


def test_a_name_that_is_too_long_or_no_folder(photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    for out, code in ((tmp_path / ("x" * 256), 6), (tmp_path / "file" / "run", 2)):
        assert zoo([*words("mae-vit-t", photos, out, SETTINGS), "--json"]) == code
        told, what = (
            json.loads(capsys.readouterr().out),
            "cannot be written" if code == 6 else "a f",
        )
        assert_error(told, code, what=what, where=str(tmp_path), fix="choose another folder")


def test_a_run_folder_whose_name_is_no_utf8(photos: Path, tmp_path: Path, capsys) -> None:
    """TensorBoard cannot write there."""
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert zoo([*words("mae-vit-t", photos, out, SETTINGS), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert_error(told, Exit.USAGE, what="no UTF-8", where="caf\\xe9", fix="--out")
    assert not out.exists()


def test_the_log_is_cut_anywhere_and_continued(photos: Path, tmp_path: Path) -> None:
    """Beyond the checkpoint, whatever the killed run wrote goes; before it, whole rows stay."""
    whole = tmp_path / "whole"
    settings = {**TINY_MAE, "training.steps": "9"}
    assert zoo(words("mae-vit-t", photos, whole, settings)) == 0
    size = (whole / "log.jsonl").stat().st_size
    for cut in range(1, size, size // 7):
        out = Path(shutil.copytree(whole, tmp_path / f"cut-{cut}"))
        shutil.rmtree(out / "checkpoints" / "step-9")
        os.truncate(out / "log.jsonl", cut)
        assert zoo(words("mae-vit-t", photos, out, settings)) == 0
        steps = [row["step"] for row in outcome(out)["log"]]
        assert steps == sorted(set(steps))
        assert steps[-1] == 9
        assert outcome(out)["log"][-1] == outcome(whole)["log"][-1]
