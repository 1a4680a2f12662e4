"""A drawn set in ADE20K's layout, and a segmentation run small enough for a test."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from models import make_model
from PIL import Image

from zoo.vit import ViTConfig

CLASSES = ("sky", "wall", "road")
COLOURS = ((90, 160, 250), (170, 60, 50), (90, 90, 90))
STUDENT = ViTConfig(width=24, depth=4, heads=3, patch=8, image_size=32)
SMALL = (
    "method.crop=32",
    "method.taps=[1, 2, 3, 4]",
    "method.head_channels=16",
    "method.auxiliary_channels=8",
    "training.iterations=6",
    "training.global_batch=2",
    "training.lr=0.003",
    "training.short_side=40",
    "training.log_every=2",
    "training.save_every=2",
    "training.workers=0",
    "testing.short_side=40",
    "testing.stride=20",
)
"""Overrides: seconds on a CPU."""


def make_streets(
    root: Path,
    counts: Mapping[str, int] = MappingProxyType({"training": 6, "validation": 5}),
    *,
    seed: int = 0,
) -> Path:
    """Sky over walls over road, noise over all, a frame that is ignored; sizes differ."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for number in range(count):
            height, width = (int(side) for side in rng.integers(44, 80, 2))
            write_pair(root, split, f"{number:03}", draw_mask(height, width, rng), rng)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def draw_mask(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint8 as in a file: 0 is ignored, 1 … 3 are the classes."""
    mask = np.full((height, width), 2, np.uint8)
    mask[: int(height * rng.uniform(0.2, 0.4))] = 1
    mask[int(height * rng.uniform(0.6, 0.8)) :] = 3
    mask[:, :2] = 0
    return mask


def write_pair(
    root: Path, split: str, name: str, mask: np.ndarray, rng: np.random.Generator
) -> None:
    """An image whose colours tell the classes, and its mask."""
    colours = np.array([(0, 0, 0), *COLOURS], np.float32)
    pixels = colours[np.minimum(mask, 3)] + rng.normal(0, 25, (*mask.shape, 3))
    for kind, array, ending in (
        ("images", pixels.clip(0, 255).astype(np.uint8), "jpg"),
        ("annotations", mask, "png"),
    ):
        folder = root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{name}.{ending}", quality=95)


def make_student(folder: Path) -> Path:
    """A model folder whose positions fit no crop of the run: they must be resized."""
    return make_model(folder, STUDENT)
