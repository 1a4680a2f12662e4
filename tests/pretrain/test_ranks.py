"""Ranks by torchrun: the true exit code, and nobody outlives the others."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from faults import assert_error
from runs import POISONED, TINY, TINY_MAE, last_words, outcome, words
from torchruns import ranks_at_work, wait_for_rows

from pretrain import ranks
from zoo.errors import Exit, LostRankError, UsageError, ZooError

SHORT = {**TINY_MAE, "training.steps": "2"}
DISTURBED = {**TINY_MAE, "training.steps": "300", "training.save_every_steps": "20"}
LONG = {**TINY_MAE, "training.steps": "1000000", "training.save_every_steps": "1000000"}


def start(command: list[str], nproc: int = 2) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "zoo", *command, "--nproc", f"{nproc}"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def descendants(pid: int) -> set[int]:
    """Every living process below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found, grown = {pid}, True
    while grown:
        below = {child for child, parent in parents.items() if parent in found}
        grown = not below <= found
        found |= below
    return found - {pid}


def assert_all_gone(pids: set[int], seconds: float = 35) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_words_of_the_ranks_do_not_start_ranks_again() -> None:
    given = ["pretrain", "--nproc", "2", "x", "a.b=1", "--nproc=2", "--out", "o"]
    given += ["--rendezvous", "--nodes", "--nodes", "2", "--restarts=3"]
    assert ranks._for_ranks(given) == ["pretrain", "x", "a.b=1", "--out", "o"]


@pytest.mark.parametrize(
    "asked", [ranks.Ranks(nproc=2), ranks.Ranks(nodes=2, rendezvous="127.0.0.1")]
)
def test_words_left_by_an_earlier_run_are_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: ranks.Ranks
) -> None:
    """torchrun may fail before a rank is there to take its last words back."""
    stale = {"code": 75, "error": "stopped by a signal", "where": "step 3", "fix": "run it again"}
    (tmp_path / "exit.json").write_text(json.dumps(stale))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LostRankError, match="ended with code 1"):
        ranks.start_ranks(asked, ["pretrain", "x"], tmp_path)


def test_folder_in_use_is_refused_before_any_rank_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with ranks.RunFolder(tmp_path).hold(), pytest.raises(UsageError, match="another run"):
        ranks.start_ranks(ranks.Ranks(nproc=2), ["pretrain", "x"], tmp_path)


@pytest.mark.parametrize(("code", "waits"), [(7, False), (75, False), (8, True), (5, True)])
def test_no_restart_is_waited_for_that_would_come_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, waits: bool
) -> None:
    left = json.dumps({"code": code, "error": "told by a rank", "where": "a rank", "fix": "try"})
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f"#!/bin/sh\necho '{left}' > {tmp_path}/exit.json\nexec sleep 3\n")
    torchrun.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(torchrun))
    began = time.monotonic()
    asked = ranks.Ranks(nproc=2, restarts=9)
    if waits:  # it exits with 0: the restarts brought the run to its end
        ranks.start_ranks(asked, ["pretrain", "x"], tmp_path)
    else:
        with pytest.raises(ZooError, match="told by a rank") as caught:
            ranks.start_ranks(asked, ["pretrain", "x"], tmp_path)
        assert caught.value.code == code
    assert (time.monotonic() - began > 3) == waits


@pytest.mark.parametrize("saved", [True, False])
def test_a_signal_while_a_lost_rank_is_waited_for_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    left = json.dumps({"code": 8, "error": "rank 1 died", "where": "a rank", "fix": "try"})
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f"#!/bin/sh\necho '{left}' > {tmp_path}/exit.json\nexec sleep 60\n")
    torchrun.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(torchrun))
    if saved:
        (tmp_path / "checkpoints" / "step-2").mkdir(parents=True)
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(ZooError, match="stopped by a signal after a rank was lost") as caught:
        ranks.start_ranks(ranks.Ranks(nproc=2, restarts=9), ["pretrain", "x"], tmp_path)
    assert caught.value.code == (Exit.PREEMPTED if saved else Exit.TERMINATED)
    assert last_words(tmp_path)["code"] == caught.value.code


@pytest.mark.slow
def test_ranks_make_a_model(photos: Path, tmp_path: Path) -> None:
    started = start(words("mae-vit-t", photos, tmp_path / "run", SHORT))
    output, errors = started.communicate(timeout=200)
    assert started.returncode == 0, errors
    assert output.count("model folder:") == 1
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()
    assert last_words(tmp_path / "run")["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("where", "code"), [("loss", 7), ("raise", 3)])
def test_true_exit_code_comes_through(photos: Path, tmp_path: Path, where: str, code: int) -> None:
    plain = {k: v for k, v in TINY.items() if not k.startswith("student.")}
    settings = {**plain, "method.sample": "0", "method.where": where, "training.steps": "20"}
    started = start(words(POISONED, photos, tmp_path / "run", settings))
    _, errors = started.communicate(timeout=200)
    assert started.returncode == code, errors
    assert any(line.startswith("error: ") for line in errors.splitlines()[-3:])


@pytest.mark.parametrize(
    ("failures", "says"),
    [
        (
            {"0": {"code": 8, "time": 5}, "1": {"code": -9, "time": 6}},
            "rank 1 was ended by SIGKILL",
        ),
        ({"2": {"code": 1, "time": 5}, "0": {"code": 8, "time": 4}}, "rank 2 exited with 1"),
        ({"1": {"code": -6, "time": 7}, "2": {"code": -11, "time": 6}}, "rank 2 was ended by SIGS"),
        (
            {"0": {"code": 8, "time": 5}, "1": {"code": 8, "time": 5}},
            "rank 2 left early or stopped",
        ),
        (
            {str(rank): {"code": code, "time": 5} for rank, code in enumerate((-15, -9, 8))},
            "rank 1 was ended by SIGKILL",
        ),
        (
            {str(rank): {"code": code, "time": 5} for rank, code in enumerate((8, 8, -15))},
            "rank 2 was ended by SIGTERM",
        ),
        ({"0": {"code": -15, "time": 5}, "2": {"code": 8, "time": 5}}, "rank 1 left early"),
        ({"0": {"code": 8, "time": 5}}, "one of ranks 1, 2 left early or stopped answering"),
        ({}, "the ranks ended with code 1 before they could say why"),
    ],
)
def test_the_first_rank_to_fail(tmp_path: Path, failures: dict, says: str) -> None:
    run = ranks.RunFolder(tmp_path)
    run.failures.write_text(json.dumps(failures))
    error = ranks._reason(run, ranks.Ranks(nproc=3), 1)
    where, fix = str(tmp_path), "the same command continues"
    assert_error(error, Exit.LOST_RANK, what=says, where=where, fix=fix)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "leave", "hang", "stop"])
def test_torchrun_ends_for_a_lost_rank(photos: Path, tmp_path: Path, how: str) -> None:
    plain = {k: v for k, v in TINY.items() if not k.startswith("student.")}
    settings = {
        **plain,
        "method.sample": "0",
        "method.where": how,
        "training.steps": "2000",
        "training.rank_timeout_seconds": "4",
    }
    out = tmp_path / "run"
    started = start(words(POISONED, photos, out, settings))
    wait_for_rows(out, [started])
    below, began = descendants(started.pid), time.monotonic()
    _, errors = started.communicate(timeout=200)
    # torchrun gives a rank that does not end half a minute.
    assert time.monotonic() - began < 60
    assert_all_gone(below)
    told = last_words(out)
    ends = {"kill": "was ended by SIGKILL", "leave": "left early or stopped answering"}
    what, fix = f"rank 1 {ends.get(how, 'stopped answering')}", "the same command continues"
    assert_error(told, Exit.LOST_RANK, what=what, where="rank 0 of 2", fix=fix)
    assert started.returncode == told["code"]
    assert f"error: {told['error']}" in errors


@pytest.mark.slow
def test_signal_reaches_the_ranks_once(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = start(words("mae-vit-t", photos, out, LONG))
    wait_for_rows(out, [started])
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 75, errors
    assert list((out / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_may_signal_every_process(
    photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Each rank then hears of it from the scheduler, and once or twice more from torchrun."""
    out = tmp_path / "run"
    started = start(words("mae-vit-t", photos, out, LONG))
    wait_for_rows(out, [started])
    for pid in [started.pid, *descendants(started.pid)]:
        os.kill(pid, number)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 75, errors
    assert list((out / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed")
    started = start(words("mae-vit-t", photos, out, DISTURBED))
    _, errors = started.communicate(timeout=200)
    assert started.returncode == 0, errors
    return outcome(out)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_restarts_all_and_the_bits_are_the_same(
    photos: Path, tmp_path: Path, undisturbed: dict[str, Any], rank: int
) -> None:
    """Twice, for a third start is where torchrun's own store misleads the ranks."""
    out = tmp_path / "run"
    started = start([*words("mae-vit-t", photos, out, DISTURBED), "--restarts", "2"])
    for rows in (10, 60):
        wait_for_rows(out, [started], rows)
        os.kill(ranks_at_work(out)[rank], signal.SIGKILL)
    _, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors
    assert errors.count("continuing from step") == 2
    assert outcome(out) == undisturbed


@pytest.mark.slow
def test_a_restart_does_not_meet_an_error_that_would_come_again(
    photos: Path, tmp_path: Path
) -> None:
    plain = {k: v for k, v in TINY.items() if not k.startswith("student.")}
    settings = {**plain, "method.sample": "0", "method.where": "loss", "training.steps": "20"}
    command = [*words(POISONED, photos, tmp_path / "run", settings), "--restarts", "2"]
    started = start(command)
    _, errors = started.communicate(timeout=300)
    assert started.returncode == 7, errors
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert "continuing from step" not in errors
    assert errors.count("error: a loss or a gradient is not finite") <= 3  # two ranks, the launcher


@pytest.mark.slow
def test_nobody_outlives_a_torchrun_that_dies_while_they_start(
    photos: Path, tmp_path: Path
) -> None:
    started = start([*words("mae-vit-t", photos, tmp_path / "run", LONG), "--restarts", "1"])
    deadline = time.monotonic() + 60
    while len(below := descendants(started.pid)) < 3:  # torchrun and two ranks
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(next(p for p in below if _parent(p) == started.pid), signal.SIGKILL)
    started.communicate(timeout=60)
    assert_all_gone(below)
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("who", "nproc"), [("torchrun", 1), ("torchrun", 2), ("launcher", 2)])
def test_nobody_outlives_a_killed_parent(
    photos: Path, tmp_path: Path, who: str, nproc: int
) -> None:
    out = tmp_path / "run"
    started = start([*words("mae-vit-t", photos, out, LONG), "--restarts", "1"], nproc)
    wait_for_rows(out, [started])
    below = descendants(started.pid)
    assert len(below) >= 1 + nproc  # torchrun, and the ranks
    torchrun = next(p for p in below if _parent(p) == started.pid)
    os.kill(torchrun if who == "torchrun" else started.pid, signal.SIGKILL)
    started.communicate(timeout=60)
    assert started.returncode == (8 if who == "torchrun" else -signal.SIGKILL)
    assert_all_gone(below)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
