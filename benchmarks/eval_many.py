"""Three models scored in one pass over the images, against three passes.

    OMP_NUM_THREADS=1 python -m benchmarks.eval_many --data DIR [--rounds 3] [--width 24]

Process CPU time, decoding in the process itself; the two take turns.  By default the networks are
tiny, so that decoding is what costs, as it is where a GPU does the rest; --width 192 --depth 12 are
three ViT-T.  Goal: one pass at least twice as fast.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

from eval.run import Options, evaluate


def make_models(folder: Path, *, width: int, depth: int) -> list[str]:
    """Three classifiers with random weights."""
    arguments: dict[str, Any] = {"embed_dim": width, "depth": depth, "num_heads": 3}
    names = []
    for seed in range(3):
        torch.manual_seed(seed)
        net = timm.create_model("vit_tiny_patch16_224", num_classes=1000, **arguments)
        name = str(folder / f"net{seed}")
        save_for_hf(net, name, model_args=arguments, safe_serialization=True)
        names.append(name)
    return names


def seconds(models: list[str], data: Path, out: Path) -> float:
    """CPU time of one evaluation."""
    before = time.process_time()
    evaluate(models, "in1k-val", [str(data)], Options(partial=True, workers=0, out=out))
    return time.process_time() - before


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="synset folders of JPEGs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--depth", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temp:
        models = make_models(Path(temp), width=options.width, depth=options.depth)
        out = Path(temp) / "results"
        seconds(models[:1], options.data, out)  # imports, indexes and the page cache
        together, apart = [], []
        for _ in range(options.rounds):
            together.append(seconds(models, options.data, out))
            apart.append(sum(seconds([model], options.data, out) for model in models))
    print(f"one pass      {statistics.median(together):6.2f} s of CPU")
    print(f"three passes  {statistics.median(apart):6.2f} s of CPU")
    ratio = statistics.median(b / a for a, b in zip(together, apart, strict=True))
    print(f"three / one   {ratio:6.2f} (goal 2)")


if __name__ == "__main__":
    main()
