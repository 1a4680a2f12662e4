"""Which modules import, found out in processes of their own (see ``zoo.doctor.trial``)."""

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from zoo.doctor import trial

LIMIT_SECONDS = 60.0
"""For one module: on a cold network file system torch takes long."""

_STARTING = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """How an import ended."""

    error: str = ""
    """One line; empty where it worked."""
    seconds: float = 0
    version: str = ""
    """What the module says of itself."""
    facts: dict[str, Any] = field(default_factory=dict)


def try_imports(
    steps: Sequence[str], path: Sequence[str], *, limit_seconds: float = LIMIT_SECONDS
) -> dict[str, Trial]:
    """Import each module as this Python does, with ``sys.path`` as given; raises nothing.

    steps: modules, and ``trial.GPU``.  A module that ends its process costs that process only: the
    rest is tried in another one.
    """
    trials: dict[str, Trial] = {}
    while rest := [step for step in steps if step not in trials]:
        failed = [step for step, found in trials.items() if found.error]
        try:
            found, fault = _process(rest, failed, path, limit_seconds)
        except OSError as error:
            found, fault = {}, (_STARTING, f"no process could be started: {error.strerror}")
        trials |= found
        if fault:
            step, why = fault
            trials |= {s: Trial(error=why) for s in (rest if step == _STARTING else [step])}
        elif not found:
            trials |= {step: Trial(error="no answer") for step in rest}
    return trials


def _process(
    steps: list[str], failed: list[str], path: Sequence[str], limit_seconds: float
) -> tuple[dict[str, Trial], tuple[str, str] | None]:
    """What one process found, and where and why it ended before its time, if it did."""
    job = json.dumps({"path": list(path), "steps": steps, "failed": failed})
    # -P: nothing of the current folder stands in the standard library's way.
    command = [sys.executable, "-P", "-W", "ignore", trial.__file__, job]
    found: dict[str, Trial] = {}
    under_way = _STARTING
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        assert child.stdout is not None
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_forward, args=(child.stdout, lines), daemon=True).start()
        try:
            while line := lines.get(
                timeout=limit_seconds if under_way else max(limit_seconds, LIMIT_SECONDS)
            ):
                answer = json.loads(line)
                if "begin" in answer:
                    under_way = answer["begin"]
                else:
                    step = answer.pop("step")
                    found[step] = Trial(**answer)
        except queue.Empty:
            return found, (under_way, f"not done after {limit_seconds:g} s")
        finally:
            child.kill()
            code = child.wait()
        if len(found) == len(steps):
            return found, None
        return found, (under_way, _ended(code, errors))


def _forward(answers: IO[bytes], lines: "queue.SimpleQueue[bytes]") -> None:
    with answers:
        for line in answers:
            lines.put(line)
    lines.put(b"")


def _ended(code: int, errors: IO[bytes]) -> str:
    errors.seek(0)
    said = errors.read(100_000).decode(errors="replace").strip().splitlines()
    try:
        how = f"the process crashed: {signal.Signals(-code).name}"
    except ValueError:
        how = f"the process ended with code {code}"
    return f"{how} ({said[-1].strip()[:200]})" if said else how
