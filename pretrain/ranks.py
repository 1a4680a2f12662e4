"""Several ranks on this machine: torchrun as a child, and its true exit code."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from zoo.errors import Exit, ZooError


def start_ranks(nproc: int, words: list[str], folder: Path) -> None:
    """Run ``zoo`` with the same words in ``nproc`` ranks and raise what the first one raised.

    torchrun exits with 1 whatever happened; the ranks leave the reason in ``exit.json``.
    """
    own = _without_nproc(words)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // nproc)), **os.environ}
    child = subprocess.Popen([*command, str(nproc), "-m", "zoo", *own], env=environment)
    handlers = {
        number: signal.signal(number, lambda n, _: child.send_signal(n))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        code = child.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code == 0:
        return
    raise _reason(folder / "exit.json", code)


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
        return ZooError(f"the ranks ended with code {code} and left no reason", where=str(place))
    return error
