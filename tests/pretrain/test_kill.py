"""kill -9 at random moments changes nothing: not a bit of the weights, not a digit of the log."""

import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from models import make_convnet
from runs import TINY_MAE, Run, outcome, run, words
from shards import serve

from pretrain.pack import pack

KILLS = int(os.environ.get("TINYZOO_KILLS", "20"))


def kill_until_done(
    command: list[str], rng: random.Random, *, kills: int, ranks: int, duration: float
) -> int:
    """Kill the run ``kills`` times at random moments, then let it finish; returns how often.

    It may come through before the last kill: then there were fewer.
    """
    for number in range(kills):
        started = Run(command, ranks=ranks)
        time.sleep(rng.uniform(0.1, 0.9) * duration)
        if not started.running:
            assert set(started.wait()) == {0}
            return number
        started.kill(rank=rng.randrange(ranks))
    assert set(run(command, ranks=ranks)) == {0}
    return kills


def assert_survives(
    photos: Path | str,
    folder: Path,
    *,
    kills: int,
    ranks: int = 1,
    workers: int = 0,
    recipe: str = "mae-vit-t",
    method: Mapping[str, str] = MappingProxyType({}),
) -> None:
    settings = {**TINY_MAE, **method, "data.workers": str(workers)}
    settings["training.optim.ema_decay"] = "0.9"
    undisturbed = words(recipe, photos, folder / "undisturbed", settings)
    run(words(recipe, photos, folder / "warm-up", settings))  # the first fork imports
    began = time.monotonic()
    assert set(run(undisturbed, ranks=ranks)) == {0}
    duration = time.monotonic() - began
    expected = outcome(folder / "undisturbed")
    assert [row["step"] for row in expected["log"]] == [3, 6, 9, 12, 14]
    killed, rng = 0, random.Random(kills + ranks)
    for trial in range(8 * kills):
        out = folder / f"killed-{trial}"
        command = words(recipe, photos, out, settings)
        left = kills - killed
        hit = kill_until_done(command, rng, kills=left, ranks=ranks, duration=duration)
        assert outcome(out) == expected
        killed += hit
        if killed == kills:
            return
        if not hit:
            duration *= 0.7  # it was measured while the machine was busy
    raise AssertionError(f"only {killed} of {kills} kills hit a living run")


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


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_many_kills(photos: Path, tmp_path: Path, workers: int) -> None:
    assert_survives(photos, tmp_path, kills=KILLS, workers=workers)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_many_kills_of_streams(photos: Path, tmp_path: Path, ranks: int, workers: int) -> None:
    pack(photos, tmp_path / "shards", shard_bytes=12_000)
    with serve(tmp_path / "shards") as web:
        source, buffer = f"wds:{web.address}/", {"data.shuffle_buffer": "5"}
        kills = max(5, KILLS // ranks**2)
        assert_survives(source, tmp_path, kills=kills, ranks=ranks, workers=workers, method=buffer)


@pytest.mark.slow
def test_many_kills_of_img2vec(photos: Path, tmp_path: Path) -> None:
    method = img2vec_settings(tmp_path)
    assert_survives(photos, tmp_path, kills=KILLS, recipe="img2vec-vit-t", method=method)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_many_kills_of_ranks(photos: Path, tmp_path: Path, workers: int) -> None:
    assert_survives(photos, tmp_path, kills=max(5, KILLS // 4), ranks=2, workers=workers)
