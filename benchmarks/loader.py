"""Decoded and cropped images per core and second: ours against the two usual pipelines.

    OMP_NUM_THREADS=1 python -m benchmarks.loader --data DIR [--images 160] [--passes 5]

Process CPU time of one thread, so that a busy machine disturbs little; the three take turns on
chunks of the same files.  Goals: 2.5 times the two-view pipeline, 1.9 times ImageFolder.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision import transforms as T

from pretrain.data import Data, Samples
from pretrain.index import open_index
from zoo.images import IMAGENET_MEAN, IMAGENET_STD

CHUNK = 20
SIZE = 224
BICUBIC = T.InterpolationMode.BICUBIC

Pipeline = Callable[[np.ndarray], object]
"""Reads the images at these positions of the index."""


def ours(folder: Path) -> Pipeline:
    """One uint8 crop, labels and draws: what a loader worker does."""
    data = Data(source=f"folder:{folder}")
    samples = Samples(index=open_index(folder), transform=data.crop(SIZE), draws=5, seed=0)
    return lambda chunk: samples.batch(0, chunk)


def two_views(folder: Path) -> Pipeline:
    """Pillow; one crop and flip, two float tensors, colour jitter on the CPU for the first."""
    index = open_index(folder)
    share = T.Compose(
        [T.RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=BICUBIC), T.RandomHorizontalFlip()]
    )
    finish = T.Compose([T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    jitter = T.ColorJitter(0.4, 0.4, 0.4)

    def read(chunk: np.ndarray) -> object:
        views = []
        for i in chunk:
            with Image.open(index.path(int(i))) as image:
                crop = share(image.convert("RGB"))
            views.append((finish(jitter(crop)), finish(crop)))
        return [torch.stack(view) for view in zip(*views, strict=True)]

    return read


def image_folder(folder: Path) -> Pipeline:
    """torchvision's ImageFolder and a DataLoader without workers, one view."""
    transform = T.Compose(
        [
            T.RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    images = datasets.ImageFolder(str(folder), transform)
    return lambda chunk: list(DataLoader(images, batch_size=CHUNK, sampler=chunk.tolist()))


def measure(pipelines: dict[str, Pipeline], count: int, passes: int) -> dict[str, list[float]]:
    """Images per CPU second of each pipeline, in each pass over ``count`` images."""
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for number in range(passes + 1):
        seconds = dict.fromkeys(pipelines, 0.0)
        for start in range(0, count, CHUNK):
            chunk = np.arange(start, min(start + CHUNK, count))
            for name, read in pipelines.items():
                before = time.process_time()
                read(chunk)
                seconds[name] += time.process_time() - before
        if number:  # the first pass fills the page cache
            for name in pipelines:
                rates[name].append(count / seconds[name])
    return rates


def main() -> None:
    """Print the rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="class folders of JPEGs")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = min(options.images, len(open_index(options.data)))
    pipelines = {
        "ours": ours(options.data),
        "two views": two_views(options.data),
        "ImageFolder": image_folder(options.data),
    }
    rates = measure(pipelines, count, options.passes)
    for name in pipelines:
        print(f"{name:12} {statistics.median(rates[name]):6.0f} images/s a core")
    for name, goal in (("two views", 2.5), ("ImageFolder", 1.9)):
        pairs = zip(rates["ours"], rates[name], strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        print(f"ours / {name:12} {ratio:.2f} (goal {goal})")


if __name__ == "__main__":
    main()
