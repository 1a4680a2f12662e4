"""kill -9 at random moments changes nothing: not a bit of the weights, not a digit of the log."""

import os
import random
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
from faults import Record, Tally, steps_taken, tell, watch_steps
from models import make_convnet
from runs import TINY_MAE, Run, outcome, run, words
from shards import serve

from pretrain.pack import pack

KILLS = int(os.environ.get("TINYZOO_KILLS", "20"))
SAVE_EVERY = int(TINY_MAE["training.save_every_steps"])


def kill_until_done(
    command: list[str],
    out: Path,
    rng: random.Random,
    tally: Tally,
    *,
    kills: int,
    ranks: int,
    duration: float,
) -> None:
    """Kill the run ``kills`` times at random moments, then let it finish.

    It may come through before the last kill: then there were fewer.
    """
    steps = out.with_name(f"{out.name}.steps")
    for _ in range(kills):
        started = Run(command, ranks=ranks, prepare=partial(watch_steps, steps))
        if rng.random() < 0.3:  # at any time: starting, reading the data set, writing the export
            time.sleep(rng.uniform(0.1, 0.9) * duration)
        else:  # between steps, or in a save
            goal = steps_taken(steps) + rng.randint(1, 6)
            while started.running and steps_taken(steps) < goal:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
        if not started.running:
            assert set(started.wait()) == {0}
            return
        began = time.monotonic()
        started.kill(rank=rng.randrange(ranks))  # and no process of it is left, or this fails
        tally.longest_seconds = max(tally.longest_seconds, time.monotonic() - began)
        tally.look(out, steps)
    assert set(run(command, ranks=ranks)) == {0}


def assert_survives(
    photos: Path | str,
    folder: Path,
    *,
    kills: int,
    ranks: int = 1,
    workers: int = 0,
    recipe: str = "mae-vit-t",
    method: Mapping[str, str] = MappingProxyType({}),
    steps: int = 14,
) -> str:
    """Returns what was counted."""
    settings = {**TINY_MAE, **method, "data.workers": str(workers), "training.steps": str(steps)}
    settings["training.optim.ema_decay"] = "0.9"
    undisturbed = words(recipe, photos, folder / "undisturbed", settings)
    run(words(recipe, photos, folder / "warm-up", settings))  # the first fork imports
    began = time.monotonic()
    assert set(run(undisturbed, ranks=ranks)) == {0}
    duration = time.monotonic() - began
    expected = outcome(folder / "undisturbed")
    assert [row["step"] for row in expected["log"]] == sorted({*range(3, steps, 3), steps})
    tally, rng, runs = Tally(), random.Random(kills + ranks), 0
    while tally.trials < kills:
        runs += 1
        assert runs <= 8 * kills, f"only {tally.trials} of {kills} kills hit a living run"
        out = folder / f"killed-{runs}"
        command = words(recipe, photos, out, settings)
        left, before = kills - tally.trials, tally.trials
        kill_until_done(command, out, rng, tally, kills=left, ranks=ranks, duration=duration)
        assert outcome(out) == expected
        if tally.trials == before:
            duration *= 0.7  # it was measured while the machine was busy
    assert tally.unloadable == 0
    assert tally.most_redone <= SAVE_EVERY
    return (
        f"{tally.trials} kill -9 over {runs} runs, all bit-identical in weights and log; "
        f"{tally.unloadable} of {tally.checkpoints} checkpoints unloadable, at most "
        f"{tally.most_redone} steps redone (saved every {SAVE_EVERY}), 0 orphans, all processes "
        f"gone within {tally.longest_seconds:.1f} s"
    )


@pytest.mark.parametrize(("kills", "workers"), [(2, 0), (1, 2)])
def test_killed_runs_end_bit_identical(
    photos: Path, tmp_path: Path, kills: int, workers: int
) -> None:
    assert_survives(photos, tmp_path, kills=kills, workers=workers)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_killed_streams_end_bit_identical(
    photos: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    """Shards without an index: what was seen is read over, header by header."""
    pack(photos, tmp_path / "shards", shard_bytes=12_000)
    (tmp_path / "shards" / "_info.json").unlink()
    source, buffer = f"wds:{tmp_path}/shards", {"data.shuffle_buffer": "5"}
    assert_survives(source, tmp_path, kills=1, ranks=ranks, workers=workers, method=buffer)


def img2vec_settings(folder: Path) -> dict[str, str]:
    """A convnet teacher, and targets with running statistics of their own to be resumed."""
    return {
        "method.teacher.source": str(make_convnet(folder / "convnet")),
        "method.teacher.stride": "16",
        "method.targets": "whiten",
        "method.head_hidden": "16",
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_img2vec_ends_bit_identical(photos: Path, tmp_path: Path, ranks: int) -> None:
    method = img2vec_settings(tmp_path)
    assert_survives(photos, tmp_path, kills=1, ranks=ranks, recipe="img2vec-vit-t", method=method)


def test_killed_rank_leaves_no_orphan_and_the_same_bits(photos: Path, tmp_path: Path) -> None:
    assert_survives(photos, tmp_path, kills=1, ranks=2)


# KILLS of one process in all, and a quarter as many with two ranks.

LONGER = 60
"""Steps: most kills shall hit a run that trains."""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "share"), [(0, 2), (2, 4)])
def test_many_kills(
    photos: Path, tmp_path: Path, record_property: Record, workers: int, share: int
) -> None:
    kills = max(1, KILLS // share)
    figures = assert_survives(photos, tmp_path, kills=kills, workers=workers, steps=LONGER)
    tell(record_property, figures)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_many_kills_of_streams(
    photos: Path, tmp_path: Path, record_property: Record, ranks: int, workers: int
) -> None:
    pack(photos, tmp_path / "shards", shard_bytes=12_000)
    with serve(tmp_path / "shards") as web:
        source, buffer = f"wds:{web.address}/", {"data.shuffle_buffer": "5"}
        kills = max(2, KILLS // (4 * ranks))
        figures = assert_survives(
            source, tmp_path, kills=kills, ranks=ranks, workers=workers, method=buffer, steps=LONGER
        )
    tell(record_property, figures)


@pytest.mark.slow
def test_many_kills_of_img2vec(photos: Path, tmp_path: Path, record_property: Record) -> None:
    method, kills = img2vec_settings(tmp_path), max(1, KILLS // 4)
    figures = assert_survives(
        photos, tmp_path, kills=kills, recipe="img2vec-vit-t", method=method, steps=LONGER
    )
    tell(record_property, figures)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_many_kills_of_ranks(
    photos: Path, tmp_path: Path, record_property: Record, workers: int
) -> None:
    kills = max(2, KILLS // 8)
    figures = assert_survives(photos, tmp_path, kills=kills, ranks=2, workers=workers, steps=LONGER)
    tell(record_property, figures)
