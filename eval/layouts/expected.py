"""What each benchmark must hold: how many images, of which classes.  Class lists are timm's."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from timm.data.real_labels import RealLabelsImagenet

from zoo.errors import DataError

VAL_IMAGES = 50_000
"""ILSVRC2012_val_00000001 to …50000."""

TYPES = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), over which mCE is a mean."""
EXTRA_TYPES = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Four more of the same paper, meant for validation: no part of mCE."""
SEVERITIES = (1, 2, 3, 4, 5)

_LISTS = {
    "imagenet": "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
    "imagenet_a": "9826a24166e74ce62fb87b27889874ca26917542c745712309d6e25855d63bc2",
    "imagenet_r": "a6a0729f7a99230280639cab6e51e01485a3b41a676ea35621a501c9d6e83ca4",
}
"""Sha256 of timm's lists: scores hang on their order."""


@cache
def synsets(name: str = "imagenet") -> tuple[str, ...]:
    """The classes of ``imagenet`` (1000), ``imagenet_a`` or ``imagenet_r`` (200 each), sorted.

    Raises DataError where timm's list is another one.
    """
    content = (files("timm.data") / "_info" / f"{name}_synsets.txt").read_bytes()
    if hashlib.sha256(content).hexdigest() != _LISTS[name]:
        raise DataError(
            "timm's list of classes is not the one that scores are known for",
            where=f"timm/data/_info/{name}_synsets.txt",
            fix="install another version of timm",
        )
    return tuple(content.decode().split())


@cache
def label_of_synset() -> dict[str, int]:
    """Position among the 1000 classes of ImageNet."""
    return {name: label for label, name in enumerate(synsets())}


@cache
def reassessed() -> tuple[np.ndarray, np.ndarray]:
    """The reassessed labels of the validation images (Beyer et al. 2020), as timm has them.

    Returns (50001,) bool, whether image ``number`` has any; and its pairs, number * 1000 + label,
    sorted int64.
    """
    labels = RealLabelsImagenet(range(VAL_IMAGES)).real_labels.values()
    known = np.array([False, *map(bool, labels)])
    pairs = [number * 1000 + label for number, ls in enumerate(labels, start=1) for label in ls]
    return known, np.sort(np.array(pairs, np.int64))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A benchmark as it must be."""

    images: int
    """Of one type and severity, where there are several."""
    synsets: tuple[str, ...]
    per_class: int | None
    """Images of each class; None where classes differ."""
    types: tuple[str, ...] = ()
    """Of corruption; each in all of ``severities``."""
    severities: tuple[int, ...] = ()

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Types by severities, or one clean group."""
        pairs = tuple((kind, level) for kind in self.types for level in self.severities)
        return pairs or (("clean", 0),)


@cache
def expected() -> dict[str, Expected]:
    """The table of the benchmarks; counts are those of the published archives."""
    all_of = synsets()
    return {
        "in1k-val": Expected(images=VAL_IMAGES, synsets=all_of, per_class=50),
        "in1k-v2": Expected(images=10_000, synsets=all_of, per_class=10),
        "in1k-a": Expected(images=7_500, synsets=synsets("imagenet_a"), per_class=None),
        "in1k-r": Expected(images=30_000, synsets=synsets("imagenet_r"), per_class=None),
        "in1k-sketch": Expected(images=50_889, synsets=all_of, per_class=None),
        "in1k-c": Expected(
            images=VAL_IMAGES,
            synsets=all_of,
            per_class=50,
            types=TYPES,
            severities=SEVERITIES,
        ),
    }


OWN = "own"
"""A user's own class folders."""
