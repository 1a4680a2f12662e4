"""From a JPEG to a network's input, per core and second: ours against timm's, on Pillow.

    OMP_NUM_THREADS=1 python -m benchmarks.eval_pipeline --data DIR [--images 160] [--passes 5]

Process CPU time of one thread; the two take turns on chunks of the same files.  timm's is what its
``validate.py`` runs in a loader worker: Pillow, Resize, CenterCrop, to uint8.  Goal: twice its
rate, with equal decoded pixels and resized ones within 2 levels, looked at on every image.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from benchmarks.loader import Pipeline, measure
from pretrain.index import open_index
from zoo.images import Preprocess, read_image

SIZE = 224


def ours(folder: Path) -> Pipeline:
    """What ``zoo eval`` does."""
    index, transform = open_index(folder), Preprocess(image_size=SIZE)
    return lambda chunk: torch.stack(
        [transform.eval_crop(read_image(index.path(int(i)))) for i in chunk]
    )


def with_timm(folder: Path) -> Pipeline:
    """timm's evaluation transform with its prefetcher, which normalises on the device as we do."""
    index = open_index(folder)
    transform = create_transform(SIZE, use_prefetcher=True, crop_pct=0.875, interpolation="bicubic")

    def read(chunk: np.ndarray) -> torch.Tensor:
        crops = []
        for i in chunk:
            with Image.open(index.path(int(i))) as image:
                crops.append(transform(image.convert("RGB")))  # type: ignore[operator]
        return torch.stack(crops)

    return read


def compare(folder: Path, count: int) -> tuple[int, int]:
    """Greatest difference of decoded and of resized pixels over all images, in levels."""
    index, mine, theirs = open_index(folder), ours(folder), with_timm(folder)
    decoded = resized = 0
    for i in range(count):
        with Image.open(index.path(i)) as image:
            pillow = np.asarray(image.convert("RGB")).astype(int)
        decoded = max(decoded, int(np.abs(read_image(index.path(i)).astype(int) - pillow).max()))
        one, other = (read(np.array([i])) for read in (mine, theirs))
        assert isinstance(one, torch.Tensor)
        assert isinstance(other, torch.Tensor)
        resized = max(resized, int((one.int() - other.int()).abs().max()))
    return decoded, resized


def main() -> None:
    """Print rates, ratio and differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="class folders of JPEGs")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = min(options.images, len(open_index(options.data)))
    pipelines = {"ours": ours(options.data), "timm": with_timm(options.data)}
    rates = measure(pipelines, count, options.passes)
    for name in pipelines:
        print(f"{name:5} {statistics.median(rates[name]):6.0f} images/s a core")
    pairs = zip(rates["ours"], rates["timm"], strict=True)
    print(f"ours / timm {statistics.median(a / b for a, b in pairs):.2f} (goal 2)")
    decoded, resized = compare(options.data, count)
    print(f"greatest difference: decoded {decoded}, resized {resized} levels (goals 0, 2)")


if __name__ == "__main__":
    main()
