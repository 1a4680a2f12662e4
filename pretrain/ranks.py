"""Several ranks on this machine: torchrun as a child, and its true exit code."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from pretrain.distributed import die_with_parent
from pretrain.run import RunFolder
from zoo.errors import Exit, LostRankError, ZooError


def start_ranks(nproc: int, words: list[str], folder: Path) -> None:
    """Run ``zoo`` with the same words in ``nproc`` ranks and raise what the first one raised.

    torchrun exits with 1 whatever happened; the ranks leave the reason in ``exit.json``.
    """
    run = RunFolder(folder)
    with run.hold():  # a folder in use is refused at once, and in our own words
        run.exit.unlink(missing_ok=True)
    own = _without_nproc(words)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // nproc)), **os.environ}
    child = subprocess.Popen(
        [*command, str(nproc), "-m", "--", "zoo", *own],
        env=environment,
        # Ctrl-C reaches us alone, and each rank once: a third signal would end it unsaved.
        start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    handlers = {
        number: signal.signal(number, lambda *_: child.send_signal(signal.SIGTERM))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    try:
        code = child.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code == 0:
        return
    raise _reason(run.exit, code)


def _without_nproc(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--nproc"):
            kept.append(word)
        skip = word == "--nproc"
    return kept


def _reason(place: Path, code: int) -> ZooError:
    try:
        outcome = json.loads(place.read_bytes())
        error = ZooError(
            outcome["error"], where=outcome.get("where", ""), fix=outcome.get("fix", "")
        )
        error.code = Exit(outcome["code"])
    except (OSError, ValueError, KeyError):
        return LostRankError(
            f"the ranks ended with code {code} before they could say why",
            where=str(place.parent),
            fix="look for what ended them above; the same command continues",
        )
    return error
