"""kill -9 at random moments of an evaluation: the same figures to the last bit, and no orphan."""

import os
import random
import time
from pathlib import Path

import pytest
from classifiers import make_classifier, make_val, rows, slow_small_shards
from runs import Run, run

KILLS = int(os.environ.get("TINYZOO_KILLS", "20"))


def assert_survives(folder: Path, *, kills: int, ranks: int = 1, workers: int = 0) -> None:
    data = make_val(folder / "val")
    models = [str(make_classifier(folder / f"net{i}", seed=i)) for i in range(2)]
    command = ["eval", *models, "in1k-real", "--data", str(data), "--partial", "--batch", "2"]
    command += ["--workers", str(workers), "--out"]
    run([*command, str(folder / "warm-up")], prepare=slow_small_shards)  # the first fork imports
    began = time.monotonic()
    whole = [*command, str(folder / "undisturbed")]
    assert set(run(whole, ranks=ranks, prepare=slow_small_shards)) == {0}
    duration = time.monotonic() - began
    expected, hits, rng = rows(folder / "undisturbed"), 0, random.Random(kills + ranks)
    assert len(expected) == 2
    for trial in range(8 * kills):
        out = folder / f"killed-{trial}"
        while hits < kills:
            started = Run([*command, str(out)], ranks=ranks, prepare=slow_small_shards)
            time.sleep(rng.uniform(0.2, 1.0) * duration)
            if not started.running:
                assert set(started.wait()) == {0}
                break
            started.kill(rank=rng.randrange(ranks))
            hits += 1
        assert set(run([*command, str(out)], ranks=ranks, prepare=slow_small_shards)) == {0}
        assert rows(out) == expected
        assert not (out / ".partial").exists()
        if hits == kills:
            return
    raise AssertionError(f"only {hits} of {kills} kills hit a living evaluation")


@pytest.mark.parametrize(("kills", "ranks", "workers"), [(2, 1, 0), (1, 2, 1)])
def test_a_killed_evaluation_ends_bit_identical(
    tmp_path: Path, kills: int, ranks: int, workers: int
) -> None:
    assert_survives(tmp_path, kills=kills, ranks=ranks, workers=workers)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_kills_at_random(tmp_path: Path, ranks: int) -> None:
    assert_survives(tmp_path, kills=KILLS, ranks=ranks)
