"""ImageNet's validation images in one folder, as its own archive unpacks: labels from elsewhere."""

import re

import numpy as np

from eval.classes import class_of, synsets
from eval.layouts.labelled import Labelled
from eval.layouts.listing import Listing, each, first_ten, val_numbers
from eval.layouts.maps import find_map
from zoo.errors import DataError

# n01440764_tench.JPEG, n01440764_10026.JPEG, ILSVRC2012_val_00000293_n01440764.JPEG
_IN_NAME = re.compile(rb"(?:^|_)(n\d{8})(?=[_.])")

_GET_A_MAP = (
    "put one of these beside the images or one folder above: LOC_val_solution.csv (comes with "
    "Kaggle's ImageNet), imagenet_2012_validation_synset_labels.txt (a synset a line, from "
    "TensorFlow's models), val.txt (Caffe's: name and class number), valprep.sh; or sort the "
    "images into class folders with the last"
)


def synset_in_name(name: bytes) -> str | None:
    """The synset that a file name carries, as those of the training set and of the Hub do."""
    match = _IN_NAME.search(name)
    return match[1].decode() if match else None


def label_flat(listing: Listing) -> Labelled:
    """Labels from the file names, or from a map beside the folder.

    Raises DataError where there is neither, or the map lacks an image.
    """
    named = [synset_in_name(name) for name in each(listing.names)]
    if all(named):
        label_of = class_of()
        unknown = sorted({str(name) for name in named} - label_of.keys())
        if unknown:
            raise DataError(
                f"no classes of ImageNet: {first_ten(unknown)}",
                where=str(listing.place),
                fix="give the validation images of ImageNet-1k",
            )
        labels = np.array([label_of[str(name)] for name in named], np.int64)
        return Labelled(listing=listing, labels=labels, classes=synsets())
    numbers = val_numbers(listing)
    if not numbers.all():
        odd = (
            listing.names[i].decode(errors="backslashreplace")
            for i in np.flatnonzero(numbers == 0).tolist()
        )
        raise DataError(
            f"images that lie in no class folder, and whose names say no class: {first_ten(odd)}",
            where=str(listing.place),
            fix="sort them into class folders named by synsets (n01440764 …)",
        )
    found = find_map(listing.place)
    if found is None:
        raise DataError(
            "the images lie in one folder, and nothing says which is of which class",
            where=str(listing.place),
            fix=_GET_A_MAP,
        )
    lacking = numbers[~np.isin(numbers, list(found.labels))]
    if len(lacking):
        raise DataError(
            f"the map has no class for {first_ten(f'ILSVRC2012_val_{n:08}' for n in lacking)}",
            where=str(found.place),
            fix="fetch the map anew: it is cut, or of other images",
        )
    labels = np.fromiter((found.labels[n] for n in numbers.tolist()), np.int64, len(numbers))
    return Labelled(listing=listing, labels=labels, classes=synsets())
