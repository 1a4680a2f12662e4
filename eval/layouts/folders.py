"""Class folders: synsets, the numbers of ImageNetV2, a user's own."""

import os
import re
from collections import Counter

import numpy as np

from eval.classes import class_of, synsets
from eval.layouts.labelled import Labelled
from eval.layouts.listing import Listing, each, first_ten, is_synset
from zoo.errors import DataError

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


def is_class_name(name: str) -> bool:
    """Whether a folder name is one of ImageNet's kinds: a synset or a number."""
    return is_synset(name) or bool(_NUMBER.fullmatch(name))


def label_synset_folders(listing: Listing, benchmark: str) -> Labelled:
    """Class folders named by synsets, or by class numbers for ImageNetV2.

    Numbers are read as numbers: sorted as text, 10 would come before 2.  Raises DataError that
    names the folders which are no class.
    """
    held = [listing.folder_names[i] for i in listing.holding]
    barren = [name for name in listing.barren if "/" not in name]
    numbered = [name for name in held if _NUMBER.fullmatch(name)]
    if numbered and benchmark != "in1k-v2":
        raise DataError(
            f"class folders are numbers where {benchmark} has synsets: {first_ten(numbered)}",
            where=str(listing.place),
            fix="give the set with its folders as published (n01440764 …): "
            "a number does not say whose order it follows",
        )
    label_of = number_label if len(numbered) == len(held) else class_of().get
    known = {name: label for name in held if (label := label_of(name)) is not None}
    if unknown := [name or "(loose images)" for name in held if name not in known]:
        raise unknown_classes(unknown, listing, benchmark)
    folders_of = Counter(known.values())
    if twice := [name for name in held if folders_of[known[name]] > 1]:
        raise DataError(
            f"several folders are of the same class: {first_ten(twice)}",
            where=str(listing.place),
            fix="give the set with its folders as published",
        )
    label_of_folder = np.full(len(listing.folders), -1, np.int64)
    label_of_folder[listing.holding] = [known[name] for name in held]
    return Labelled(
        listing=listing,
        labels=label_of_folder[listing.folder_ids],
        classes=synsets(),
        empty=tuple(name for name in barren if label_of(name) is not None),
    )


def number_label(name: str) -> int | None:
    """The class that a numeric folder of ImageNetV2 is of; None for what is no class number."""
    number = int(name) if _NUMBER.fullmatch(name) else -1
    return number if 0 <= number < len(synsets()) else None


def label_targets(listing: Listing, benchmark: str) -> Labelled:
    """WebDataset shards of an ImageNet benchmark: the class number or the synset in each ``.cls``.

    Raises DataError for labels out of range, negative, or text.
    """
    assert listing.targets is not None
    found = [_decimal(target) for target in each(listing.targets)]
    labels = [
        class_of().get(target) if is_synset(target) else number_label(target) for target in found
    ]
    bad = {target for target, label in zip(found, labels, strict=True) if label is None}
    if bad:
        raise unknown_classes(sorted(map(repr, bad)), listing, benchmark)
    return Labelled(listing=listing, labels=np.array(labels, np.int64), classes=synsets())


def label_own_targets(listing: Listing) -> Labelled:
    """WebDataset shards of a user's own set: what the ``.cls`` files say, numbers as numbers."""
    assert listing.targets is not None
    found = [_decimal(target) for target in each(listing.targets)]
    numeric = all(_NUMBER.fullmatch(target) for target in found)
    classes = sorted(set(found), key=int) if numeric else sorted(set(found))
    label_of = {name: label for label, name in enumerate(classes)}
    if "" in label_of:
        raise DataError(
            "a .cls file is empty",
            where=str(listing.place),
            fix="make the shards anew: each .cls file holds the class of its image",
        )
    labels = np.array([label_of[target] for target in found], np.int64)
    return Labelled(listing=listing, labels=labels, classes=tuple(classes))


def _decimal(target: bytes) -> str:
    return target.decode(errors="backslashreplace")


def label_own_folders(listing: Listing) -> Labelled:
    """A user's own class folders, by name; a class may lie deeper, its name is then a path.

    Raises DataError for loose images and for empty classes.
    """
    held = [listing.folder_names[i] for i in listing.holding]
    if held == [""] or "" in held:
        beside = " beside class folders" if len(held) > 1 else " and not in class folders"
        raise DataError(
            f"images lie loose{beside}",
            where=str(listing.place),
            fix="put each image into the folder of its class",
        )
    if listing.barren:
        raise DataError(
            f"class folders without an image: {first_ten(listing.barren)}",
            where=str(listing.place),
            fix="fill them or remove them",
        )
    label_of_folder = np.full(len(listing.folders), -1, np.int64)
    label_of_folder[listing.holding] = np.arange(len(held))
    return Labelled(
        listing=listing, labels=label_of_folder[listing.folder_ids], classes=tuple(held)
    )


def unknown_classes(names: list[str], listing: Listing, benchmark: str) -> DataError:
    """The error for names that are none of ImageNet's classes."""
    return DataError(
        f"no classes of ImageNet: {first_ten(names)}",
        where=str(listing.place),
        fix=f"give the folder of {benchmark} itself, with its class names as published",
    )


def parents_of(listing: Listing) -> list[str]:
    """The folders in which the class folders lie, sorted."""
    return sorted({os.path.dirname(listing.folder_names[i]) for i in listing.holding})  # noqa: PTH120
