"""Many signals, kills in every write of a checkpoint, a disk that is full at every point of one.

Each has a quick form in the ordinary tests and, marked slow, one of many trials.
"""

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from faults import (
    Record,
    Tally,
    assert_error,
    die_at_write,
    die_beyond,
    problems_of,
    saved_step,
    small_disk,
    steps_taken,
    tell,
    temporaries,
    watch_steps,
    without_a_look_first,
)
from runs import TINY_MAE, Run, last_words, outcome, run, words, zoo

from zoo.errors import Exit

KILLS = int(os.environ.get("TINYZOO_KILLS", "20"))
SETTINGS = {**TINY_MAE, "training.steps": "6", "training.optim.ema_decay": "0.9"}


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps, with checkpoints of steps 4 and 6."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0
    return out


def halfway(finished: Path, out: Path) -> Path:
    """The run as it was after step 4."""
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints" / "step-6")
    shutil.rmtree(out / "export")
    (out / "exit.json").unlink()
    return out


def every_step(photos: Path, out: Path) -> list[str]:
    """The command that goes on from there: it saves steps 5 and 6, and then drops step 4."""
    return words("mae-vit-t", photos, out, {**SETTINGS, "training.save_every_steps": "1"})


def assert_goes_on(photos: Path, out: Path, finished: Path) -> None:
    assert problems_of(out / "checkpoints") == []
    assert saved_step(out / "checkpoints") >= 4
    assert run(every_step(photos, out)) == [0]
    assert outcome(out) == outcome(finished)
    assert temporaries(out) == []


def kills_at_writes(photos: Path, finished: Path, folder: Path, *, stride: int) -> str:
    tally, number = Tally(), 1
    while True:
        out = halfway(finished, folder / f"write-{number}")
        die = partial(die_at_write, out / "checkpoints", number)
        codes = run(every_step(photos, out), prepare=die)
        if codes == [0]:  # it does nothing so many times
            break
        assert codes == [-signal.SIGKILL]
        tally.look(out)
        assert_goes_on(photos, out, finished)
        number += stride
    return f"{tally.trials} kills, one in every {stride} of the {number - 1} writes of two saves"


def kills_beyond_sizes(photos: Path, finished: Path, folder: Path, *, points: int) -> str:
    tally = Tally()
    files = [file.stat().st_size for file in (finished / "checkpoints" / "step-4").iterdir()]
    least, most = 16 * 1024, max(files)  # no other file of a run grows so large
    for point in range(points):
        out = halfway(finished, folder / f"size-{point}")
        size = least + (most - least) * point // points
        codes = run(every_step(photos, out), prepare=partial(die_beyond, size))
        assert codes == [-signal.SIGXFSZ]
        tally.look(out)
        assert_goes_on(photos, out, finished)
    return f"{tally.trials} ends in the middle of a file, after {least:,} to {most:,} bytes"


def test_killed_in_a_write(photos: Path, finished: Path, tmp_path: Path) -> None:
    kills_at_writes(photos, finished, tmp_path, stride=29)
    kills_beyond_sizes(photos, finished, tmp_path, points=1)


@pytest.mark.slow
def test_killed_in_every_write(
    photos: Path, finished: Path, tmp_path: Path, record_property: Record
) -> None:
    stride = 1 if KILLS >= 100 else 4
    at_writes = kills_at_writes(photos, finished, tmp_path, stride=stride)
    in_files = kills_beyond_sizes(photos, finished, tmp_path, points=max(5, KILLS // 4))
    tell(record_property, f"{at_writes}; {in_files}; 0 checkpoints unloadable, 0 temporaries left")


def full_disks(photos: Path, finished: Path, folder: Path, *, points: int, looks: bool) -> str:
    """Sweep how much room there is, from none to all that the rest of the run needs."""
    codes: list[int] = []
    with small_disk(folder / "disk", megabytes=16) as disk:
        out = halfway(finished, disk / "run")
        before = shutil.disk_usage(disk).free
        assert run(every_step(photos, out)) == [0]
        needed = before - shutil.disk_usage(disk).free
        for point in range(points):
            shutil.rmtree(out)
            halfway(finished, out)
            ballast = disk / "ballast"
            free = 4 * needed * point // (points - 1)  # at its peak it needs more
            ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free))
            prepare = None if looks else without_a_look_first
            codes += run(every_step(photos, out), prepare=prepare)
            assert codes[-1] in {0, 6}
            assert temporaries(out) == []
            if (out / "exit.json").exists() and codes[-1]:
                told = last_words(out)
                assert_error(told, Exit.DISK, what="no space left: ", where=str(out), fix="free")
            ballast.unlink()
            assert_goes_on(photos, out, finished)
    assert codes[0] == 6
    assert codes[-1] == 0
    return f"{len(codes)} sizes of free space, {codes.count(6)} ended with 6 and the others whole"


@pytest.mark.parametrize("looks", [True, False])
def test_full_disk(photos: Path, finished: Path, tmp_path: Path, looks: bool) -> None:
    full_disks(photos, finished, tmp_path, points=3, looks=looks)


@pytest.mark.slow
def test_disks_full_at_every_point(
    photos: Path, finished: Path, tmp_path: Path, record_property: Record
) -> None:
    ways = []
    for looks in (True, False):
        place = tmp_path / f"{looks}"
        place.mkdir()
        points = max(6, KILLS // (8 if looks else 4))
        ways.append(full_disks(photos, finished, place, points=points, looks=looks))
    tell(
        record_property,
        f"{ways[0]}; space taken after the look: {ways[1]}; 0 checkpoints lost, 0 temporaries left",
    )


def file_limits(photos: Path, finished: Path, folder: Path, *, points: int) -> str:
    """No file may grow beyond a limit, from nothing to the largest of a checkpoint."""
    most = max(file.stat().st_size for file in (finished / "checkpoints" / "step-4").iterdir())
    for point in range(points):
        out = halfway(finished, folder / f"limit-{point}")
        codes = run(every_step(photos, out), file_limit=most * point // points)
        assert codes == [6], point
        assert temporaries(out) == []
        assert_goes_on(photos, out, finished)
    return f"{points} limits of a file's size from 0 to {most:,} bytes, all ended with 6"


@pytest.mark.slow
def test_many_file_limits(
    photos: Path, finished: Path, tmp_path: Path, record_property: Record
) -> None:
    tell(record_property, file_limits(photos, finished, tmp_path, points=max(6, KILLS // 4)))


def terminations(photos: Path, folder: Path, *, signals: int, ranks: int) -> str:
    """SIGTERM to any rank after any step, as often as asked for, and then to the end."""
    settings = {
        **TINY_MAE,
        "training.steps": str(12 * signals),
        "training.save_every_steps": "100000",
    }
    undisturbed = words("mae-vit-t", photos, folder / "undisturbed", settings)
    assert set(run(undisturbed, ranks=ranks)) == {0}
    out, steps, tally = folder / "run", folder / "steps", Tally()
    command, rng = words("mae-vit-t", photos, out, settings), random.Random(signals)
    for number in range(signals):
        started = Run(command, ranks=ranks, prepare=partial(watch_steps, steps))
        goal = saved_step(out / "checkpoints") + rng.randint(1, 8)
        while steps_taken(steps) < goal:
            assert started.running
            time.sleep(0.001)
        os.kill(started.processes[rng.randrange(ranks)].pid or 0, signal.SIGTERM)
        began = time.monotonic()
        assert started.wait(30) == [75] * ranks, number
        tally.longest_seconds = max(tally.longest_seconds, time.monotonic() - began)
        started.wait_gone()
        tally.look(out, steps)
        told = last_words(out)
        fix = "run the same command again"
        assert_error(told, Exit.PREEMPTED, what="the state is saved", where="of", fix=fix)
        assert saved_step(out / "checkpoints") == told["step"]
    assert set(run(command, ranks=ranks)) == {0}
    assert outcome(out) == outcome(folder / "undisturbed")
    assert (tally.unloadable, tally.most_redone <= 1) == (0, True)
    assert tally.longest_seconds < 10
    return (
        f"{tally.trials} SIGTERM, all exit 75 within {tally.longest_seconds:.2f} s, at most "
        f"{tally.most_redone} steps redone, then bit-identical"
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_many_terminations(
    photos: Path, tmp_path: Path, record_property: Record, ranks: int
) -> None:
    signals = max(2, KILLS // 8)
    tell(record_property, terminations(photos, tmp_path, signals=signals, ranks=ranks))
