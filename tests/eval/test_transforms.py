"""Which transform a model is scored under."""

import pytest

from eval.protocols import find_protocol
from eval.transforms import FAMILIES, resolve
from zoo.errors import UsageError
from zoo.images import Preprocess

OWN = Preprocess(
    image_size=224,
    crop_pct=0.95,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bilinear",
    crop_mode="squash",
)
VAL, C = find_protocol("in1k-val"), find_protocol("in1k-c")


def test_the_cards_own_by_default() -> None:
    assert resolve(OWN, VAL) == OWN


@pytest.mark.parametrize(
    ("family", "size", "shorter", "interpolation"),
    [
        ("mae", 224, 256, "bicubic"),
        ("mae", 448, 448, "bicubic"),
        ("timm", 224, 248, "bicubic"),
        ("torchvision", 224, 256, "bilinear"),
    ],
)
def test_families(family: str, size: int, shorter: int, interpolation: str) -> None:
    own = Preprocess(image_size=size, mean=OWN.mean, std=OWN.std, crop_mode="squash")
    found = resolve(own, VAL, family)
    assert (found.shorter, found.interpolation, found.crop_mode) == (
        shorter,
        interpolation,
        "center",
    )
    assert (found.mean, found.std) == (OWN.mean, OWN.std)


@pytest.mark.parametrize("family", ["card", *FAMILIES])
def test_corrupted_images_are_cropped_already(family: str) -> None:
    found = resolve(OWN, C, family)
    assert (found.shorter, found.crop_mode) == (224, "squash")


def test_an_unknown_family() -> None:
    with pytest.raises(UsageError, match="no transform is called 'vgg'") as refused:
        resolve(OWN, VAL, "vgg")
    assert "torchvision" in refused.value.fix
