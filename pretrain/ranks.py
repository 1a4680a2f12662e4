"""Several ranks, on this machine or on several: torchrun as a child, and its true exit code."""

import functools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pretrain.distributed import die_with_parent
from pretrain.run import RunFolder
from zoo.errors import LostRankError, UsageError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_OURS = ("--nproc", "--nodes", "--rendezvous", "--restarts")
"""Options of the launcher, which the ranks must not see again.  Each takes a value."""
SHUTDOWN_SECONDS = 120
"""How long torchrun waits for ranks to save before it kills them; its own default is 30."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """How many ranks to start, and where.  Raises UsageError for what does not go together."""

    nproc: int = 1
    """On this machine."""
    nodes: int = 1
    """Machines; the same command runs on each."""
    rendezvous: str | None = None
    """``HOST[:PORT]`` of one of the machines, where all of them meet."""
    restarts: int = 0
    """How often a lost rank may make all of them start anew, from the newest checkpoint."""

    def __post_init__(self) -> None:
        if (self.nodes > 1) != (self.rendezvous is not None):
            raise UsageError(
                "several machines have to meet somewhere"
                if self.nodes > 1
                else "one machine has nobody to meet",
                where=f"--nodes {self.nodes}, --rendezvous {self.rendezvous or 'not given'}",
                fix="give both: --nodes 2 --rendezvous FIRST-HOST:29500, the same on each machine",
            )

    @property
    def by_torchrun(self) -> bool:
        return self.nproc > 1 or self.nodes > 1 or self.restarts > 0


def start_ranks(ranks: Ranks, words: list[str], folder: Path) -> None:
    """Run ``zoo`` with the same words in every rank and raise what the first one raised.

    torchrun exits with 1 whatever happened; the ranks leave the reason in ``exit.json``.
    """
    run = RunFolder(folder)
    if ranks.nodes == 1:
        with run.hold():  # a folder in use is refused at once, and in our own words
            run.exit.unlink(missing_ok=True)
    threads = max(1, (os.cpu_count() or 1) // ranks.nproc)
    child = subprocess.Popen(
        [*_torchrun(ranks, run), "-m", "--", "zoo", *_for_ranks(words)],
        env={
            "OMP_NUM_THREADS": str(threads),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
            **os.environ,
        },
        # Ctrl-C reaches us alone, and each rank once: a third signal would end it unsaved.
        start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    handlers = {
        number: signal.signal(number, lambda *_: child.send_signal(signal.SIGTERM))
        for number in _SIGNALS
    }
    try:
        code = child.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code == 0:
        return
    raise run.last_words() or LostRankError(
        f"the ranks ended with code {code} before they could say why",
        where=str(folder),
        fix="look for what ended them above; the same command continues",
    )


def _torchrun(ranks: Ranks, run: RunFolder) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--nproc-per-node", str(ranks.nproc), "--max-restarts", str(ranks.restarts)]
    command += ["--signals-to-handle", ",".join(number.name for number in _SIGNALS)]
    if ranks.rendezvous is None:
        return [*command, "--standalone"]
    command += ["--nnodes", str(ranks.nodes), "--rdzv-backend", "c10d"]
    # Who meets is told apart by the name of the run's folder, which all machines share.
    return [*command, "--rdzv-endpoint", ranks.rendezvous, "--rdzv-id", run.path.resolve().name]


def _for_ranks(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        option = word.partition("=")[0]
        if not skip and option not in _OURS:
            kept.append(word)
        skip = not skip and word in _OURS
    return kept
