"""Scoring a segmentation network on a split, by any number of ranks, exactly.

C classes · M images · H, W pixels of an image's own size · h, w of the resized one
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mmcv
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eval.segmentation.data import Split
from eval.segmentation.iou import count
from eval.segmentation.masks import read_mask
from eval.segmentation.pixels import read_pixels
from eval.segmentation.recipe import LONG_SIDE, Segmentation
from eval.segmentation.upernet import window_logits
from eval.segmentation.windows import class_map, slide
from pretrain.distributed import World


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """What an image was taken for."""

    number: int
    """Of the image in its split."""
    guess: np.ndarray
    truth: np.ndarray
    """(H, W) uint8 class numbers, both; 255 in the truth is ignored."""


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    number: int
    image: Tensor
    """(3, h, w) uint8, BGR."""
    truth: np.ndarray


class _Reader(Dataset[_Read]):
    """Images as mmsegmentation's ``Resize`` gives them, in BGR; masks at their own size."""

    def __init__(self, split: Split, numbers: Sequence[int], short_side: int) -> None:
        self.split, self.numbers, self.short_side = split, numbers, short_side

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> _Read:
        number = self.numbers[place]
        bgr_HW3 = read_pixels(self.split.image(number))[..., ::-1]
        scale = (LONG_SIDE * self.short_side, self.short_side)
        resized = mmcv.imrescale(np.ascontiguousarray(bgr_HW3), scale, interpolation="bilinear")
        truth = read_mask(self.split.mask(number), len(self.split.labels.names))
        return _Read(number, torch.from_numpy(resized).permute(2, 0, 1).contiguous(), truth)


def guesses(
    net: nn.Module,
    split: Split,
    numbers: Sequence[int],
    recipe: Segmentation,
    *,
    workers: int,
    device: torch.device,
) -> Iterator[Guess]:
    """What the images of these numbers are taken for, in order, in float32.

    net: an EncoderDecoder in eval mode.  Raises DataError for an image that cannot be read.
    """
    waiting: deque[_Read] = deque()

    def images() -> Iterator[Tensor]:
        for read in _read(split, numbers, recipe.testing.short_side, workers):
            waiting.append(read)
            # Channels in the network's order, mean and deviation: what it was trained with.
            yield net.data_preprocessor({"inputs": [read.image.to(device)]})["inputs"][0]  # type: ignore[operator]

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for logits in slide(
            lambda windows: window_logits(net, windows),
            images(),
            classes=len(split.labels.names),
            crop=recipe.method.crop,
            stride=recipe.testing.stride,
            batch=recipe.testing.windows or (16 if device.type == "cuda" else 2),
        ):
            read = waiting.popleft()
            height, width = read.truth.shape
            guess = class_map(logits, (height, width)).cpu().numpy()
            yield Guess(read.number, guess, read.truth)


def _read(split: Split, numbers: Sequence[int], short_side: int, workers: int) -> Iterator[_Read]:
    reader = _Reader(split, numbers, short_side)
    yield from DataLoader(reader, batch_size=None, num_workers=workers)


def score(
    net: nn.Module,
    split: Split,
    recipe: Segmentation,
    world: World,
    *,
    workers: int,
    advance: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """(M, 3, C) int64, of every image and on every rank: intersection, guessed, labelled pixels.

    Rank r takes images r::world; nothing is padded, nothing rounded.  Raises DataError.
    """
    classes = len(split.labels.names)
    mine = range(world.rank, len(split), world.size)
    counts = np.zeros((len(split), 3, classes), np.int64)
    was_training = net.training
    net.eval()
    for found in guesses(net, split, mine, recipe, workers=workers, device=world.device):
        counts[found.number] = count(found.guess, found.truth, classes)
        advance(1)
    net.train(was_training)
    parts: list[Any] = world.gather(counts[world.rank :: world.size])
    for rank, part in enumerate(parts):
        counts[rank :: world.size] = part
    return counts
