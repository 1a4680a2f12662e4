"""Image folders that the tests make for themselves."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def make_photos(folder: Path, *, per_class: int = 12, size: int = 48, seed: int = 0) -> Path:
    """Smooth coloured JPEGs in class folders; each class leans to a colour of its own."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            rng = np.random.default_rng([seed, number, i])
            coarse = rng.integers(0, 200, (5, 6, 3), dtype=np.uint8)
            coarse[..., number] //= 2
            image = Image.fromarray(coarse).resize((size + 8, size), Image.Resampling.BICUBIC)
            image.save(folder / name / f"{i:03}.jpg", quality=92)
    return folder
