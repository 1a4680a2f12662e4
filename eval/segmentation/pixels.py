"""An image's pixels as mmsegmentation sees them, or an error where it would make do.

OpenCV decodes a good file to the same bytes, fills what is missing of a damaged one with grey, and
turns what the EXIF tag asks for; elsewhere in tinyzoo that tag is not looked at.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from eval.segmentation.masks import turn_of
from zoo.images import read_image

_TURNED = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
"""By the tag's value, (H, W, 3) as it is to be looked at."""


def read_pixels(path: Path) -> np.ndarray:
    """(H, W, 3) uint8, RGB, turned by the file's EXIF tag.

    Raises DataError for a file that is damaged, or no image, or of no sane size.
    """
    pixels = read_image(path)
    with Image.open(path) as header:
        tag = turn_of(header.info)
    return np.ascontiguousarray(_TURNED[tag](pixels)) if tag in _TURNED else pixels
