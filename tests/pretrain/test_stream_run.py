"""Whole runs on streamed shards: continued to the same bits, and stopped in clear words."""

import functools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from runs import TINY_FINETUNE, TINY_MAE, Run, last_words, outcome, run, stderr_to, words, zoo
from shards import Failure, Web, serve, write_shards

from pretrain.pack import pack
from pretrain.shards import open_shards

FINETUNE = "finetune-in1k-vit-t"
SETTINGS = {**TINY_MAE, "training.steps": "8", "data.shuffle_buffer": "9"}


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    assert pack(photos, out, shard_bytes=12_000).shards >= 4
    return out


@pytest.fixture
def web(packed: Path) -> Iterator[Web]:
    with serve(packed) as server:
        yield server


def epochs(settings: dict[str, str]) -> dict[str, str]:
    """The same settings with the length in epochs, which packed shards know."""
    kept = {k: v for k, v in settings.items() if not k.endswith("steps")}
    return {**kept, "training.epochs": "2", "training.warmup_epochs": "1"}


def test_epochs_of_packed_shards_are_those_of_their_folder(
    photos: Path, packed: Path, tmp_path: Path
) -> None:
    settings = {**epochs(SETTINGS), "training.log_every_steps": "1"}
    folder = {k: v for k, v in settings.items() if k != "data.shuffle_buffer"}
    assert zoo(words("mae-vit-t", photos, tmp_path / "folder", folder)) == 0
    assert zoo(words("mae-vit-t", f"wds:{packed}", tmp_path / "stream", settings)) == 0
    one, other = (outcome(tmp_path / name)["log"] for name in ("folder", "stream"))
    assert [(row["step"], row["lr"]) for row in one] == [(row["step"], row["lr"]) for row in other]
    assert len(one) == 2 * (36 // 8)


def test_without_an_index_the_length_is_asked_for(tmp_path: Path) -> None:
    source = f"wds:{write_shards(tmp_path / 'shards', [9, 9])}"
    out = tmp_path / "run"
    for missing in ("training.steps", "training.warmup_steps"):
        settings = {k: v for k, v in SETTINGS.items() if k != missing}
        assert zoo(words("mae-vit-t", source, out, settings)) == 2
        assert "training.steps and training.warmup_steps" in last_words(out)["fix"]
    assert zoo(words("mae-vit-t", source, out, SETTINGS)) == 0


def test_another_number_of_workers_continues_and_is_told(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(words("mae-vit-t", f"wds:{packed}", out, SETTINGS)) == [0]
    shutil.rmtree(out / "checkpoints" / "step-8")
    shutil.rmtree(out / "export")
    more = {**SETTINGS, "data.workers": "2"}
    told = tmp_path / "stderr"
    aside = functools.partial(stderr_to, told)
    assert run(words("mae-vit-t", f"wds:{packed}", out, more), prepare=aside) == [0]
    said = told.read_text()
    assert "bits may differ" in said
    assert "readers of shards: '1' → '2'" in said
    assert (out / "export").is_dir()


@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoints_tell_what_was_counted(tmp_path: Path, ranks: int) -> None:
    shards, out = write_shards(tmp_path / "shards", [9, 5, 9, 9]), tmp_path / "run"
    settings = {**SETTINGS, "training.steps": "20", "training.save_every_steps": "10"}
    settings |= {"training.keep_checkpoints": "9"}
    command = words("mae-vit-t", f"wds:{shards}", out, settings)
    assert set(run(command, ranks=ranks)) == {0}
    before = outcome(out)
    counts = {"0": 9, "1": 5, "2": 9, "3": 9}
    for step in (10, 20):
        state = json.loads((out / "checkpoints" / f"step-{step}" / "state.json").read_bytes())
        assert state["notes"]["shard_counts"].items() <= counts.items()
    assert state["notes"]["shard_counts"] == counts
    shutil.rmtree(out / "checkpoints" / "step-20")
    shutil.rmtree(out / "export")
    assert set(run(command, ranks=ranks)) == {0}
    assert outcome(out) == before


def test_one_worker_reads_as_none_does(packed: Path, tmp_path: Path) -> None:
    for workers in ("0", "1"):
        settings = {**SETTINGS, "data.workers": workers}
        assert run(words("mae-vit-t", f"wds:{packed}", tmp_path / workers, settings)) == [0]
    assert outcome(tmp_path / "0") == outcome(tmp_path / "1")


def test_uneven_ranks_end_together_and_too_many_are_refused(tmp_path: Path) -> None:
    source = f"wds:{write_shards(tmp_path / 'shards', [1, 17])}"
    assert run(words("mae-vit-t", source, tmp_path / "two", SETTINGS), ranks=2) == [0, 0]
    out = tmp_path / "three"
    uneven = {**SETTINGS, "training.global_batch": "12"}
    assert 2 in run(words("mae-vit-t", source, out, uneven), ranks=3)
    assert "2 shards are too few for 3 ranks" in last_words(out)["error"]


def test_other_shards_are_refused(packed: Path, tmp_path: Path) -> None:
    out, shards = tmp_path / "run", tmp_path / "shards"
    shutil.copytree(packed, shards)
    settings = {**SETTINGS, "training.steps": "2"}
    assert zoo(words("mae-vit-t", f"wds:{shards}", out, settings)) == 0
    shutil.rmtree(shards)
    shutil.copytree(packed, shards)
    assert zoo(words("mae-vit-t", f"wds:{shards}", out, settings)) == 0
    info = json.loads((shards / "_info.json").read_bytes())
    split = info["splits"]["train"]
    for field in ("filenames", "shard_lengths", "shard_bytes", "shard_sha256"):
        split[field].pop()
    (shards / "_info.json").write_text(json.dumps(info))
    next(iter(sorted(shards.glob("*.tar"), reverse=True))).unlink()
    assert zoo(words("mae-vit-t", f"wds:{shards}", out, settings)) == 2
    assert "data_fingerprint" in last_words(out)["error"]


def test_damaged_images_are_listed_by_shard_and_member(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [9, 9, 9], bad=(4, 20))
    for workers in ("0", "2"):
        out = tmp_path / workers
        settings = {**SETTINGS, "data.workers": workers, "training.steps": "12"}
        assert run(words("mae-vit-t", f"wds:{shards}", out, settings)) == [0]
        lines = (out / "quarantine.jsonl").read_text().splitlines()
        found = {json.loads(line)["file"] for line in lines}
        assert found == {f"{shards}/000.tar: 0004.jpg", f"{shards}/002.tar: 0020.jpg"}
        assert len(lines) == 2
    strict = {**SETTINGS, "data.max_bad": "1", "training.steps": "12"}
    assert zoo(words("mae-vit-t", f"wds:{shards}", tmp_path / "strict", strict)) == 3
    assert "the limit is 1" in last_words(tmp_path / "strict")["error"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_goes_away_ends_the_run_with_its_state(
    web: Web, tmp_path: Path, workers: int
) -> None:
    settings = {
        **SETTINGS,
        "data.workers": str(workers),
        "training.steps": "40",
        "training.save_every_steps": "1",
    }
    source, out = f"wds:{web.address}/", tmp_path / "run"
    # The workers are at most 16 batches ahead of the first checkpoint: they will need more.
    checkpoints, down = out / "checkpoints", Failure(status=503)
    web.fail = lambda method, path, number: down if any(checkpoints.glob("step-*")) else None
    assert run(words("mae-vit-t", source, out, settings), prepare=impatient) == [5]
    left = last_words(out)
    assert "6 times in a row: status 503" in left["error"]
    assert ".tar at byte " in left["where"]
    assert "same command continues" in left["fix"]
    assert left["step"] > 0
    assert (out / "checkpoints" / f"step-{left['step']}").is_dir()
    web.fail = lambda method, path, number: None
    assert run(words("mae-vit-t", source, out, settings)) == [0]
    undisturbed = words("mae-vit-t", source, tmp_path / "undisturbed", settings)
    assert run(undisturbed) == [0]
    assert outcome(out) == outcome(tmp_path / "undisturbed")


def impatient() -> None:
    import pretrain.remote

    pretrain.remote.PATIENCE = pretrain.remote.Patience(first_wait_seconds=0.01)


def test_what_reads_by_number_takes_no_stream(packed: Path, photos: Path, tmp_path: Path) -> None:
    out, stream = tmp_path / "run", f"wds:{packed}"
    assert zoo(words("mae-vit-t", stream, out, {**SETTINGS, "data.validation": stream})) == 2
    assert "is a stream" in last_words(out)["error"]
    settings = {**TINY_FINETUNE, "data.validation": f"folder:{photos}"}
    assert zoo(words(FINETUNE, stream, out, settings)) == 2
    assert "reads its images by number" in last_words(out)["error"]
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 2  # a buffer, and no stream
    assert zoo(words("mae-vit-t", "wds:", out, SETTINGS)) == 2


def test_secrets_reach_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for address in ("https://me:hunter2@host/a.tar", "https://host/a.tar?signature=hunter2"):
        out = tmp_path / "run"
        assert zoo(words("mae-vit-t", f"wds:{address}", out, SETTINGS)) == 2
        shown = capsys.readouterr()
        assert "netrc" in shown.err
        assert "hunter2" not in shown.err + shown.out
        assert not out.exists()
    assert not [f for _, _, files in os.walk(tmp_path) for f in files]


def test_packing_killed_and_started_again_leaves_no_litter(tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "shards"
    folder.mkdir()
    content = np.random.default_rng(0).bytes(20_000)
    for number in range(1500):
        (folder / f"{number:04}.jpg").write_bytes(content)
    command = ["data", "pack", str(folder), "--out", str(out), "--shard-size-mb", "1"]
    started = Run(command)
    while not [*tmp_path.glob(".tmp-*-shards/*.tar")]:
        assert started.running
        time.sleep(0.005)
    os.kill(started.processes[0].pid or 0, signal.SIGKILL)
    started.wait_gone()
    assert not out.exists()
    assert [*tmp_path.glob(".tmp-*")]
    assert run(command) == [0]
    assert sorted(place.name for place in tmp_path.iterdir()) == ["images", "shards"]
    assert open_shards(str(out)).samples == 1500
