"""What a run says while it runs: rows for its loggers, and a progress line on a terminal."""

import contextlib
import json
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from pretrain.loggers import JsonLines, LoggerName, Part, open_loggers
from pretrain.objective import Batch
from zoo.files import atomic_json, disk_errors

# Fields that depend on the clock: everything else in a row is reproducible to the last bit.
CLOCK_FIELDS = ("images_per_second", "seconds", "signal_seconds")


class Meters:
    """Sums since the last row: losses on the device, sample indices on the host.

    ``earlier`` is what ``as_notes`` gave: a run that continues in the middle of a row ends with
    the row it would have had.
    """

    def __init__(self, earlier: dict[str, Any] | None = None) -> None:
        earlier = earlier or {"sums": {}, "steps": 0, "indices": 0}
        self._names = tuple(earlier["sums"])
        self._sums = torch.tensor([*earlier["sums"].values()], dtype=torch.float64)
        self._earlier_steps: int = earlier["steps"]
        self._checksums: list[int] = [earlier["indices"]]
        """One a step, so that steps which did not happen after all can be taken back."""
        self._samples: list[list[int]] = []
        """Indices by step."""

    def add(
        self, names: tuple[str, ...], values: Tensor, bad: Tensor, batches: list[Batch]
    ) -> None:
        """One step.  values: one a name, on the device; not counted where ``bad`` is 1."""
        if not self._names:
            self._names, self._sums = names, torch.zeros_like(values, dtype=torch.float64)
        counted = values.double().masked_fill(bad > 0, 0.0)
        self._sums = self._sums.to(values.device) + counted
        checksum = self._checksums[-1]
        for batch in batches:
            checksum = zlib.crc32(batch.indices.numpy().tobytes(), checksum)
        self._checksums.append(checksum)
        self._samples.append([i for batch in batches for i in batch.indices.tolist()])

    def samples(self, back: int) -> list[int]:
        """This rank's sample indices in the step so many steps back, 1 for the last one."""
        return self._samples[-back]

    def as_notes(self, dropped_steps: int = 0) -> dict[str, Any]:
        """JSON that restores these sums; floats survive it exactly.  Waits for the device.

        dropped_steps: how many of the last steps did not happen after all.
        """
        steps = len(self._checksums) - 1 - dropped_steps
        return {
            "sums": dict(zip(self._names, self._sums.tolist(), strict=True)),
            "steps": self._earlier_steps + steps,
            "indices": self._checksums[steps],
        }

    def row(self) -> dict[str, Any]:
        """Means since the last row, and a checksum of the sample indices."""
        notes = self.as_notes()
        means = {name: value / notes["steps"] for name, value in notes["sums"].items()}
        return {**means, "indices": f"{notes['indices']:08x}"}


class RunLog:
    """Rank 0's log of a run folder; on other ranks every method does nothing.

    offset: as ``JsonLines`` takes it.  loggers: where rows go beside ``log.jsonl``.  recipe: what
    a logger should know of the run.  Raises UsageError, DiskError.
    """

    def __init__(
        self,
        folder: Path,
        *,
        offset: int,
        step: int,
        steps: int,
        batch: int,
        active: bool,
        loggers: Sequence[LoggerName] = ("tensorboard",),
        recipe: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.active = active
        self._bad_path = folder / "quarantine.jsonl"
        self.bad = known_bad(self._bad_path)
        if not active:
            return
        self._batch = batch
        self._last = (step, time.perf_counter())
        self._started = time.perf_counter()
        self.console = Console(stderr=True)
        name = str(recipe.get("name", folder.name))
        with contextlib.ExitStack() as stack:
            self._rows = stack.enter_context(closing(JsonLines(folder / "log.jsonl", offset)))
            kept = read_log(folder / "log.jsonl")
            begins_at = step + 1 if kept else 0
            opened = open_loggers(
                loggers, folder, begins_at=begins_at, name=name, config=recipe, say=self.say
            )
            self._loggers = [stack.enter_context(closing(logger)) for logger in opened]
            for row in kept:
                self._show(_part_of(row), row)
            self._open = stack.pop_all()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("step", total=steps, completed=step, speed="")
        self._progress.start()

    def advance(self, step: int) -> None:
        if self.active:
            self._progress.update(self._task, completed=step)

    def row(self, step: int, values: dict[str, Any]) -> None:
        """Write one row: ``values`` and the rate at which images went through."""
        if not self.active:
            return
        now = time.perf_counter()
        last_step, last_time = self._last
        rate = (step - last_step) * self._batch / max(now - last_time, 1e-9)
        self._last = (step, now)
        row = {"step": step, **values, "images_per_second": round(rate, 1)}
        self._write("train", row)
        text = f"loss {row['total']:.4f} · {rate:,.0f} images/s"
        self._progress.update(self._task, completed=step, speed=text)

    def scores(self, step: int, values: dict[str, Any], seconds: float) -> None:
        """Write a row of its own for what validation gave after a step.

        seconds: how long it took; it does not count against the rate of training.
        """
        self._aside("val", step, values, seconds)

    def signal(self, step: int, values: dict[str, Any], seconds: float) -> None:
        """Write a row of its own for what a look at the features gave after a step.

        seconds: as in ``scores``, and written down.
        """
        self._aside("signal", step, {**values, "signal_seconds": round(seconds, 3)}, seconds)

    def _aside(self, part: Part, step: int, values: dict[str, Any], seconds: float) -> None:
        if not self.active:
            return
        last_step, last_time = self._last
        self._last = (last_step, last_time + seconds)
        self._write(part, {"step": step, **values})
        self._progress.update(self._task, speed="")

    def _write(self, part: Part, row: dict[str, Any]) -> None:
        row["seconds"] = round(time.perf_counter() - self._started, 2)
        self._rows.write(row)
        self._show(part, row)

    def _show(self, part: Part, row: Mapping[str, Any]) -> None:
        for logger in self._loggers:
            if row["step"] >= logger.begins_at:
                logger.row(row["step"], part, dict(_numbers(part, row)))

    def say(self, text: str) -> None:
        """One line to the reader, and to nobody's table."""
        if self.active:
            with disk_errors(Path("/dev/stderr")):
                self.console.print(text, highlight=False, soft_wrap=True)

    def quarantine(self, batch: Batch, describe: Any) -> list[int]:
        """Record images that could not be read; returns those that no rank is known to have met.

        Every rank appends its own lines; a short append is one write.
        """
        new = [(index, why) for index, why in batch.bad if index not in self.bad]
        for index, why in new:
            self.bad.add(index)
            line = json.dumps({"index": index, "file": describe(index), "why": why}) + "\n"
            with disk_errors(self._bad_path), self._bad_path.open("a") as file:
                file.write(line)
        return [index for index, _ in new]

    def diverged(self, step: int, indices: list[list[int]], describe: Any) -> None:
        """Keep the images, by rank, of the step whose loss or gradient is not finite."""
        if self.active:
            ranks = [{"indices": own, "files": [describe(i) for i in own]} for own in indices]
            atomic_json(self._rows.path.with_name("diverged.json"), {"step": step, "ranks": ranks})

    def mark(self) -> int:
        """Bytes of the log so far, safely on disk."""
        return self._rows.mark() if self.active else 0

    def close(self) -> None:
        if self.active:
            self._progress.stop()
            self._open.close()


def _part_of(row: Mapping[str, Any]) -> Part:
    """What a row of ``log.jsonl`` tells of."""
    if "signal_images" in row:
        return "signal"
    return "val" if any(name.startswith("val_") for name in row) else "train"


def _numbers(part: Part, row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What a chart can show of a row: its numbers, and the mean of each list of a list of lists."""
    for name, value in row.items():
        plain = name.removeprefix(f"{part}_")
        if isinstance(value, int | float) and name != "step":
            yield plain, value
        elif isinstance(value, list):  # a block's heads
            for number, heads in enumerate(value, start=1):
                yield f"{plain}/block_{number}", sum(heads) / len(heads)


def known_bad(path: Path) -> set[int]:
    """The images that a ``quarantine.jsonl`` names."""
    known = set()
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                known.add(json.loads(line)["index"])
            except (ValueError, KeyError, TypeError):
                continue  # the torn last line of a killed run
    return known


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``log.jsonl``; a torn last line is dropped."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
