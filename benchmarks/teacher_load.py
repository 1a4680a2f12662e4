"""Seconds from a model folder to a ready teacher: ours against the usual way.

    OMP_NUM_THREADS=1 python -m benchmarks.teacher_load [--rounds 5]

Ours: ``load_model`` of a verified ViT-L folder, every check included.  The usual way: build the
network with random weights, ``torch.load``, ``load_state_dict``.  They take turns in one process
on the same weights, in the page cache.  Goal: 10 times less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from zoo.card import Card
from zoo.folder import load_model, save_model
from zoo.vit import VIT_L, build_vit


def seconds(load: Callable[[], object]) -> tuple[float, float]:
    """(CPU time of this process, wall) of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    load()
    return time.process_time() - cpu, time.perf_counter() - wall


def usual(weights: Path) -> torch.nn.Module:
    """As fine-tuning scripts do it."""
    vit = timm.create_model("vit_large_patch16_224", num_classes=0)
    vit.load_state_dict(torch.load(weights, weights_only=True))
    return vit.eval()


def main() -> None:
    """Print the seconds of each and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temp:
        folder, pickled = Path(temp) / "teacher", Path(temp) / "teacher.pth"
        weights = build_vit(VIT_L, seed=0).state_dict()
        card = Card(name="teacher", method="mae", heads=16, last_trained_block=24)
        save_model(folder, VIT_L, weights, card)
        torch.save(weights, pickled)
        del weights
        ways = {
            "ours": lambda: load_model(folder),
            "ours, 18 blocks": lambda: load_model(folder, blocks=18),
            "usual": lambda: usual(pickled),
        }
        first = seconds(ways["ours"])
        print(f"first load, which hashes {pickled.stat().st_size / 1e9:.2f} GB: {first[1]:.2f} s")
        taken = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, load in ways.items():
                taken[name].append(seconds(load))
    for name, figures in taken.items():
        cpu, wall = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:16} {cpu:6.3f} s CPU, {wall:6.3f} s wall")
    for kind, place in (("CPU", 0), ("wall", 1)):
        pairs = zip(taken["usual"], taken["ours"], strict=True)
        ratio = statistics.median(theirs[place] / mine[place] for theirs, mine in pairs)
        print(f"usual / ours, {kind}: {ratio:.1f} (goal 10)")


if __name__ == "__main__":
    main()
