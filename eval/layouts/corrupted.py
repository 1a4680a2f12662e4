"""ImageNet-C: ``type/severity/synset/`` trees, as its archives unpack."""

import numpy as np

from eval.classes import class_of, synsets
from eval.corruptions import EXTRA_TYPES, SEVERITIES, TYPES
from eval.layouts.evalset import Group
from eval.layouts.folders import unknown_classes
from eval.layouts.labelled import Labelled
from eval.layouts.listing import Listing, first_ten
from zoo.errors import DataError

_TREE = "give the folder with TYPE/SEVERITY/SYNSET/ below it (gaussian_noise/1/n01440764 …)"


def label_corrupted(listing: Listing) -> Labelled:
    """Every image's label, and the stretch of images that each type and severity is.

    The folders of the archives (``blur``, ``noise`` …) may stand above the types.  Raises DataError
    for folders that do not fit the tree.
    """
    label_of_folder = np.full(len(listing.folders), -1, np.int64)
    pair_of_folder: dict[int, tuple[str, int]] = {}
    odd, unknown = [], []
    for i in listing.holding:
        name = listing.folder_names[i]
        kind, severity, synset = ["", "", "", *name.split("/")][-3:]
        if kind not in {*TYPES, *EXTRA_TYPES} or severity not in map(str, SEVERITIES):
            odd.append(name or "(loose images)")
        elif synset not in class_of():
            unknown.append(name)
        else:
            label_of_folder[i] = class_of()[synset]
            pair_of_folder[i] = kind, int(severity)
    if odd:
        raise DataError(
            f"folders that are no type and severity of ImageNet-C: {first_ten(odd)}",
            where=str(listing.place),
            fix=_TREE,
        )
    if unknown:
        raise unknown_classes(unknown, listing, "in1k-c")
    empty = [name for name in listing.barren if name.rpartition("/")[2] in class_of()]
    return Labelled(
        listing=listing,
        labels=label_of_folder[listing.folder_ids],
        classes=synsets(),
        groups=_groups(listing, pair_of_folder),
        empty=tuple(empty),
    )


def _groups(listing: Listing, pair_of_folder: dict[int, tuple[str, int]]) -> tuple[Group, ...]:
    counts = np.bincount(listing.folder_ids, minlength=len(listing.folders))
    groups: list[Group] = []
    start = 0
    for i, pair in pair_of_folder.items():  # in the images' order
        stop = start + int(counts[i])
        if groups and groups[-1][:2] == pair:
            groups[-1] = groups[-1]._replace(stop=stop)
        else:
            groups.append(Group(*pair, start, stop))
        start = stop
    pairs = [group[:2] for group in groups]
    twice = sorted({f"{kind}/{level}" for kind, level in pairs if pairs.count((kind, level)) > 1})
    if twice:
        raise DataError(
            f"a type and severity lies in several places: {first_ten(twice)}",
            where=str(listing.place),
            fix="remove the copies",
        )
    return tuple(groups)
