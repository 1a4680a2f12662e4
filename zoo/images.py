"""Images from bytes to a network's input, as functions of the card.

EXIF orientation is ignored, in training and in evaluation alike: the published ImageNet protocols
read the stored pixels, and so do the numbers we compare with.  Alpha is dropped, not composed.

H, W: height and width of a file's pixels.  B: images.  S: the network's side.  All in pixels.
"""

import errno
import io
import math
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from zoo.errors import DataError, UsageError

MAX_PIXELS = 50_000_000
MAX_ASPECT = 200
"""Longer side over shorter: a resize by the shorter side makes gigabytes of a 30,000 x 1 strip."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_JPEG_MAGIC = b"\xff\xd8\xff"
# simplejpeg converts other colour spaces too, but one level away from Pillow.
_EXACT_COLOURS = {"YCbCr", "RGB", "Gray"}
_FIX = "replace the file, or remove it"

Interpolation = Literal["bicubic", "bilinear"]
CropMode = Literal["center", "squash"]


def decode(data: bytes, where: str) -> np.ndarray:
    """Decode a JPEG, PNG or WebP file.

    Returns (H, W, 3) uint8 RGB, contiguous and writable, bit-equal to Pillow's.  ``where`` names
    the file in errors.  Raises DataError for whatever is not a whole image of a sane size, and
    nothing else; the size is read from the header before any pixel is decoded.
    """
    if data.startswith(_JPEG_MAGIC):
        with suppress(ValueError):  # colours it lacks, or damage: Pillow decides
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            require_sane_size(int(width), int(height), where)
            if colours in _EXACT_COLOURS:
                return simplejpeg.decode_jpeg(data, strict=True)
    try:
        return _decode_with_pillow(data, where)
    except DataError:
        raise
    except Exception as error:  # on hostile bytes: anything from OSError to KeyError
        raise DataError(f"not a readable image: {_reason(error)}", where=where, fix=_FIX) from error


def _decode_with_pillow(data: bytes, where: str) -> np.ndarray:
    with warnings.catch_warnings():
        # Pillow warns of what it then handles (a palette with alpha), and of bombs below its limit.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            return pixels_of(image, where)


def pixels_of(image: Image.Image, where: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image of Pillow's, as ``decode`` gives it of the file.

    Raises DataError for a size that is not sane.
    """
    require_sane_size(image.width, image.height, where)
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip
        grey_HW = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey_HW[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def require_sane_size(width: int, height: int, where: str) -> None:
    """Raise DataError above MAX_PIXELS or MAX_ASPECT, or where there is no pixel.  In pixels."""
    size = f"{width:,} x {height:,} pixels"
    if width * height > MAX_PIXELS:
        what = f"an image of {size}, over the limit of {MAX_PIXELS:,}"
    elif max(width, height) > MAX_ASPECT * min(width, height):
        what = f"an image of {size}, over the limit of {MAX_ASPECT} to 1"
    else:
        return
    raise DataError(what, where=where, fix=_FIX)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text holds a memory address
        return "no JPEG, PNG or WebP"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def read_image(path: Path) -> np.ndarray:
    """``decode`` of a file: (H, W, 3) uint8 RGB.  Raises DataError, unreadable files included."""
    where = os.fsencode(path).decode(errors="backslashreplace")  # a name need not be UTF-8
    try:
        try:
            data = path.read_bytes()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = path.read_bytes()  # network file systems recover from one of these
    except OSError as error:
        what = f"the file cannot be read: {error.strerror or type(error).__name__}"
        raise DataError(what, where=where, fix="check that it is there, and readable") from error
    return decode(data, where)


def normalise(
    images: Tensor,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Tensor:
    """(B, 3, S, S) to zero mean and unit deviation, channel by channel, on the images' device.

    Takes uint8, or floats in [0, 1]; gives float32 for uint8, the same type otherwise.
    """
    images01 = images if images.is_floating_point() else images / 255
    # Plain numbers, not a tensor of them: that would be a copy and a sync on every call.
    channels = zip(images01.unbind(1), mean, std, strict=True)
    return torch.stack([(channel - m) / s for channel, m, s in channels], dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """How a file's pixels become a network's input; part of the card.

    Raises UsageError for values that no network has.
    """

    image_size: int
    """S, in pixels."""
    crop_pct: float = 0.875
    """Side of the evaluation crop over the resized shorter side, in (0, 1]."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Of RGB in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Of RGB in [0, 1]."""
    interpolation: Interpolation = "bicubic"
    """Antialiased, as Pillow does."""
    crop_mode: CropMode = "center"
    """center: the shorter side is resized.  squash: both sides are, to a square.  timm's names."""

    def __post_init__(self) -> None:
        if self.image_size < 1 or not 0 < self.crop_pct <= 1 or min(self.std) <= 0:
            raise UsageError(
                "impossible preprocessing",
                where=str(self),
                fix="image_size >= 1, 0 < crop_pct <= 1 and every std > 0",
            )

    @property
    def shorter(self) -> int:
        """Shorter side of the resized image of which the middle is cut, in pixels."""
        return math.floor(self.image_size / self.crop_pct)

    def eval_crop(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 to (3, S, S) uint8: the shorter side to floor(S / crop_pct), centre crop.

        Two steps on purpose: cropping while resizing shifts the window by half a pixel.
        """
        height, width = pixels.shape[:2]
        side, short = self.shorter, min(height, width)
        size = [side, side]
        if self.crop_mode == "center":  # the longer side is rounded down, as torchvision does
            size = [int(side * height / short), int(side * width / short)]
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        resized = _resize(image, size, InterpolationMode(self.interpolation))
        return F.center_crop(resized, [self.image_size, self.image_size])

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to float32, normalised, on the images' own device."""
        return normalise(images, self.mean, self.std)


def _resize(image: Tensor, size: list[int], mode: InterpolationMode) -> Tensor:
    """(3, H, W) uint8 to ``size``, antialiased, in Pillow's order.

    Both cut to 0 … 255 between the passes, so their order shows, by up to 13 levels: columns first,
    but rows where that removes more than twice as many rows as columns.
    """
    height, width = image.shape[1:]
    if 0 < height - size[0] > 2 * (width - size[1]):
        image = F.resize(image, [size[0], width], mode, antialias=True)
    return F.resize(image, size, mode, antialias=True)
