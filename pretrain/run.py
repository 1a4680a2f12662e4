"""The run folder: who holds it, what recipe it belongs to, how the run ended.

``recipe.json`` · ``log.jsonl`` · ``tensorboard/`` · ``checkpoints/step-N/`` · ``export/`` ·
``export-best/`` (where there was validation) · ``exit.json``
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import time
import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout

from pretrain.changes import Changed, keep_changes, refuse_changes
from pretrain.distributed import TORCHRUN, World
from pretrain.recipe import as_record
from zoo.errors import Exit, IntegrityError, UsageError, ZooError, unexpected
from zoo.files import atomic_json, disk_errors, process_alive, sweep

_SHARED_SECONDS = 10.0
"""How long a network file system may take to show a new file."""
LASTING = frozenset(Exit) - {Exit.BUG, Exit.NETWORK, Exit.LOST_RANK}
"""What a restart does not cure."""


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
    def best(self) -> Path:
        return self.path / "export-best"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def changes(self) -> Path:
        return self.path / "changes.json"

    @property
    def exit(self) -> Path:
        return self.path / "exit.json"

    @property
    def failures(self) -> Path:
        """Of ranks, as torchrun saw them."""
        return self.path / "failed-ranks.json"

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep a second run out of this folder.  Raises UsageError, DiskError.

        The kernel frees the lock however the holder ends.
        """
        with disk_errors(self.path):
            self._make()
            sweep(self.path)
        owner = self.path / "owner.json"
        lock = FileLock(self.path / ".lock")
        with disk_errors(self.path):
            try:
                # Loader workers of a killed run hold the lock for the moment they take to die, and
                # those of a restarted run may be on another machine.
                lock.acquire(timeout=0 if _alive(owner) else 10)
            except Timeout as error:
                raise UsageError(
                    f"another run is at work in this folder: {_describe(owner)}",
                    where=str(self.path),
                    fix="wait for it, stop it, or choose another folder with --out",
                ) from error
        try:
            atomic_json(
                owner,
                {"pid": os.getpid(), "host": socket.gethostname(), "token": secrets.token_hex(8)},
            )
            yield
        finally:
            lock.release()

    def require_shared(self, world: World) -> None:
        """Raise UsageError, on every rank, unless all of them see rank 0's folder.

        They load checkpoints from it, and leave their last words there.
        """
        owner = self.path / "owner.json"
        token = world.from_main(read_object(owner).get("token"))
        deadline = time.monotonic() + _SHARED_SECONDS
        while read_object(owner).get("token") != token and time.monotonic() < deadline:
            time.sleep(0.2)
        seen = world.gather((socket.gethostname(), read_object(owner).get("token") == token))
        if blind := sorted({host for host, sees in seen if not sees}):
            raise UsageError(
                f"not every machine sees the run's folder: {', '.join(blind)} do not",
                where=str(self.path.resolve()),
                fix="give --out a folder on a file system that all machines share",
            )

    def _make(self) -> None:
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                "the name of the run's folder is no UTF-8, and TensorBoard writes to none such",
                where=os.fsencode(self.path).decode(errors="backslashreplace"),
                fix="choose another folder with --out",
            ) from error
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                "a file stands where the run's folder should be",
                where=str(error.filename),
                fix="choose another folder with --out",
            ) from error

    def admit(self, recipe: Any, allow: Collection[str] | None = None) -> Changed:
        """Record a recipe, of any kind, or refuse one that differs from what the folder began with.

        Where nothing was saved there is nothing to continue: a start that failed over a mistyped
        override does not stand in the way of the right one.

        allow: fields that may differ.  Returns those that do: such a recipe is not recorded before
        ``accept``, when it is known to work.
        """
        changed: Changed = {}
        place = self.path / "recipe.json"
        now = as_record(recipe)
        if place.exists() and any(self.checkpoints.glob("step-*")):
            free = now.keys() - as_record(recipe, runtime=False).keys()
            earlier = read_object(place)
            if not earlier:
                raise IntegrityError(
                    "the run's recipe cannot be read",
                    where=str(place),
                    fix="restore it from a backup, or start anew in another folder (--out)",
                )
            # A field that is younger than the run, and null, changes nothing of it.
            earlier = {**dict.fromkeys(now), **earlier}
            before, after = ({k: v for k, v in r.items() if k not in free} for r in (earlier, now))
            changed = refuse_changes(self.path, before, after, allow)
        if not changed:
            atomic_json(place, now)
        return changed

    def accept(self, recipe: Any, changed: Changed, step: int) -> None:
        """Write down what was allowed to change after ``step``, and then the recipe."""
        new = keep_changes(self.changes, changed, step)
        if new and "data_fingerprint" in changed and self.quarantine.exists():
            # It numbers the images of the data set as it was.
            self.quarantine.rename(self.path / f"quarantine-before-step-{step}.jsonl")
        atomic_json(self.path / "recipe.json", as_record(recipe))

    @contextlib.contextmanager
    def report_exit(self, world: World) -> Iterator["Progress"]:
        """Write ``exit.json`` however the block ends: torchrun itself always exits with 1.

        The first rank to fail for a reason of its own has the word.  Where torchrun starts the
        ranks anew after a failure that would come again, that failure is raised again.
        """
        # The launcher took away what earlier runs had left.
        said = world.from_main(self.last_words() if TORCHRUN in os.environ else None)
        if said and said.code in LASTING:
            raise said
        if world.is_main:
            self.exit.unlink(missing_ok=True)
        world.barrier()
        progress = Progress()
        try:
            yield progress
        except BaseException as error:
            self._write_exit(_outcome(error), world, progress)
            raise
        if world.is_main:
            self._write_exit({"code": int(Exit.DONE), "error": ""}, world, progress)

    def last_words(self) -> ZooError | None:
        """What the run failed of last, if it left word."""
        outcome = read_object(self.exit)
        try:
            error = ZooError(
                outcome["error"], where=outcome.get("where", ""), fix=outcome.get("fix", "")
            )
            error.code = Exit(outcome["code"])
        except (KeyError, ValueError):
            return None
        return None if error.code == Exit.DONE else error

    def _write_exit(self, outcome: dict[str, Any], world: World, progress: "Progress") -> None:
        earlier = read_object(self.exit).get("code", Exit.DONE)
        if earlier in (Exit.DONE, Exit.LOST_RANK):
            with contextlib.suppress(ZooError):  # a full disk must not hide the first error
                atomic_json(self.exit, {**outcome, "rank": world.rank, "step": progress.step})


class Stepped(Protocol):
    """What counts the steps of a run, such as ``TrainState``."""

    step: int


@dataclass(slots=True)
class Progress:
    """How far a run has come, for its last words."""

    state: "Stepped | None" = None
    """Set once there is one."""

    @property
    def step(self) -> int | None:
        """Optimizer steps taken; None where the run ended before there was a network."""
        return self.state.step if self.state else None


_NO_MEMORY = "can't allocate memory"
"""What torch says of the host's."""


@contextlib.contextmanager
def memory_errors(world: World, progress: Progress) -> Iterator[None]:
    """Turn "out of memory", of the host or a device, into a ZooError that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        host = getattr(error, "errno", None) == errno.ENOMEM or _NO_MEMORY in str(error)
        if isinstance(error, ZooError) or not (known or host):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        place = f"rank {world.rank} of {world.size}, {world.device}"
        raise ZooError(
            f"out of memory: {lines[0].rpartition('Allocator: ')[2]}",
            where=f"{place}, after step {progress.step}" if progress.step else place,
            fix="lower training.rank_batch (--allow-change training.rank_batch continues this run; "
            "global_batch stays what it is), student.image_size, or on the host data.workers; "
            "the checkpoints are intact",
        ) from error


def _outcome(error: BaseException) -> dict[str, Any]:
    if isinstance(error, ZooError):
        return error.as_dict()
    if isinstance(error, KeyboardInterrupt):
        return {
            "code": int(Exit.INTERRUPTED),
            "error": "interrupted with nothing to save",
            "where": "before the first step, or after the last",
            "fix": "run the same command again",
        }
    return {**unexpected(error).as_dict(), "traceback": traceback.format_exception(error)}


def _alive(owner: Path) -> bool:
    record = read_object(owner)
    return record.get("host") == socket.gethostname() and process_alive(int(record.get("pid", 0)))


def _describe(owner: Path) -> str:
    record = read_object(owner)
    return f"process {record.get('pid', 'unknown')} on {record.get('host', 'unknown host')}"


def read_object(place: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none that can be read."""
    try:
        record = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
