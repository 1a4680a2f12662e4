"""Which transform a model is scored under: its card's own, or a family's.

A family says how files are resized and cropped.  Mean and deviation stay the model's own: they are
part of the network.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from eval.protocols import Protocol
from zoo.errors import UsageError
from zoo.images import Preprocess

CARD = "card"


def _mae(own: Preprocess) -> Preprocess:
    crop_pct = 0.875 if own.image_size <= 224 else 1.0
    return replace(own, crop_pct=crop_pct, interpolation="bicubic", crop_mode="center")


def _timm(own: Preprocess) -> Preprocess:
    return replace(own, crop_pct=0.9, interpolation="bicubic", crop_mode="center")


def _torchvision(own: Preprocess) -> Preprocess:
    return replace(own, crop_pct=0.875, interpolation="bilinear", crop_mode="center")


def _whole(own: Preprocess) -> Preprocess:
    return replace(own, crop_pct=1.0, crop_mode="squash")


FAMILIES: Mapping[str, Callable[[Preprocess], Preprocess]] = MappingProxyType(
    {"mae": _mae, "timm": _timm, "torchvision": _torchvision}
)
"""mae: 256 → 224 bicubic, as MAE, DeiT and DINO do; above 224 px the whole shorter side.
timm: 248 → 224 bicubic, as timm's DeiT, BEiT and Swin configurations have it.
torchvision: 256 → 224 bilinear; so do the published scripts of ImageNet-A and -R.
"""


def resolve(own: Preprocess, protocol: Protocol, override: str = CARD) -> Preprocess:
    """What the protocol makes of a model's own transform.

    override: ``card``, or the name of a family.  A protocol that fixes its transform (ImageNet-C,
    whose files are cropped already) keeps it.  Raises UsageError for an unknown family.
    """
    found = of_family(own, override)
    return _whole(own) if protocol.transform == "whole" else found


def of_family(own: Preprocess, family: str) -> Preprocess:
    """A model's own transform, or what a family makes of it.  Raises UsageError."""
    if family != CARD and family not in FAMILIES:
        raise UsageError(
            f"no transform is called {family!r}",
            where="--transform",
            fix=f"choose one of: {', '.join([CARD, *FAMILIES])}",
        )
    return own if family == CARD else FAMILIES[family](own)
