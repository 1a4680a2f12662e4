"""Tiny segmentation sets in ADE20K's layout, drawn."""

import io
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from eval.segmentation.colours import ade20k_facts

THREE = ("sky", "road", "car")


def grey(mask: np.ndarray) -> bytes:
    """A PNG of (H, W) uint8 values, 8-bit grey."""
    return _encoded(Image.fromarray(mask))


def indexed(mask: np.ndarray) -> bytes:
    """The same values as places in a palette."""
    image = Image.fromarray(mask).copy()
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    assert image.mode == "P"
    return _encoded(image)


def raw_png(width: int, height: int, *, depth: int, colour_type: int, row: bytes) -> bytes:
    """A PNG of any form, every row the same."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * height)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def photo(height: int, width: int, *, orientation: int = 1, form: str = "JPEG") -> bytes:
    """A grey-green image of this stored size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 80)).save(buffer, form, exif=exif.tobytes())
    return buffer.getvalue()


def scene(seed: int, classes: int, height: int = 12, width: int = 16) -> np.ndarray:
    """(H, W) uint8 values of a mask: bands of all classes, and some pixels of none."""
    values = np.arange(height * width) * (classes + 1) // (height * width)
    return np.roll(values.reshape(height, width).astype(np.uint8), seed, axis=0)


def write_pair(root: Path, split: str, stem: str, mask: np.ndarray, ending: str = ".jpg") -> None:
    """``images/SPLIT/STEM.jpg`` and ``annotations/SPLIT/STEM.png``, of one size."""
    image = root / "images" / split / (stem + ending)
    place = root / "annotations" / split / f"{stem}.png"
    for path in (image, place):
        path.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(photo(*mask.shape))
    place.write_bytes(grey(mask))


def write_set(
    root: Path,
    splits: Mapping[str, int] = {"training": 4, "validation": 3},
    names: Sequence[str] = THREE,
) -> Path:
    """A set of one's own: so many pairs in each split, and ``classes.txt``."""
    for split, count in splits.items():
        for i in range(count):
            write_pair(root, split, f"{split}{i}", scene(i, len(names)))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def ade20k_names() -> tuple[str, ...]:
    facts = ade20k_facts()
    assert facts is not None, "the tests need the extra seg"
    return facts[0]


def write_ade20k(root: Path, split: str, numbers: Sequence[int]) -> Path:
    """Files named as ADE20K's, all of one image and one mask, and a table of its classes."""
    rows = [f"{i}\t0.1\t1\t1\t{name}\n" for i, name in enumerate(ade20k_names(), 1)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "".join(rows))
    kind = {"training": "train", "validation": "val"}[split]
    write_pair(root, split, ".first", scene(0, 150, 16, 16))
    for folder, ending in (("images", ".jpg"), ("annotations", ".png")):
        place = root / folder / split
        for number in numbers:
            os.link(place / f".first{ending}", place / f"ADE_{kind}_{number:08d}{ending}")
    return root


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
