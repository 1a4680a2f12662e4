"""Seconds from "imports done" to the first batch of a data set of 1.28 million images.

    python -m benchmarks.index_start [--workers 4] [--images 1281167]

The data set is a kept index whose entries share a few real files: opening it is what is measured,
not a walk.  Goal: 3 s.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pretrain.data import Data
from pretrain.index import KEPT, ImageIndex, PackedNames, open_index, save_index
from pretrain.loader import Loader

CLASSES = 1000
BATCH = 64


def make_data_set(root: Path, count: int) -> None:
    """A thousand class folders, one image behind them all, and an index of ``count`` entries."""
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    name = "ILSVRC2012_00000000.JPEG"  # as long as the real ones
    Image.fromarray(pixels).save(root / name)
    for number in range(CLASSES):
        folder = root / f"n{number:08}"
        folder.mkdir()
        (folder / name).symlink_to(root / name)
    real = open_index(root)
    save_index(
        ImageIndex(
            root=real.root,
            names=PackedNames.of([name.encode()] * count),
            folders=real.folders,
            folder_ids=np.sort(np.arange(count, dtype=np.int32) % CLASSES + 1),
            folder_times=real.folder_times,
            fingerprint=real.fingerprint,
        ),
        root / KEPT,
    )


def main() -> None:
    """Print the seconds to the index and to the first batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--images", type=int, default=1_281_167)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_data_set(Path(folder), options.images)
        start = time.perf_counter()
        index = open_index(Path(folder))
        opened = time.perf_counter()
        loader = Loader(
            index,
            transform=Data(source=f"folder:{folder}").crop(224),
            draws=5,
            global_batch=BATCH,
            rank_batch=BATCH,
            stop_step=1000,
            workers=options.workers,
        )
        batches = iter(loader)
        batch = next(batches)
        done = time.perf_counter()
        batches.close()  # type: ignore[attr-defined]  # a generator: its workers leave
        assert len(index) == options.images
        print(f"index of {len(index):,} images: {opened - start:.2f} s")
        print(f"first batch of {len(batch.images)}: {done - start:.2f} s (goal 3)")


if __name__ == "__main__":
    main()
