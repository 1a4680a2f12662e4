"""What tests of real torchrun processes share."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from pretrain.log import read_log


def wait_for_rows(out: Path, started: Sequence[subprocess.Popen[str]], rows: int = 1) -> None:
    """Until the run has logged so much; all of its launchers must be alive so long."""
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or len(read_log(out / "log.jsonl")) < rows:
        for process in started:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_at_work(out: Path) -> dict[int, int]:
    """The pid of each rank that trains in this folder, by rank: not torchrun nor the launcher."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                variables = (entry / "environ").read_bytes().decode().split("\0")
            except OSError:
                continue
            environment = {name: value for name, _, value in (v.partition("=") for v in variables)}
            if str(out).encode() in command and "TORCHELASTIC_RUN_ID" in environment:
                found[int(environment["RANK"])] = int(entry.name)
    return found
