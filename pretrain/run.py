"""The run folder: who holds it, what recipe it belongs to, how the run ended.

``recipe.json`` · ``log.jsonl`` · ``tensorboard/`` · ``checkpoints/step-N/`` · ``export/`` ·
``exit.json``
"""

import contextlib
import json
import os
import socket
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pretrain.distributed import World
from pretrain.recipe import Recipe, as_record, differences
from zoo.errors import Exit, UsageError, ZooError
from zoo.files import atomic_json, disk_errors, process_alive, sweep


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run, and the rules of the folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def exit(self) -> Path:
        return self.path / "exit.json"

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep a second run out of this folder.  Raises UsageError, DiskError.

        The kernel frees the lock however the holder ends.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            sweep(self.path)
        owner = self.path / "owner.json"
        lock = FileLock(self.path / ".lock")
        try:
            # Loader workers of a killed run hold the lock for the moment it takes them to die.
            lock.acquire(timeout=0 if _alive(owner) else 10)
        except Timeout as error:
            raise UsageError(
                f"another run is at work in this folder: {_describe(owner)}",
                where=str(self.path),
                fix="wait for it, stop it, or choose another folder with --out",
            ) from error
        try:
            atomic_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            lock.release()

    def admit(self, recipe: Recipe) -> None:
        """Record the recipe, or refuse one that differs from what the folder was made with."""
        place = self.path / "recipe.json"
        now = as_record(recipe)
        if place.exists():
            free = now.keys() - as_record(recipe, runtime=False).keys()
            earlier = json.loads(place.read_bytes())
            refuse_changes(
                self.path, *({k: v for k, v in r.items() if k not in free} for r in (earlier, now))
            )
        atomic_json(place, now)

    @contextlib.contextmanager
    def report_exit(self, world: World) -> Iterator[None]:
        """Write ``exit.json`` however the block ends: torchrun itself always exits with 1.

        The first rank to fail for a reason of its own has the word.
        """
        self.exit.unlink(missing_ok=True) if world.is_main else None
        world.barrier()
        try:
            yield
        except BaseException as error:
            self._write_exit(_outcome(error), world)
            raise
        if world.is_main:
            self._write_exit({"code": int(Exit.DONE), "error": ""}, world)

    def _write_exit(self, outcome: dict[str, Any], world: World) -> None:
        try:
            earlier = json.loads(self.exit.read_bytes())["code"]
        except (OSError, ValueError, KeyError):
            earlier = int(Exit.DONE)
        if earlier in (Exit.DONE, Exit.LOST_RANK):
            with contextlib.suppress(ZooError):  # a full disk must not hide the first error
                atomic_json(self.exit, {**outcome, "rank": world.rank})


def refuse_changes(place: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UsageError that names what differs between two records."""
    changed = differences(earlier, now)
    if changed:
        raise UsageError(
            "this folder holds a run of another recipe: " + "; ".join(changed),
            where=str(place),
            fix="use the same recipe to continue, or another folder with --out",
        )


def _outcome(error: BaseException) -> dict[str, Any]:
    if isinstance(error, ZooError):
        return error.as_dict()
    if isinstance(error, KeyboardInterrupt):
        return {"code": int(Exit.INTERRUPTED), "error": "interrupted with nothing to save"}
    return {"code": int(Exit.BUG), "error": "".join(traceback.format_exception(error))}


def _alive(owner: Path) -> bool:
    record = _read(owner)
    return record.get("host") != socket.gethostname() or process_alive(int(record.get("pid", 0)))


def _describe(owner: Path) -> str:
    record = _read(owner)
    return f"process {record.get('pid', 'unknown')} on {record.get('host', 'unknown host')}"


def _read(owner: Path) -> dict[str, Any]:
    try:
        return json.loads(owner.read_bytes())
    except (OSError, ValueError):
        return {}
