"""Whole runs in processes of their own, forked from one that has imported everything.

A forked run starts in a fraction of a second, may be killed at any moment, and is watched until
every process it started has gone.
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import hubclient  # noqa: F401
import pandas  # noqa: F401  # by pyarrow, in the first process that makes an array
import torch
from safetensors.torch import load_file

import eval.finetune_run as _finetune  # noqa: F401
import pretrain.launch  # imported once here, shared by all forks
import pretrain.methods.img2vec
import pretrain.methods.mae
import pretrain.methods.tinymim  # noqa: F401
from eval.run import evaluate  # noqa: F401
from eval.segmentation.packages import import_mmseg
from pretrain.data import Order
from pretrain.log import CLOCK_FIELDS, read_log
from zoo.cli import main

import_mmseg()
# Python 3.11's fork server looks for modules to preload in its own path alone.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["runs"])

# A run of seconds: 36 images, 4 steps an epoch, drop path and warm-up included.
TINY = {
    "student.width": "24",
    "student.depth": "3",
    "student.heads": "3",
    "student.image_size": "32",
    "student.patch": "8",
    "data.workers": "0",
    "training.steps": "14",
    "training.warmup_steps": "3",
    "training.global_batch": "8",
    "training.rank_batch": "4",
    "training.log_every_steps": "3",
    "training.save_every_steps": "2",
    "training.optim.lr_per_256": "0.05",
}
TINY_MAE = {
    **TINY,
    "method.decoder_width": "24",
    "method.decoder_depth": "1",
    "method.decoder_heads": "3",
}


LONG = {**TINY_MAE, "training.steps": "100000", "training.save_every_steps": "100000"}
"""Long enough to be met at work; small enough to save at once."""


POISONED = str(Path(__file__).parent / "poisoned_mae.py")
"""The recipe whose loss or gradient is not a number for one image."""


TINY_FINETUNE = {
    **TINY,
    "method.init": "null",
    "method.classes": "3",
    "training.optim.lr_per_256": "0.02",
}


def words(recipe: str, data: Path | str, out: Path, settings: Mapping[str, str]) -> list[str]:
    """The command line of a run, without ``zoo``.  data: a folder, or a source as it is written."""
    source = data if isinstance(data, str) else f"folder:{data}"
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return ["pretrain", recipe, f"data.source={source}", *overrides, "--out", str(out)]


def stderr_to(file: Path) -> None:
    """What a run may prepare: its own words go to ``file``."""
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 2)


class Run:
    """A forked ``zoo`` command: one process, or as many ranks as asked for."""

    def __init__(
        self,
        command: list[str],
        *,
        ranks: int = 1,
        file_limit: int | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """prepare: called in every process before the command."""
        port = _free_port()
        self.processes: list[ForkServerProcess] = []
        for rank in range(ranks):
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
            environment = {key: str(value) for key, value in world.items()} if ranks > 1 else {}
            arguments = (command, environment, file_limit, prepare)
            process = _FORKS.Process(target=_child, args=arguments)
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes, one a rank."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {codes}")
        return [code for code in codes if code is not None]

    def kill(self, rank: int = 0) -> None:
        """kill -9 one rank, then wait until every process of the run has gone.

        As torchrun does, the others are asked to end: a rank that still waits for the dead one to
        join cannot know that it never will.
        """
        self.processes[rank].kill()
        self.terminate()
        self.wait_gone()

    def terminate(self) -> None:
        for process in self.processes:
            process.terminate()

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait_gone(self, seconds: float = 35) -> None:
        """Every process that this run started ends by itself, or the test fails."""
        sessions = {process.pid for process in self.processes}
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        while left := _in_sessions(sessions):
            assert time.monotonic() < deadline, f"orphans: {left}"
            time.sleep(0.02)


def _child(
    command: list[str],
    environment: dict[str, str],
    file_limit: int | None,
    prepare: Callable[[], None] | None,
) -> None:
    os.setsid()  # every process it starts can be found by this session
    # A shell's background job, as these tests may be, is started with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    torch.set_num_threads(1)
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk is an error, not a signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if prepare:
        prepare()
    with open(os.devnull, "w") as quiet:  # noqa: PTH123
        sys.stdout = quiet
        main(command)


def run(
    command: list[str],
    *,
    ranks: int = 1,
    file_limit: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> list[int]:
    """Run to its end; exit codes, one a rank."""
    started = Run(command, ranks=ranks, file_limit=file_limit, prepare=prepare)
    codes = started.wait()
    started.wait_gone()
    return codes


def with_variables(values: Mapping[str, str]) -> Callable[[], None]:
    """What a forked run does first, to have these environment variables."""
    return functools.partial(_set_variables, dict(values))


def _set_variables(values: dict[str, str]) -> None:
    os.environ.update(values)


def wait_for_row(out: Path, started: Run, rows: int = 1) -> None:
    """Until the run has logged so much."""
    deadline = time.monotonic() + 60
    while not (out / "log.jsonl").exists() or len(read_log(out / "log.jsonl")) < rows:
        assert started.running
        assert time.monotonic() < deadline
        time.sleep(0.02)


def met_in_step(step: int, rank: int = 0, world: int = 1) -> int:
    """An image of a tiny run that this rank meets first in this step (counted from 0)."""
    order = Order(samples=36, global_batch=8, rank_batch=4, rank=rank, world=world)
    return int(next(order.micro_batches(step, step + 1))[1][0])


def zoo(command: list[str]) -> int:
    """Run in this very process, for what needs no second one; its exit code."""
    try:
        main(command)
    except SystemExit as stop:
        return int(stop.code or 0)


def last_words(out: Path) -> dict[str, Any]:
    """What the run left in ``exit.json``."""
    return json.loads((out / "exit.json").read_bytes())


def outcome(out: Path) -> dict[str, Any]:
    """What must be the same to the last bit however often the run was killed."""
    weights = (out / "export" / "model.safetensors").read_bytes()
    rows = read_log(out / "log.jsonl")
    for row in rows:
        for field in CLOCK_FIELDS:
            row.pop(field, None)  # a row of validation has no rate
    return {"weights": hashlib.sha256(weights).hexdigest(), "log": rows}


def bits_of(out: Path) -> dict[str, Any]:
    """``outcome``, and the best weights of a run that validates."""
    return {**outcome(out), "best": (out / "export-best" / "model.safetensors").read_bytes()}


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(p / "export" / "model.safetensors") for p in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _in_sessions(sessions: set[int | None]) -> list[str]:
    return [f"{pid} {name}" for pid, name, session in _processes() if session in sessions]


def _processes() -> Iterator[tuple[int, str, int]]:
    """(pid, name, session) of every living process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, rest = (entry / "stat").read_text().rsplit(")", 1)
                state, _, _, session = rest.split()[:4]
                if state != "Z":
                    yield int(entry.name), name.partition("(")[2], int(session)
