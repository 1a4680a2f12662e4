"""timm's transforms as a sample transform: uint8 in, uint8 out, a sample always the same."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.augment import Augment
from pretrain.data import Data, Samples
from pretrain.index import open_index
from zoo.errors import UsageError
from zoo.images import read_image

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_any_image_becomes_a_square_of_uint8(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Augment().transform(32, scale=SCALE, ratio=RATIO)(pixels)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 32, 32))


def test_a_sample_is_a_function_of_seed_epoch_and_index(photos: Path) -> None:
    data = Data(source="folder:x", augment=Augment())
    samples = Samples(index=open_index(photos), transform=data.transform(32), draws=0, seed=0)
    numbers = np.arange(6)
    first, again, later = (samples.batch(epoch, numbers).images for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert all(not torch.equal(a, b) for a, b in zip(first, later, strict=True))
    alone = samples.batch(0, numbers[3:4]).images
    assert torch.equal(alone[0], first[3])


def test_without_a_policy_and_without_mirroring_it_is_the_crop(photos: Path) -> None:
    """The whole of a square image, which is then only resized."""
    pixels = np.ascontiguousarray(read_image(open_index(photos).path(0))[:48, :48])
    plain = Augment(policy=None, flip=0.0).transform(48, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert torch.equal(plain(pixels), torch.from_numpy(pixels).permute(2, 0, 1))
    mirror = Augment(policy=None, flip=1.0).transform(48, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert torch.equal(mirror(pixels), plain(pixels).flip(-1))


@pytest.mark.parametrize("policy", ["", "augmix-m5", "original", "rand-q9", "rand-mx"])
def test_another_policy_is_refused(policy: str) -> None:
    with pytest.raises(UsageError, match="timm knows no RandAugment"):
        Augment(policy=policy).transform(32, scale=SCALE, ratio=RATIO)


def test_the_greatest_magnitude_does_not_end_a_run() -> None:
    """There timm asks Pillow for an image of no bits: it is black, as it once was."""
    pixels = np.full((32, 32, 3), 200, np.uint8)
    vary = Augment(policy="rand-m10-n2-inc1", flip=0.0).transform(32, scale=SCALE, ratio=RATIO)
    random.seed(0)
    np.random.seed(0)
    images = [vary(pixels) for _ in range(60)]
    black = sum(not image.any() for image in images)
    assert 1 <= black <= 30
