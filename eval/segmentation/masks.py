"""Masks and their images, as mmsegmentation reads them, and what may be wrong with them.

A mask is an 8-bit PNG of class numbers, grey or with a palette (whose colours are not looked at).
0 and 255 are ignored, 1 … C are the classes: mmsegmentation's ``reduce_zero_label``, which makes
both 255 and takes one from the rest.

mmsegmentation turns an image by its EXIF tag (OpenCV does) and never its mask.  So the two must be
of one size after the turn.
"""

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from eval.layouts.listing import first_ten
from eval.result_files import shown as shown_text
from eval.segmentation.recipe import IGNORED
from zoo.errors import DataError
from zoo.images import require_sane_size

_THREADS = 8  # reading waits on the disk, and Pillow decodes without the interpreter's lock
_AT_ONCE = 256  # pairs, so that an interrupt has little to wait for
_ORIENTATION = 0x0112
_QUARTER_TURNS = {5, 6, 7, 8}
_GREY, _PALETTE = 0, 3  # colour types of a PNG's header


class _Kind(NamedTuple):
    """One thing that may be wrong."""

    one: str
    many: str
    fix: str


_NO_IMAGE = _Kind(
    "an image that cannot be read",
    "images that cannot be read",
    "replace them by whole JPEG, PNG or WebP files, or remove them and their masks",
)
_NO_MASK = _Kind(
    "a mask that cannot be read",
    "masks that cannot be read",
    "copy or make them anew: a mask is a whole PNG file",
)
_NO_NUMBERS = _Kind(
    "a mask that does not hold class numbers",
    "masks that do not hold class numbers",
    "write class numbers: a PNG with 8-bit grey values, or with a palette; pictures of the colours "
    "of the classes must be turned into numbers first",
)
_SIZE = _Kind(
    "a mask of another size than its image",
    "masks of another size than their images",
    "make each mask for its own image, pixel by pixel; an EXIF tag turns the image and not the "
    "mask: store the image as it is meant to be seen, without the tag",
)
_VALUE = _Kind(
    "a mask with a number that no class has",
    "masks with a number that no class has",
    "a mask holds the numbers of the classes from 1, and 0 or 255 for what has none; check that "
    "the list of classes belongs to these masks",
)
_KINDS = (_NO_IMAGE, _NO_MASK, _NO_NUMBERS, _SIZE, _VALUE)
"""In the order in which they are told: the later may follow from the earlier."""


class _FaultError(Exception):
    def __init__(self, kind: _Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Contents:
    """What the masks of a split hold."""

    pixels: np.ndarray
    """(C,) int64, of each class."""
    empty: tuple[int, ...]
    """Places of the masks in which all pixels are ignored."""


def read_mask(path: Path, classes: int) -> np.ndarray:
    """(H, W) uint8: the number of each pixel's class, from 0, and 255 where it has none.

    Raises DataError for what is no mask, and for a number above that of the last class.
    """
    try:
        with _opened(path) as mask:
            values = np.asarray(mask)
        _require_known(np.bincount(values.ravel(), minlength=256).tolist(), classes)
    except _FaultError as fault:
        raise DataError(
            f"{fault.kind.one}: {fault.detail}", where=shown(path), fix=fault.kind.fix
        ) from fault
    numbers = np.full(256, IGNORED, np.uint8)
    numbers[1 : classes + 1] = np.arange(classes)
    return numbers[values]


def check_pairs(
    root: Path,
    files: Sequence[tuple[str, str]],
    classes: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Contents:
    """Decode every mask below ``root`` once, and hold it against its image's header.

    files: (image, mask), relative to ``root``.  advance: is told how many pairs are done.

    Raises DataError that lists the first ten of what is wrong, of the first kind there is: images
    and masks that cannot be read, masks of another form or size, numbers above that of the last
    class.
    """
    pixels = np.zeros(classes, np.int64)
    empty: list[int] = []
    faults: list[tuple[str, _FaultError]] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as threads:
        warnings.simplefilter("ignore")  # of odd EXIF tags
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(files), _AT_ONCE):
            some = files[start : start + _AT_ONCE]
            outcomes = threads.map(lambda pair: _check(root, pair, classes), some)
            for place, (pair, outcome) in enumerate(zip(some, outcomes, strict=True), start):
                if isinstance(outcome, _FaultError):
                    faults.append((pair[outcome.kind is not _NO_IMAGE], outcome))
                    continue
                pixels += outcome
                if not outcome.any():
                    empty.append(place)
            advance(len(some))
    for kind in _KINDS:
        named = [f"{shown(name)} ({f.detail})" for name, f in faults if f.kind is kind]
        if named:
            what = f"{len(named):,} {kind.many}" if len(named) > 1 else kind.one
            raise DataError(what, where=f"{shown(root)}: {first_ten(named)}", fix=kind.fix)
    return Contents(pixels=pixels, empty=tuple(empty))


def _check(root: Path, pair: tuple[str, str], classes: int) -> np.ndarray | _FaultError:
    """(C,) int64, the pixels of each class in one mask; or what is wrong."""
    image, mask = (root / name for name in pair)
    try:
        size, turned = _size_as_read(image)
        with _opened(mask) as opened:
            if opened.size != size:
                note = ", turned by its EXIF tag" if turned else ""
                raise _FaultError(_SIZE, f"{_pixels(opened.size)}, the image {_pixels(size)}{note}")
            counts = opened.histogram()
        _require_known(counts, classes)
    except _FaultError as fault:
        return fault
    return np.array(counts[1 : classes + 1], np.int64)


def _require_known(counts: Sequence[int], classes: int) -> None:
    """counts: of each value in a file, 256 of them."""
    if unknown := [value for value in range(classes + 1, IGNORED) if counts[value]]:
        values = first_ten(map(str, unknown))
        raise _FaultError(_VALUE, f"{values}, where the last class is {classes}")


def _opened(path: Path) -> Image.Image:
    """A mask, decoded."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as header:
            require_sane_size(header.width, header.height, "")
            header.verify()  # the checksums: without them a flipped bit may decode to other classes
        depth, colour_type = data[24:26]
        # Pillow scales grey values of fewer bits, and 16 bits would be cut.
        if colour_type != _PALETTE and (colour_type, depth) != (_GREY, 8):
            raise _FaultError(_NO_NUMBERS, _form(depth, colour_type))
        mask = Image.open(io.BytesIO(data), formats=["PNG"])
        mask.load()
    except _FaultError:
        raise
    except Exception as error:  # on hostile bytes: anything from OSError to KeyError
        raise _FaultError(_NO_MASK, _reason(error)) from error
    return mask


def _form(depth: int, colour_type: int) -> str:
    names = {_GREY: "grey", 2: "RGB colours", 4: "grey with alpha", 6: "RGB colours with alpha"}
    return f"{depth}-bit {names.get(colour_type, 'pixels of an unknown kind')}"


def turn_of(info: Mapping[Any, Any]) -> int | None:
    """The EXIF tag by which OpenCV turns an image, of what Pillow's header says (``info``)."""
    return _orientation(info.get("exif", b""))


def _size_as_read(path: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) as OpenCV will give it, and whether they changed places by an EXIF tag."""
    try:
        with Image.open(path, formats=["JPEG", "PNG", "WEBP"]) as image:
            require_sane_size(image.width, image.height, "")
            width, height = image.size
            tag = turn_of(image.info)
    except Exception as error:
        raise _FaultError(_NO_IMAGE, _reason(error)) from error
    turned = tag in _QUARTER_TURNS
    return ((height, width) if turned else (width, height)), turned


def _orientation(exif: bytes) -> int | None:
    # Not Pillow's getexif(): it also reads XMP, which OpenCV does not.
    with suppress(Exception):  # a damaged tag is no tag
        tags = Image.Exif()
        tags.load(exif)
        return tags.get(_ORIENTATION)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, DataError):
        return error.what
    if isinstance(error, Image.UnidentifiedImageError):  # its own text holds a memory address
        return "no image of this kind"
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def shown(path: Path | str) -> str:
    """A path for a message, on one line: a name need not be UTF-8, nor fit for a terminal."""
    return shown_text(os.fsencode(path).decode(errors="backslashreplace"))
