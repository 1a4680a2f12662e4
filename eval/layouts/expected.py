"""What each benchmark must hold: how many images, of which classes.  Class lists are timm's."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from eval.classes import CLASSES, VAL_IMAGES, real_labels, synsets, synsets_of
from eval.corruptions import SEVERITIES, TYPES


@cache
def reassessed() -> tuple[np.ndarray, np.ndarray]:
    """ReaL's labels of the validation images, for looking one up.

    Returns (50001,) bool, whether image ``number`` has any; and its pairs, number * 1000 + label,
    sorted int64.
    """
    rows, columns = np.nonzero(real_labels().numpy() >= 0)
    known = np.zeros(VAL_IMAGES + 1, bool)
    known[rows + 1] = True
    return known, np.sort((rows + 1) * CLASSES + real_labels().numpy()[rows, columns])


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A benchmark as it must be."""

    images: int
    """Of one type and severity, where there are several."""
    or_images: int | None = None
    """What another source counts: complete as well."""
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
        "in1k-a": Expected(images=7_500, synsets=synsets_of("a"), per_class=None),
        "in1k-r": Expected(images=30_000, synsets=synsets_of("r"), per_class=None),
        "in1k-sketch": Expected(images=50_889, or_images=50_874, synsets=all_of, per_class=None),
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
