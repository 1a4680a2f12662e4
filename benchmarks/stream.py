"""Images per second from tar shards, here and over HTTP, against the same images as files.

    OMP_NUM_THREADS=1 python -m benchmarks.stream --data DIR [--passes 7]

The images are packed into shards in a temporary folder; uvicorn gives them out on loopback, in a
process of its own.  The three take turns of 20 images; a pass is every image once.  CPU time is
this process's, with its threads that fetch.  Goal: over HTTP 90 % of what files give.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from pretrain.data import Data, Samples
from pretrain.index import open_index
from pretrain.pack import pack
from pretrain.shards import open_shards
from pretrain.stream import BUFFER, Deal
from pretrain.stream_loader import Request, StreamSamples

CHUNK = 20
SIZE = 224
SERVER = """
import socket, sys, uvicorn
from starlette.applications import Starlette
from starlette.staticfiles import StaticFiles
app = Starlette()
app.mount("/", StaticFiles(directory=sys.argv[1]))
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[server])
"""

Pipeline = Callable[[int], object]
"""Reads 20 images, from this position on."""


def from_files(folder: Path) -> tuple[Pipeline, int]:
    """In another order each pass, and how many images there are."""
    index = open_index(folder)
    samples = Samples(index=index, transform=crop(), draws=5, seed=0)

    def read(position: int) -> object:
        epoch, start = divmod(position, len(index) // CHUNK * CHUNK)
        order = np.random.default_rng([0, epoch]).permutation(len(index))
        return samples.batch(epoch, order[start : start + CHUNK])

    return read, len(index) // CHUNK * CHUNK


def from_shards(place: str) -> Pipeline:
    """As one loader worker does."""
    shards = open_shards(place)
    deal = Deal(shards=len(shards.shards), rank=0, world=1, readers=1, seed=0)
    samples = StreamSamples(shards, deal, buffer=BUFFER, transform=crop(), draws=5)
    return lambda position: samples.answer(Request(0, position, CHUNK))


def crop() -> Callable:
    return Data(source="folder:any").crop(SIZE)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's address."""
    command = [sys.executable, "-c", SERVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.terminate()


def measure(pipelines: dict[str, Pipeline], count: int, passes: int) -> dict[str, np.ndarray]:
    """Images a second of each: (passes, 2), of CPU and of the clock."""
    rates: dict[str, list[list[float]]] = {name: [] for name in pipelines}
    for number in range(passes + 1):
        spent = {name: np.zeros(2) for name in pipelines}
        for start in range(0, count, CHUNK):
            for name, read in pipelines.items():
                before = np.array([time.process_time(), time.perf_counter()])
                read(number * count + start)
                spent[name] += np.array([time.process_time(), time.perf_counter()]) - before
        if number:  # the first pass fills the page cache
            for name in pipelines:
                rates[name].append((count / spent[name]).tolist())
    return {name: np.array(found) for name, found in rates.items()}


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="class folders of JPEGs")
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--shard-size-mb", type=float, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        shards = Path(scratch) / "shards"
        print(pack(options.data, shards, shard_bytes=int(options.shard_size_mb * 1e6)).text())
        with served(shards) as address:
            files, count = from_files(options.data)
            pipelines = {
                "files": files,
                "shards": from_shards(str(shards)),
                "over HTTP": from_shards(address),
            }
            rates = measure(pipelines, count, options.passes)
    for name, found in rates.items():
        cpu, clock = np.median(found, axis=0)
        print(f"{name:10} {cpu:6.0f} images/s of CPU  {clock:6.0f} by the clock")
    for name in ("shards", "over HTTP"):
        for column, kind in enumerate(("CPU", "clock")):
            ratio = statistics.median((rates[name] / rates["files"])[:, column].tolist())
            print(f"{name} / files, {kind}: {ratio:.2f}" + " (goal 0.90)" * (name != "shards"))


if __name__ == "__main__":
    main()
