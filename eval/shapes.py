"""A labelled image set made by drawing: ten kinds of shapes and textures, for the demo.

A class is a predicate on the plane: true where its paint goes.  A shape is repeated over a
lattice, so that patches teach it as they teach a texture.  Everything else about an image (colours,
place, size, turn, stretch, background, clutter, light, blur, noise) is drawn at random from the
same distributions for all classes, so that only form tells them apart.

Letters: H, W image size in pixels; S the side of the finer grid the predicates are sampled on.
"""

import functools
import io
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFilter

from zoo.errors import UsageError
from zoo.files import atomic_json, disk_errors, sync_folder

Array = np.ndarray
Predicate = Callable[[Array, Array, np.random.Generator], Array]

SPLITS = ("train", "val")
MARKER = "drawn.json"
# Changes with every change of the pixels, so that a folder drawn by older code is drawn anew.
_DRAWING = 2
_JPEG_QUALITY = 92
# Samples per pixel and axis; neither a predicate nor ImageDraw antialiases by itself.
_SUPER = 2
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


# Shapes: (u, v) is the plane about one copy, in units of its radius.


def _disc(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return u * u + v * v < 0.85


def _ring(u: Array, v: Array, rng: np.random.Generator) -> Array:
    square = u * u + v * v
    return (square < 1) & (square > rng.uniform(0.3, 0.5))


def _triangle(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return _halfplanes(v, u, 3, 0.5) == 3


def _square(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) < 0.8


def _star(u: Array, v: Array, rng: np.random.Generator) -> Array:
    # The five lines of a pentagram: its core lies within all of them, its points within four.
    return _halfplanes(v, u, 5, 0.38) >= 4


def _cross(u: Array, v: Array, rng: np.random.Generator) -> Array:
    a, b = np.abs(u), np.abs(v)
    return (np.maximum(a, b) < 1) & (np.minimum(a, b) < rng.uniform(0.22, 0.36))


def _halfplanes(u: Array, v: Array, count: int, distance: float) -> Array:
    """How many of ``count`` half-planes, turned evenly about the centre, hold each point."""
    inside = np.zeros(u.shape, np.uint8)
    for k in range(count):
        angle = 2 * math.pi * k / count
        inside += u * math.cos(angle) + v * math.sin(angle) < distance
    return inside


# Textures: (p, q) is the plane in periods of the texture.


def _stripes(p: Array, q: Array, rng: np.random.Generator) -> Array:
    return p - np.floor(p) < rng.uniform(0.35, 0.6)


def _checker(p: Array, q: Array, rng: np.random.Generator) -> Array:
    return np.sin(math.pi * p) * np.sin(math.pi * q) > 0


def _zigzag(p: Array, q: Array, rng: np.random.Generator) -> Array:
    rise = 0.6 * q
    bent = p + np.abs(rise - np.floor(rise) - 0.5)
    return bent - np.floor(bent) < rng.uniform(0.35, 0.6)


def _spiral(p: Array, q: Array, rng: np.random.Generator) -> Array:
    # sin(angle + turn) > 0, by the addition theorem: no arctangent per pixel.
    turn = _sign(rng) * 2 * math.pi * np.sqrt(p * p + q * q)
    return p * np.sin(turn) + q * np.cos(turn) > 0


SHAPES: dict[str, Predicate] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _triangle,
    "square": _square,
    "star": _star,
    "cross": _cross,
}
TEXTURES: dict[str, Predicate] = {
    "stripes": _stripes,
    "checker": _checker,
    "spiral": _spiral,
    "zigzag": _zigzag,
}
# Sorted: a class's index is its place here, as it is for a reader of the class folders.
CLASSES = tuple(sorted([*SHAPES, *TEXTURES]))


def draw_dataset(
    folder: Path,
    *,
    image_size: int = 64,
    train_per_class: int,
    val_per_class: int,
    seed: int = 0,
) -> None:
    """Draw the set: ``{train,val}/<class>/<nnnn>.jpg``, ``masks/{train,val}/<class>/<nnnn>.png``.

    A mask is 0 on the background and the class's index in ``CLASSES`` plus one on the object.
    Returns at once where ``folder`` already holds these very images; an older set of drawn images
    is replaced.  A given image depends on nothing but its size, seed, split, class and number.
    Raises UsageError for a folder that holds anything else, DiskError.
    """
    counts = dict(zip(SPLITS, (train_per_class, val_per_class), strict=True))
    wanted = {"drawing": _DRAWING, "classes": [*CLASSES], "image_size": image_size, "seed": seed}
    wanted |= counts
    marker = folder / MARKER
    if marker.is_file():
        if _read(marker) == wanted:
            return
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            "refused to draw over files that are not drawn images",
            where=str(folder),
            fix="name a new or empty folder",
        )
    temp = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    with disk_errors(folder):
        shutil.rmtree(temp, ignore_errors=True)
        try:
            for split, count in counts.items():
                _draw_split(temp, split, count, image_size, seed)
            atomic_json(temp / MARKER, wanted)
            os.sync()  # once, instead of an fsync for each of thousands of small files
            _replace(temp, folder)
        finally:
            shutil.rmtree(temp, ignore_errors=True)


def draw_image(
    name: str, number: int, *, image_size: int = 64, split: str = "train", seed: int = 0
) -> tuple[Array, Array]:
    """Image ``number`` of a class: (H, W, 3) uint8 pixels and the (H, W) bool mask of the object.

    Raises KeyError for an unknown class, ValueError for an unknown split.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), CLASSES.index(name), number])
    paint_HW, object_HW = _draw_object(name, image_size, rng)
    luma = rng.uniform(130, 190)
    image_HW3 = _background(luma, image_size, rng)
    paint = _colour(luma - rng.uniform(60, 110), rng)
    image_HW3 = _blend(image_HW3, paint, paint_HW)
    return _photograph(image_HW3, rng), object_HW > 0.5


def _draw_object(name: str, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Coverage in [0, 1] of the paint and of the region it fills, both (H, W)."""
    textured = name in TEXTURES
    radius = rng.uniform(0.8, 1.3)  # in units of half the image
    # Textures have no upright; a shape keeps its own, or squares would be diamonds.
    turn = rng.uniform(-math.pi, math.pi) if textured else rng.uniform(-0.5, 0.5)
    stretch = math.exp(rng.uniform(-0.15, 0.15))
    x, y = _grid(size * _SUPER)
    x, y = x - rng.uniform(-0.3, 0.3), y - rng.uniform(-0.3, 0.3)
    cos, sin = math.cos(turn) / radius, math.sin(turn) / radius
    u, v = (x * cos + y * sin) * stretch, (y * cos - x * sin) / stretch
    # Round or squarish for every class alike: the outline must not give it away.
    a, b = u * u, v * v
    region = a + b < 1 if rng.random() < 0.5 else a * a + b * b < 0.7
    if textured:
        periods = radius / rng.uniform(0.25, 0.45)
        paint = TEXTURES[name](u * periods, v * periods, rng)
    else:
        paint = _lattice(SHAPES[name], u, v, radius / rng.uniform(0.45, 0.65), rng)
    return _shrink(paint & region), _shrink(region)


def _lattice(
    shape: Predicate, u: Array, v: Array, copies: float, rng: np.random.Generator
) -> Array:
    """A shape repeated ``copies`` times a unit, from anywhere in its cell."""
    p, q = u * copies + rng.random(), v * copies + rng.random()
    size = rng.uniform(0.75, 0.95)  # of the copy, in its cell
    return shape((2 * (p - np.floor(p)) - 1) / size, (2 * (q - np.floor(q)) - 1) / size, rng)


@functools.lru_cache(maxsize=4)
def _grid(side: int) -> tuple[Array, Array]:
    """x (1, S) and y (S, 1) of the sample centres, in [-1, 1]."""
    axis = ((np.arange(side, dtype=np.float32) + 0.5) / side) * 2 - 1
    return axis[None, :], axis[:, None]


def _shrink(inside_SS: Array) -> Array:
    """Coverage of each pixel: the mean of its samples."""
    samples = Image.fromarray(inside_SS.view(np.uint8) * np.uint8(255))
    return np.asarray(samples.reduce(_SUPER), np.float32) / 255


def _colour(luma: float, rng: np.random.Generator) -> Array:
    """A colour (3,) in [0, 255] of this luma and any hue."""
    chroma = rng.normal(0, 8, 3).astype(np.float32)
    return np.clip(luma + chroma - chroma @ _LUMA, 0, 255)


def _blend(image_HW3: Array, colour: Array, cover_HW: Array) -> Array:
    return image_HW3 + (colour - image_HW3) * cover_HW[..., None]


def _background(luma: float, size: int, rng: np.random.Generator) -> Array:
    """(H, W, 3) float32: mottle, from a slow gradient to a fine grain, with clutter on it."""
    cells = int(rng.choice([2, 3, 5, 9, 16]))
    light = rng.normal(0, rng.uniform(2, 8), (cells, cells, 1))
    hue = rng.normal(0, 3, (cells, cells, 3))
    mottle = _bytes(_colour(luma, rng) + light + hue)
    side = _SUPER * size
    canvas = Image.fromarray(mottle).resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 5)):
        _clutter(pen, side, luma, rng)
    return np.asarray(canvas.reduce(_SUPER), np.float32)


def _clutter(pen: ImageDraw.ImageDraw, side: int, luma: float, rng: np.random.Generator) -> None:
    """One thing too small to be of a class: a line, a blot or a splinter."""
    red, green, blue = _colour(luma + rng.uniform(-70, 70), rng).astype(int).tolist()
    x, y = rng.uniform(0, side, 2)
    reach = rng.uniform(0.04, 0.12) * side
    kind = rng.integers(3)
    if kind == 0:
        dx, dy = rng.normal(0, 2 * reach, 2)
        width = round(rng.uniform(0.015, 0.045) * side)
        pen.line((x, y, x + dx, y + dy), (red, green, blue), width)
    elif kind == 1:
        pen.ellipse((x, y, x + reach, y + reach * rng.uniform(0.5, 1)), (red, green, blue))
    else:
        corners = np.array([x, y]) + rng.normal(0, reach, (3, 2))
        pen.polygon([(float(a), float(b)) for a, b in corners], (red, green, blue))


def _photograph(image_HW3: Array, rng: np.random.Generator) -> Array:
    """Light from one side, a little blur and noise; (H, W, 3) uint8."""
    size = len(image_HW3)
    x, y = _grid(size)
    slope, angle = rng.uniform(0, 0.3), rng.uniform(0, 2 * math.pi)
    light_HW = 1 + slope * (x * math.cos(angle) + y * math.sin(angle))
    lit = Image.fromarray(_bytes(image_HW3 * light_HW[..., None]))
    blurred = lit.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.012) * size))
    noise = rng.standard_normal(image_HW3.shape, np.float32) * np.float32(rng.uniform(1, 4))
    return _bytes(np.asarray(blurred, np.float32) + noise)


def _bytes(values: Array) -> Array:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _draw_split(root: Path, split: str, count: int, image_size: int, seed: int) -> None:
    for index, name in enumerate(CLASSES):
        images, masks = root / split / name, root / "masks" / split / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for number in range(count):
            image_HW3, object_HW = draw_image(
                name, number, image_size=image_size, split=split, seed=seed
            )
            jpeg = simplejpeg.encode_jpeg(image_HW3, _JPEG_QUALITY, colorsubsampling="444")
            (images / f"{number:04d}.jpg").write_bytes(jpeg)
            (masks / f"{number:04d}.png").write_bytes(_png(object_HW * np.uint8(index + 1)))


def _png(mask_HW: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask_HW).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _read(marker: Path) -> object:
    try:
        return json.loads(marker.read_text())
    except ValueError:
        return None


def _replace(temp: Path, folder: Path) -> None:
    """Put ``temp`` in the place of ``folder``, an older set of drawn images or nothing."""
    if folder.exists():
        old = folder.with_name(f".tmp-{os.getpid()}-old-{folder.name}")
        folder.rename(old)
        temp.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temp.rename(folder)
    sync_folder(folder.parent)
