"""What a run folder tells of its run, whether it goes on, has ended or was killed.

Nothing in the folder is changed: the run may be at work in it.
"""

import itertools
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pretrain.log import known_bad, read_log
from pretrain.run import RunFolder
from zoo.errors import Exit, UsageError
from zoo.leaks import portable

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """A run as its folder has it now."""

    run: RunFolder
    recipe: Mapping[str, Any]
    """Flat, as resolved; absolute paths cut down to their last part."""
    train: Rows
    val: Rows
    signal: Rows
    """Rows of the log, by what they tell of; in the order of their steps."""
    seconds: float
    """That the log covers, over all starts."""
    environment: Mapping[str, str]
    """Of the newest checkpoint; empty where there is none."""
    steps: int | None
    """Length of the run, where the folder tells."""
    ended: Mapping[str, Any] | None
    """``exit.json``; None while the run goes on, and where it was killed."""
    running: bool
    """Whether a process holds the folder."""
    quarantined: int
    """Images that could not be read."""
    checkpoints: Sequence[str]
    """Names below ``checkpoints/``, newest first."""
    exports: Sequence[str]
    """Model folders that are there."""

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", self.run.path.name))

    @property
    def step(self) -> int:
        """Of the last row."""
        return max((rows[-1]["step"] for rows in (self.train, self.signal) if rows), default=0)

    @property
    def state(self) -> str:
        """``done``, ``going on``, ``killed``, or ``exit N``."""
        if self.ended is not None:
            code = self.ended.get("code")
            return "done" if code == Exit.DONE else f"exit {code}"
        return "going on" if self.running else "killed"

    @property
    def images_per_second(self) -> float | None:
        """Median over the rows."""
        rates = [row["images_per_second"] for row in self.train if "images_per_second" in row]
        return statistics.median(rates) if rates else None

    @property
    def signal_share(self) -> float | None:
        """Of the time that the log covers, what the live signal took."""
        if not self.signal or not self.seconds:
            return None
        return sum(row.get("signal_seconds", 0.0) for row in self.signal) / self.seconds

    @property
    def losses(self) -> list[str]:
        """Names in the training rows that are losses, the total first."""
        names = dict.fromkeys(name for row in self.train for name in row)
        return [n for n in names if n not in _NOT_LOSSES and not is_share(n)]

    @property
    def shares(self) -> list[str]:
        """Names in the training rows that are accuracies and the like."""
        return [n for n in dict.fromkeys(name for row in self.train for name in row) if is_share(n)]


_NOT_LOSSES = {
    "step",
    "epoch",
    "grad_norm",
    "indices",
    "lr",
    "images_per_second",
    "seconds",
}


def is_share(name: str) -> bool:
    """Whether a name in a row is that of an accuracy rather than of a loss."""
    return name == "agreement" or "acc" in name.lower() or name.startswith("top")


def read_story(folder: Path) -> Story:
    """Raises UsageError for a folder that no run has begun in."""
    run = RunFolder(folder)
    recipe = _object(folder / "recipe.json")
    if recipe is None:
        raise UsageError(
            "this is no run folder: it has no recipe.json that can be read",
            where=str(folder),
            fix="give the folder of a run, such as runs/RECIPE of zoo pretrain RECIPE",
        )
    rows = read_log(run.log) if run.log.exists() else []
    checkpoints = _newest_first(run.checkpoints)
    notes = next(_notes_of(run.checkpoints, checkpoints), {})
    running = _is_held(folder / ".lock")
    ended = None if running else _object(run.exit)
    return Story(
        run=run,
        recipe=portable(recipe),
        train=[row for row in rows if "total" in row],
        val=[row for row in rows if any(name.startswith("val_") for name in row)],
        signal=[row for row in rows if "signal_images" in row],
        seconds=_seconds(rows),
        environment=notes.get("environment") or {},
        steps=_steps(recipe, notes),
        ended=portable(ended) if ended else None,
        running=running,
        quarantined=len(known_bad(folder / "quarantine.jsonl")),
        checkpoints=checkpoints,
        exports=[place.name for place in (run.export, run.best) if place.is_dir()],
    )


def _object(place: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none that can be read."""
    try:
        found = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_held(lock: Path) -> bool:
    """Whether a run holds its folder's lock, which the kernel frees however it ends."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # not ours to write in, nor therefore to hold
        return False


def _newest_first(folder: Path) -> list[str]:
    names = [place.name for place in folder.glob("step-*") if re.fullmatch(r"step-\d+", place.name)]
    return sorted(names, key=lambda name: -int(name.removeprefix("step-")))


def _notes_of(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What checkpoints carry besides tensors; their digests are looked at when a run continues."""
    for name in names:
        state = _object(folder / name / "state.json")
        if state and isinstance(state.get("notes"), dict):
            yield state["notes"]


def _steps(recipe: Mapping[str, Any], notes: Mapping[str, Any]) -> int | None:
    for key in ("training.steps", "training.iterations"):
        if recipe.get(key):
            return int(recipe[key])
    images = (notes.get("identity") or {}).get("images")
    epochs, batch = recipe.get("training.epochs"), recipe.get("training.global_batch")
    if not (images and epochs and batch):
        return None
    return max(1, round(epochs * (images // batch)))


def _seconds(rows: Rows) -> float:
    """Every start counts from zero: where the clock goes back, one has ended."""
    clock = [row["seconds"] for row in rows if "seconds" in row]
    ends = [a for a, b in itertools.pairwise(clock) if b < a]
    return sum([*ends, *clock[-1:]])
