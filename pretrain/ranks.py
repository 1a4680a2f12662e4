"""Several ranks, on this machine or on several: torchrun as a child, and its true exit code."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.distributed import die_with_parent
from pretrain.run import LASTING, RunFolder, read_object
from zoo.errors import Exit, LostRankError, PreemptedError, UsageError, ZooError
from zoo.files import atomic_json

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_LOOK_SECONDS = 0.5
_OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Each start then has a store of its own.  Otherwise all share one, in which ranks find where ranks
were that are gone, and wait for them (pytorch issue 135712: the rendezvous keeps the first one)."""
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
            run.failures.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where the folder cannot be used, the ranks say why
        run.exit.unlink(missing_ok=True)
    threads = max(1, (os.cpu_count() or 1) // ranks.nproc)
    child = subprocess.Popen(
        [*_command(ranks, run), "-m", "--", "zoo", *_for_ranks(words)],
        env={
            "OMP_NUM_THREADS": str(threads),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
            **os.environ,
            **(_OWN_STORE if ranks.restarts else {}),
        },
        # Ctrl-C reaches us alone, and each rank once: a third signal would end it unsaved.
        start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    torchrun = _Torchrun(child, run)
    handlers = {number: signal.signal(number, torchrun.ask) for number in _SIGNALS}
    try:
        code = torchrun.wait_for_good() if ranks.restarts else child.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code == 0:
        return
    error = _reason(run, ranks, code)
    if torchrun.asked_between and ranks.restarts and error.code == Exit.LOST_RANK:
        error = _stopped_between_starts(run)
    if ranks.nodes == 1:
        with contextlib.suppress(ZooError):  # a full disk must not hide it
            atomic_json(run.exit, {**read_object(run.exit), **error.as_dict()})
    raise error


@dataclass(slots=True)
class _Torchrun:
    process: subprocess.Popen
    run: RunFolder
    asked_between: bool = False
    """Whether a signal came to us between two starts."""
    stopped: bool = False

    def ask(self, *_: object) -> None:
        if not self.stopped:
            said = self.run.last_words()  # the next start takes them away
            self.asked_between = said is not None and said.code == Exit.LOST_RANK
        self.stop()

    def stop(self) -> None:
        self.stopped = True
        self.process.send_signal(signal.SIGTERM)

    def wait_for_good(self) -> int:
        """Its exit code; it is kept from restarts that would come to the same end.

        Of several machines each watches the folder: torchrun knows of its own ranks alone, and
        would wait for machines that have ended for good.
        """
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(_LOOK_SECONDS)
            said = self.run.last_words()
            if said and said.code in LASTING and not self.stopped:
                self.stop()


def _command(ranks: Ranks, run: RunFolder) -> list[str]:
    # Of several machines torchrun knows its own ranks alone, which does not tell who was first.
    failures = str(run.failures.absolute()) if ranks.nodes == 1 else ""
    command = [sys.executable, "-m", "pretrain.agent", failures]
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


def _reason(run: RunFolder, ranks: Ranks, code: int) -> ZooError:
    """What the ranks said; where they only lost one another, which of them was the first."""
    said = run.last_words()
    if said and said.code != Exit.LOST_RANK:
        return said
    hung = said is not None and "timed out" in said.where.lower()
    what = _first_to_fail(read_object(run.failures), ranks.nproc, hung) if ranks.nodes == 1 else ""
    if said and not what:
        return said
    return LostRankError(
        what or f"the ranks ended with code {code} before they could say why",
        where=said.where if said else str(run.path),
        fix="look for what ended it above (SIGKILL is mostly memory); the same command continues",
    )


def _stopped_between_starts(run: RunFolder) -> ZooError:
    """What is left of a run that was asked to stop after a rank was lost, before it went on."""
    if any(run.checkpoints.glob("step-*")):
        return PreemptedError(
            "stopped by a signal after a rank was lost, before all had started anew",
            where=str(run.checkpoints),
            fix="run the same command again to continue from the newest checkpoint",
        )
    error = ZooError(
        "stopped by a signal after a rank was lost; nothing had been saved",
        where=str(run.path),
        fix="run the same command again",
    )
    error.code = Exit.TERMINATED
    return error


def _first_to_fail(failures: dict[str, Any], nproc: int, hung: bool) -> str:
    """failures: exit code and time of each rank that failed, as ``pretrain/agent.py`` left them.

    hung: whether the others waited for it in vain; torchrun itself then ended it by SIGKILL.
    """
    silent = [str(rank) for rank in range(nproc) if str(rank) not in failures]
    # SIGTERM is how torchrun ends the others: it tells where there is nothing better.
    for followed in ((Exit.LOST_RANK, -signal.SIGTERM), (Exit.LOST_RANK,)):
        own = {rank: f for rank, f in failures.items() if f["code"] not in followed}
        if own or silent:
            break
    if own:
        rank = min(own, key=lambda rank: (own[rank]["time"], int(rank)))
        code = own[rank]["code"]
        if hung and code == -signal.SIGKILL:
            return f"rank {rank} stopped answering"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return f"rank {rank} {how}"
    if not failures or not silent:
        return ""
    who = f"rank {silent[0]}" if len(silent) == 1 else f"one of ranks {', '.join(silent)}"
    return f"{who} left early or stopped answering"
