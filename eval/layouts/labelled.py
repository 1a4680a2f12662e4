"""What a layout makes of a listing, before it is compared with what the benchmark must hold."""

from dataclasses import dataclass

import numpy as np

from eval.layouts.evalset import Group
from eval.layouts.listing import Listing


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Images with labels."""

    listing: Listing
    labels: np.ndarray
    """(N,) int64, position in ``classes``."""
    classes: tuple[str, ...]
    groups: tuple[Group, ...] = ()
    """Empty: all images are of one group."""
    empty: tuple[str, ...] = ()
    """Class folders without an image."""
