"""Pull of a large file from loopback against ``hf download``, and verify against ``sha256sum``.

    python -m benchmarks.pull [--megabytes 350] [--rounds 3]

The server is a process of its own; each pull is a process of its own into an empty cache, the two
taking turns.  Timed is the call, imports aside: ``zoo.pull.pull`` and ``snapshot_download``, which
is what ``hf download`` calls.  Memory is the peak over what the process had before.  Goals: 0.9 of
the client's rate although every byte is hashed, 100 MB, 0.8 of ``sha256sum``'s rate.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "kit"))

CONFIG = b'{"architecture": "vit_tiny_patch16_224"}'


def serve_files(size: int, pipe: Connection) -> None:
    """A Hub with one large model, until told to stop."""
    from fakehub import serve

    with serve() as hub:
        block = os.urandom(1 << 20)
        data = (block * (size // len(block) + 1))[:size]
        hub.add("org/large", {"config.json": CONFIG, "model.safetensors": data})
        pipe.send(hub.endpoint)
        pipe.recv()


@contextmanager
def server(size: int) -> Iterator[str]:
    """The endpoint of a running server."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_files, args=(size, theirs))
    process.start()
    yield mine.recv()
    mine.send("stop")
    process.join()


TIMED = """
import json, os, resource, time
{imports}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, clock, cpu = peak(), time.perf_counter(), os.times()
{call}
after = os.times()
seconds = after.user + after.system - cpu.user - cpu.system
print(json.dumps([time.perf_counter() - clock, seconds, peak() - before]))
"""
CALLS = {
    "zoo pull": TIMED.format(imports="from zoo.pull import pull", call="pull('org/large')"),
    "hf download": TIMED.format(
        imports="from huggingface_hub import snapshot_download",
        call="snapshot_download('org/large')",
    ),
}


def measured(call: str, environment: dict[str, str]) -> list[float]:
    """Seconds by the clock, CPU seconds and peak memory in MB of a call in a new process."""
    command = [sys.executable, "-c", call]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    return json.loads(done.stdout)


def pulls(endpoint: str, folder: Path, rounds: int, size: int) -> None:
    """Print both rates and the memory."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder)}
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    taken: dict[str, list[list[float]]] = {name: [] for name in CALLS}
    for number in range(rounds + 1):
        for name, call in reversed(CALLS.items()):
            shutil.rmtree(folder / "home", ignore_errors=True)
            figures = measured(call, environment)
            if number:  # the first round fills the page cache
                taken[name].append(figures)
    for name, rows in taken.items():
        clock, cpu, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        rate = size / 1e6 / clock
        print(f"{name}: {rate:.0f} MB/s, {cpu:.2f} s CPU, {memory:.0f} MB over idle")
    for column, what in ((0, "by the clock"), (1, "by CPU time")):
        pairs = zip(taken["zoo pull"], taken["hf download"], strict=True)
        ratios = [theirs[column] / ours[column] for ours, theirs in pairs]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        median = statistics.median(ratios)
        print(f"rate of zoo pull / hf download, {what}: {median:.2f} (goal 0.9; {each})")


def verifies(folder: Path, rounds: int, size: int) -> None:
    """Print the rates of hashing in this process and in ``sha256sum``."""
    from zoo.verify import verify_folder

    (snapshot,) = (folder / "home").glob("hub/models--org--large/snapshots/*")
    rates: dict[str, list[float]] = {"zoo verify": [], "sha256sum": []}
    for number in range(rounds + 1):
        began = time.perf_counter()
        verify_folder(snapshot)
        between = time.perf_counter()
        subprocess.run(
            ["sha256sum", str(snapshot / "model.safetensors")],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        if number:
            rates["zoo verify"].append(size / 1e6 / (between - began))
            rates["sha256sum"].append(size / 1e6 / (time.perf_counter() - between))
    for name, figures in rates.items():
        print(f"{name}: {statistics.median(figures):.0f} MB/s")
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(f"rate of zoo verify / sha256sum: {statistics.median(ratios):.2f} (goal 0.8)")


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=350)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = options.megabytes * 1_000_000
    with tempfile.TemporaryDirectory() as folder, server(size) as endpoint:
        pulls(endpoint, Path(folder), options.rounds, size)
        verifies(Path(folder), options.rounds, size)


if __name__ == "__main__":
    main()
