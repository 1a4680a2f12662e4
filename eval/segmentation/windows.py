"""Sliding windows in batches: the logits of mmseg's ``slide_inference``, and each pixel's class.

mmseg runs one window at a time and adds it, padded to the whole image, to the sum.  Here windows
of one image and of the next go through the network together, and each is added in its place.

C classes · W windows at once · h, w an image as the network sees it · H, W its own size, in pixels
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import IntegrityError


def windows_of(height: int, width: int, *, crop: int, stride: int) -> list[tuple[int, int]]:
    """Top and left of the windows that cover an image, row by row, in pixels.

    mmseg's grid: every ``stride`` pixels, the last of a row or column moved back inside.  height,
    width: at least the crop.
    """
    assert 0 < stride <= crop <= min(height, width), "every pixel in a window, none sticks out"
    tops, lefts = (_starts(length, crop, stride) for length in (height, width))
    return [(top, left) for top in tops for left in lefts]


def _starts(length: int, crop: int, stride: int) -> list[int]:
    count = -(-(length - crop) // stride) + 1
    return [min(i * stride, length - crop) for i in range(count)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a window lies."""

    size: tuple[int, int]
    """Of the image."""
    top: int
    left: int
    number: int
    of: int
    """The windows of the image."""


def slide(
    logits_of: Callable[[Tensor], Tensor],
    images: Iterable[Tensor],
    *,
    classes: int,
    crop: int,
    stride: int,
    batch: int,
) -> Iterator[Tensor]:
    """The logits of every image, in order: (C, h, w) float32, the mean over the windows.

    logits_of: (W, 3, crop, crop) to (W, C, crop, crop), W = ``batch``, at the very end fewer.
    images: (3, h, w) each, normalised, all of one type and device; asked for when their turn comes.
    One smaller than the crop is filled up with zeros, the mean colour, on the right and below.

    Memory, in values, beside what the network takes for W windows: (C + 3) W crop² for the batch,
    (C + 1) h w for the one image under way, 3 h w for each of at most W + 1 images that are here.
    What was yielded lives for as long as the caller keeps it.
    """
    assert batch > 0
    mean = _Mean(classes, crop, stride)
    pixels: list[Tensor] = []
    places: list[_Place] = []
    for window, place in _windows(images, crop, stride):
        pixels.append(window)
        places.append(place)
        if len(pixels) == batch:
            yield from mean.add(_run(logits_of, pixels), places)
            places.clear()
    if pixels:
        yield from mean.add(_run(logits_of, pixels), places)


def _windows(images: Iterable[Tensor], crop: int, stride: int) -> Iterator[tuple[Tensor, _Place]]:
    """Views of the images, each with its place."""
    for image in images:
        height, width = image.shape[1:]
        if min(height, width) < crop:
            image = F.pad(image, (0, max(crop - width, 0), 0, max(crop - height, 0)))
        corners = _covering((height, width), crop, stride)
        for number, (top, left) in enumerate(corners):
            place = _Place(size=(height, width), top=top, left=left, number=number, of=len(corners))
            yield image[:, top : top + crop, left : left + crop], place


def _covering(size: tuple[int, int], crop: int, stride: int) -> list[tuple[int, int]]:
    """The windows of an image of any size, filled up to the crop where it is smaller."""
    return windows_of(max(size[0], crop), max(size[1], crop), crop=crop, stride=stride)


@torch.no_grad()
def _run(logits_of: Callable[[Tensor], Tensor], pixels: list[Tensor]) -> Tensor:
    """The logits of these windows; they are let go before."""
    batch = torch.stack(pixels)
    pixels.clear()
    return logits_of(batch)


class _Mean:
    """Of the windows of the one image under way."""

    def __init__(self, classes: int, crop: int, stride: int) -> None:
        self.classes, self.crop, self.stride = classes, crop, stride
        self._sum: Tensor | None = None

    def add(self, logits: Tensor, places: Sequence[_Place]) -> Iterator[Tensor]:
        """Add windows (W, C, crop, crop) one by one; yields each image with its last."""
        expected = (len(places), self.classes, self.crop, self.crop)
        assert logits.shape == expected, f"logits of {tuple(logits.shape)}, not {expected}"
        for window, place in zip(logits, places, strict=True):
            self._add(window, place)
            if place.number == place.of - 1:
                yield self._take(place)

    @torch.no_grad()
    def _add(self, window: Tensor, place: _Place) -> None:
        if self._sum is None:
            self._sum = window.new_zeros((self.classes, *place.size), dtype=torch.float32)
        height, width = place.size
        part = self._sum[:, place.top : place.top + self.crop, place.left : place.left + self.crop]
        part += window[:, : height - place.top, : width - place.left]

    def _take(self, place: _Place) -> Tensor:
        """The image's mean; nothing here holds it any more."""
        assert self._sum is not None
        mean, self._sum = self._sum, None
        if place.of > 1:
            count = mean.new_zeros(place.size)
            for top, left in _covering(place.size, self.crop, self.stride):
                count[top : top + self.crop, left : left + self.crop] += 1
            mean /= count
        return mean


def class_map(logits_Chw: Tensor, size: tuple[int, int], *, at_once: int | None = None) -> Tensor:
    """(H, W) uint8, each pixel's class: logits resized to the image's own size, then the greatest.

    Bilinear, align_corners False; of equal logits the class of the lowest number.  ``at_once``
    classes are resized at a time, so that (C, H, W) never exists; by default one on a CPU, whose
    caches like that, and else 16.  Raises IntegrityError where a logit is not finite.
    """
    classes = len(logits_Chw)
    assert 0 < classes < 256, "255 is no class"
    at_once = at_once or (1 if logits_Chw.device.type == "cpu" else 16)
    best = torch.full(size, -torch.inf, device=logits_Chw.device)
    found = torch.zeros(size, dtype=torch.uint8, device=logits_Chw.device)
    for first in range(0, classes, at_once):
        few = logits_Chw[first : first + at_once].float()
        resized = F.interpolate(few[None], size, mode="bilinear", align_corners=False)[0]
        if at_once == 1:
            value = resized[0]
            found.masked_fill_(value > best, first)
        else:
            value, number = resized.max(0)
            found = torch.where(value > best, (number + first).to(torch.uint8), found)
        torch.maximum(best, value, out=best)  # a NaN stays one
    if not best.isfinite().all():
        raise IntegrityError(
            "an image has logits that are not finite",
            fix="check the weights (zoo verify), or evaluate in float32",
        )
    return found
