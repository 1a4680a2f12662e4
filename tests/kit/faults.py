"""What fault tests share: the four parts of an error, and processes that fail at a chosen moment.

A run's ``prepare`` is one of these functions with its arguments bound: it is called in every
process of the run before the command.
"""

import ctypes
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pretrain.checkpoint
from pretrain.log import RunLog
from zoo.errors import Exit, ZooError
from zoo.tensors import read_tensors


def assert_error(
    told: ZooError | Mapping[str, Any], code: Exit | int, *, what: str, where: str, fix: str
) -> None:
    """An error, or its record in ``exit.json`` or of ``--json``, says all four things."""
    record: dict[str, Any] = {**(told.as_dict() if isinstance(told, ZooError) else told)}
    assert record["code"] == int(code), record
    for key, part in (("error", what), ("where", where), ("fix", fix)):
        assert part, f"an empty text is in every {key}"
        assert part in record[key], record
        assert record[key].isprintable() or key == "where", record
    json.dumps(record)


def watch_steps(place: Path) -> None:
    """Keep in a file how many steps rank 0 has taken, saved or not."""
    advance = RunLog.advance
    file = os.open(place, os.O_RDWR | os.O_CREAT)

    @functools.wraps(advance)
    def watched(self: RunLog, step: int) -> None:
        if self.active:
            os.pwrite(file, f"{step:8d}".encode(), 0)
        advance(self, step)

    RunLog.advance = watched


def steps_taken(place: Path) -> int:
    """What ``watch_steps`` kept; 0 before the first step."""
    return int(place.read_text() or 0) if place.exists() else 0


def die_at_write(folder: Path, number: int) -> None:
    """SIGKILL at the so manieth thing that this process does to files of the folder or below.

    Python tells of them by itself (audit events): no function of ours is replaced.
    """
    left, inside = [number], f"{folder}/"

    def count(event: str, arguments: tuple) -> None:
        names = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")
        if event in names and any(inside in f"{place}/" for place in arguments[:2]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def die_beyond(size: int) -> None:
    """End by the kernel's hand, unhandled, in the write that makes a file larger.  In bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def unprivileged(errors: Path) -> None:
    """Take root's right to pass by a file's permissions; others never had it.

    errors: the file that stderr goes to.
    """
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    if os.geteuid():
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    none = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0


def slow_save(seconds: float, seen: Path) -> None:
    """Half of each checkpoint is followed by a rest, begun when ``seen`` appears."""
    save = pretrain.checkpoint.save_file

    def slow(tensors: Any, place: Path) -> None:
        save(tensors, place)
        if place.name == "model.safetensors":
            seen.touch()
            end = time.monotonic() + seconds
            while time.monotonic() < end:  # a signal cuts no sleep short, but may come in between
                time.sleep(0.01)

    pretrain.checkpoint.save_file = slow


def without_a_look_first() -> None:
    """As if another program took the disk's space after we have looked how much there is."""
    pretrain.checkpoint.require_space = lambda *_: None


def problems_of(checkpoints: Path) -> list[str]:
    """What is wrong with each checkpoint that cannot be loaded."""
    found = []
    for path in checkpoints.glob("step-*"):
        problem = pretrain.checkpoint._problem(path)
        if problem is None:
            for file in path.glob("*.safetensors"):
                read_tensors(file)
        else:
            found.append(f"{path.name}: {problem}")
    return found


def saved_step(checkpoints: Path) -> int:
    """Of the newest checkpoint; 0 without any."""
    return max((int(p.name.removeprefix("step-")) for p in checkpoints.glob("step-*")), default=0)


def temporaries(folder: Path) -> list[Path]:
    return list(folder.glob("**/.tmp-*"))


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own.  Skips where none may be mounted."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(["mount", *options], check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@dataclass
class Tally:
    """What a test of many trials has counted."""

    trials: int = 0
    most_redone: int = 0
    """Steps taken and not saved."""
    checkpoints: int = 0
    """Looked at, every tensor read."""
    unloadable: int = 0
    longest_seconds: float = 0.0

    def look(self, out: Path, steps: Path | None = None) -> None:
        """Count what a failure left behind.  steps: what ``watch_steps`` kept."""
        self.trials += 1
        checkpoints = out / "checkpoints"
        self.checkpoints += len(list(checkpoints.glob("step-*")))
        self.unloadable += len(problems_of(checkpoints))
        if steps:
            redone = steps_taken(steps) - saved_step(checkpoints)
            self.most_redone = max(self.most_redone, redone)


Record = Callable[[str, object], None]
"""pytest's ``record_property``."""


def tell(record: Record, line: str) -> None:
    """A line for the end of the test run, where figures are read (see ``tests/conftest.py``)."""
    record("figures", line)
