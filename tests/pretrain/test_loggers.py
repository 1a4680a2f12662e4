"""Where rows go: TensorBoard and W&B show what ``log.jsonl`` holds, once each, kills or not."""

import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import TINY_MAE, Run, outcome, run, with_variables, words, zoo
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from pretrain.log import read_log

LOOKS = {"signal.every_steps": "5", "signal.images": "20"}
KEY = "local-" + "0123456789abcdef" * 2 + "01234567"
"""Of the right shape, and no account's."""
OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_API_KEY": KEY,
    "WANDB_ERROR_REPORTING": "false",
}


def board(out: Path) -> dict[str, list[int]]:
    """Of each curve in TensorBoard, the steps that it shows."""
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def interrupted(command: list[str], out: Path, *, beyond: bytes, **settings) -> None:
    """kill -9 once the log holds these bytes, then run to the end."""
    started = Run(command, **settings)
    while not (out / "log.jsonl").exists() or beyond not in (out / "log.jsonl").read_bytes():
        assert started.running
        time.sleep(0.01)
    started.kill()
    assert run(command, **settings) == [0]


LONG = {**TINY_MAE, **LOOKS, "training.steps": "30", "training.save_every_steps": "7"}
TRAIN_STEPS, LOOK_STEPS = list(range(3, 31, 3)), list(range(0, 31, 5))


def test_tensorboard_shows_every_row_once(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(words("mae-vit-t", photos, out, LONG), out, beyond=b'"step": 12')
    curves = board(out)
    assert curves["train/total"] == curves["train/lr"] == TRAIN_STEPS
    assert curves["signal/rankme"] == curves["signal/probe@1_error"] == LOOK_STEPS
    blocks = [tag for tag in curves if tag.startswith("signal/attention_distance/")]
    assert len(blocks) == int(TINY_MAE["student.depth"])
    assert not [tag for tag in curves if "step" in tag.split("/")]


def test_loggers_do_not_reach_weights_nor_log_and_may_change(photos: Path, tmp_path: Path) -> None:
    for name, loggers in (("none", "[]"), ("board", "[tensorboard]")):
        command = words("mae-vit-t", photos, tmp_path / name, TINY_MAE)
        assert zoo([*command, f"training.loggers={loggers}"]) == 0
        assert (tmp_path / name / "tensorboard").exists() is (name == "board")
    assert outcome(tmp_path / "none") == outcome(tmp_path / "board")
    again = words("mae-vit-t", photos, tmp_path / "none", TINY_MAE)
    assert zoo([*again, 'training.loggers=["tensorboard"]']) == 0


def test_an_unknown_logger_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words("mae-vit-t", photos, tmp_path / "run", TINY_MAE)
    assert zoo([*command, "training.loggers=[tensorboard, mlflow]"]) == 2
    assert "Literal['tensorboard', 'wandb']" in capsys.readouterr().err


def records(out: Path) -> Iterator[Record]:
    """All that W&B's files below a run folder hold, in order of their start."""
    for file in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for data in _leveldb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            yield record


def _leveldb_records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format: blocks of 32 KiB, of chunks with a 7-byte header, after one of W&B's.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


def history(out: Path) -> list[dict[str, float]]:
    """The rows that W&B holds."""
    rows = []
    for record in records(out):
        if record.HasField("history"):
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            rows.append({"step": row["_step"], **row})
    return rows


def test_wandb_has_every_row_once_under_one_id(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**LONG, "training.loggers": "[wandb]"}
    prepare = with_variables(OFFLINE)
    command = words("mae-vit-t", photos, out, settings)
    interrupted(command, out, beyond=b'"step": 12', prepare=prepare)
    assert len(list(out.glob("wandb/offline-run-*"))) == 1
    begun = [record.run for record in records(out) if record.HasField("run")]
    sent = json.loads((out / "wandb.json").read_bytes())
    assert {one.run_id for one in begun} == {sent["id"]}
    config = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert config["student.width"] == 24
    rows = history(out)
    assert [row["step"] for row in rows] == sorted({*TRAIN_STEPS, *LOOK_STEPS})
    assert [row["step"] for row in rows if "train/total" in row] == TRAIN_STEPS
    assert [row["step"] for row in rows if "signal/rankme" in row] == LOOK_STEPS
    logged = {row["step"]: row for row in read_log(out / "log.jsonl") if "total" in row}
    for row in rows:
        if "train/total" in row:
            assert row["train/total"] == logged[row["step"]]["total"]
    for file in out.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
    undisturbed = words("mae-vit-t", photos, tmp_path / "plain", LONG)
    assert run(undisturbed) == [0]
    assert outcome(out) == outcome(tmp_path / "plain")


def test_its_process_goes_with_a_killed_run(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**LONG, "training.loggers": "[wandb]", "training.steps": "4000"}
    prepare = with_variables(OFFLINE)
    started = Run(words("mae-vit-t", photos, out, settings), prepare=prepare)
    while not (out / "log.jsonl").exists() or b'"step": 6' not in (out / "log.jsonl").read_bytes():
        assert started.running
        time.sleep(0.01)
    pid = started.processes[0].pid
    assert _servers_of(pid)
    started.kill()
    deadline = time.monotonic() + 30
    while _servers_of(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _servers_of(pid: int | None) -> list[str]:
    """W&B's own processes that were started for this one: they are told its number."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"wandb-core" in arguments[0] and str(pid).encode() in arguments:
            found.append(place.parent.name)
    return found


def test_without_an_account_it_says_what_to_do(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    command = words("mae-vit-t", photos, tmp_path / "run", TINY_MAE)
    assert zoo([*command, "training.loggers=[tensorboard, wandb]"]) == 2
    said = capsys.readouterr().err
    assert "W&B does not know who you are" in said
    assert "WANDB_MODE=offline" in said
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert zoo(command) == 0  # nothing was spoilt


def test_without_the_package_it_says_what_to_install(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """A folder called wandb, such as W&B leaves wherever it ran, is no package."""
    others = [d for d in importlib.metadata.distributions() if d.name != "wandb"]
    monkeypatch.setattr(
        importlib.metadata.Distribution,
        "discover",
        lambda name=None, **_: iter([d for d in others if d.name == name]),
    )
    (tmp_path / "wandb").mkdir()
    monkeypatch.chdir(tmp_path)
    command = words("mae-vit-t", photos, tmp_path / "run", TINY_MAE)
    assert zoo([*command, "training.loggers=[wandb]"]) == 2
    assert 'pip install "tinyzoo[wandb]"' in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.slow
def test_a_server_that_does_not_answer_costs_seconds_and_no_row(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    nobody = {**OFFLINE, "WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    began = time.monotonic()
    command = words("mae-vit-t", photos, out, {**LONG, "training.loggers": "[wandb]"})
    assert run(command, prepare=with_variables(nobody)) == [0]
    assert time.monotonic() - began < 60
    assert [row["step"] for row in history(out) if "train/total" in row] == TRAIN_STEPS
