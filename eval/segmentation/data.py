"""Sets in ADE20K's layout: ``images/SPLIT/NAME.jpg`` beside ``annotations/SPLIT/NAME.png``.

ADE20K here is the set of the scene parsing challenge, ``ADEChallengeData2016``: 20,210 images for
training and 2,000 for validation, 150 classes (Zhou et al., "Scene parsing through ADE20K dataset",
CVPR 2017).  Any other set with a list of classes is a set of one's own.

Before anything is computed, all masks are decoded and held against their images.  What came of it
is kept in the user's cache: while no file changes, no later start decodes a mask.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from eval.layouts.listing import counted, first_ten
from eval.segmentation.folders import (
    IMAGES,
    MASKS,
    Found,
    list_files,
    require_no_parts,
    split_folders,
)
from eval.segmentation.labels import Labels, read_labels
from eval.segmentation.masks import Contents, check_pairs, shown
from pretrain.index import EXTENSIONS, fingerprint_files
from zoo.errors import DataError, DiskError
from zoo.files import atomic_json, typed_path

ADE20K = "ADE20K"

_IMAGE_ENDINGS = tuple(map(os.fsdecode, EXTENSIONS))
_MASK_ENDINGS = (".png",)
_PUBLISHED = {"training": ("train", 20_210), "validation": ("val", 2_000)}
"""Of ADE20K: what the files of a split are called, and how many there are."""
_NAME = re.compile(r"ADE_(train|val)_([0-9]{8})")
_FORMAT = "tinyzoo-masks@1"
"""Raise it with any change of what is checked."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """N images and their masks, found whole."""

    root: Path
    """Absolute."""
    split: str
    """Its folder's name: training, validation, …"""
    name: str
    """Of the set: ``ADE20K``, or the name of one's own root folder."""
    is_ade20k: bool
    """The list of classes and the names of all files are ADE20K's."""
    labels: Labels
    files: tuple[tuple[str, str], ...]
    """Image and mask relative to the root, with ``/``, sorted by the bytes of the image's name."""
    fingerprint: str
    """Hex sha256 over names and sizes of all images and masks, and the list of classes."""
    complete: bool
    """All images of ADE20K's split are there.  A set of one's own always is complete."""
    missing: str
    """In words what is there of how much, where it is not complete; else empty."""
    pixels: np.ndarray
    """(C,) int64, how many pixels each class has in all masks."""
    empty: tuple[str, ...]
    """The masks in which all pixels are ignored, relative to the root."""

    def __len__(self) -> int:
        return len(self.files)

    def image(self, i: int) -> Path:
        """Absolute path of image ``i``.  Raises IndexError."""
        return self.root / self.files[i][0]

    def mask(self, i: int) -> Path:
        """Absolute path of the mask of image ``i``, for ``read_mask``.  Raises IndexError."""
        return self.root / self.files[i][1]

    @property
    def endings(self) -> tuple[str, str] | None:
        """Of all images and of all masks, ``(".jpg", ".png")`` say; None where they differ.

        mmsegmentation's own data sets take one of each, and do not see files with another.
        """
        found = {tuple(os.path.splitext(name)[1] for name in pair) for pair in self.files}  # noqa: PTH122
        image, mask = found.pop()
        return None if found else (image, mask)


def open_split(
    root: Path,
    split: str,
    *,
    partial: bool = False,
    advance: Callable[[int], None] | None = None,
    cache: Path | None = None,
) -> Split:
    """The images and masks of one split of a set in ADE20K's layout, recognised and checked.

    partial: take ADE20K with images missing; ``missing`` then says so.  advance: is told how many
    masks are done.  cache: where outcomes are kept, the user's own cache folder by default.

    Raises DataError that says what is wrong: another layout (with what was looked for and what is
    there), the full ADE20K, no such split, no list of classes or a bad one, images without a mask
    and masks without an image, an incomplete ADE20K unless ``partial``, and all that
    ``check_pairs`` refuses.
    """
    root = typed_path(root)
    image_folder, mask_folder = split_folders(root, split)
    root = root.resolve()
    labels = read_labels(root)
    found = list_files(image_folder)
    require_no_parts(root, split, found)
    images = _by_stem(found, _IMAGE_ENDINGS, image_folder)
    masks = _by_stem(list_files(mask_folder), _MASK_ENDINGS, mask_folder)
    _require_pairs(images, masks, image_folder, mask_folder)
    due = _published(root, split, images) if labels.is_ade20k else 0
    missing = _shortfall(root, split, len(images), due, partial=partial)
    pairs = [(images[stem], masks[stem]) for stem in images]
    files = tuple((f"{IMAGES}/{split}/{i.name}", f"{MASKS}/{split}/{m.name}") for i, m in pairs)
    fingerprint = _fingerprint(split, pairs, labels)
    facts = {"format": _FORMAT, "fingerprint": fingerprint, "times": _times(pairs)}
    place = (cache or user_cache_path("tinyzoo")) / "segmentation" / _cache_name(root, split)
    tell = advance or (lambda count: None)
    contents = _kept(place, facts, len(labels), len(files))
    if contents is not None:
        tell(len(files))
    else:
        contents = check_pairs(root, files, len(labels), tell)
        _keep(place, facts, contents)
    return Split(
        root=root,
        split=split,
        name=ADE20K if due else shown(root.name),
        is_ade20k=bool(due),
        labels=labels,
        files=files,
        fingerprint=fingerprint,
        complete=not missing,
        missing=missing,
        pixels=contents.pixels,
        empty=tuple(files[i][1] for i in contents.empty),
    )


def _by_stem(files: Iterable[Found], endings: tuple[str, ...], folder: Path) -> dict[str, Found]:
    """The files with these endings by their names without them, in order.

    Raises DataError where there is none, and where two differ by their endings only.
    """
    others: set[str] = set()
    stems: dict[str, Found] = {}
    twice: list[str] = []
    for file in files:
        stem, ending = os.path.splitext(file.name)  # noqa: PTH122
        if ending.lower() not in endings:
            others.add(ending)
        elif stem in stems:
            twice += [shown(stems[stem].name), shown(file.name)]
        else:
            stems[stem] = file
    if twice:
        raise DataError(
            "files that differ by their endings only, so that a pair is not clear",
            where=f"{shown(folder)}: {first_ten(twice)}",
            fix="keep one of each",
        )
    if not stems:
        there = first_ten(sorted(shown(ending) for ending in others if ending)) or "none"
        raise DataError(
            f"the folder holds no file that ends in {' or '.join(endings)}",
            where=f"{shown(folder)}: endings there: {there}",
            fix="images are JPEG, PNG or WebP files and masks PNG files: JPEG would blur numbers",
        )
    return stems


def _require_pairs(
    images: dict[str, Found], masks: dict[str, Found], image_folder: Path, mask_folder: Path
) -> None:
    lone = [shown(images[stem].name) for stem in images if stem not in masks]
    if lone:
        raise DataError(
            f"{counted(len(lone), 'image')} without a mask",
            where=f"{shown(image_folder)}: {first_ten(lone)}",
            fix=f"add the masks, {shown(mask_folder)}/NAME.png for NAME.jpg, or remove the images",
        )
    lone = [shown(masks[stem].name) for stem in masks if stem not in images]
    if lone:
        raise DataError(
            f"{counted(len(lone), 'mask')} without an image",
            where=f"{shown(mask_folder)}: {first_ten(lone)}",
            fix=f"add the images in {shown(image_folder)}, or remove the masks",
        )


def _published(root: Path, split: str, images: dict[str, Found]) -> int:
    """How many images ADE20K's split has; 0 where these are not its images.

    Raises DataError for its images mixed with others: that is neither ADE20K nor another set.
    """
    kind, due = _PUBLISHED.get(split, ("", 0))
    others = [
        shown(file.name)
        for stem, file in images.items()
        if not ((match := _NAME.fullmatch(stem)) and match[1] == kind and 1 <= int(match[2]) <= due)
    ]
    if len(others) == len(images):
        return 0
    if others:
        raise DataError(
            f"{counted(len(others), 'image')} that ADE20K's {split} does not have",
            where=f"{shown(root / IMAGES / split)}: {first_ten(others)}",
            fix="remove them; or, for a set of your own, give ADE20K's images other names",
        )
    return due


def _shortfall(root: Path, split: str, count: int, due: int, *, partial: bool) -> str:
    if not due or count == due:
        return ""
    missing = f"{count:,} of {due:,} images"
    if not partial:
        raise DataError(
            f"{missing} of ADE20K's {split} are there",
            where=shown(root / IMAGES / split),
            fix="complete it, or repeat with --partial: the result will say so",
        )
    return missing


def _fingerprint(split: str, pairs: list[tuple[Found, Found]], labels: Labels) -> str:
    places = [os.fsencode(f"{top}/{split}") for top in (IMAGES, MASKS)]
    files = [
        (place, os.fsencode(file.name), file.size)
        for pair in pairs
        for place, file in zip(places, pair, strict=True)
    ]
    return fingerprint_files([*files, (b"classes", labels.digest.encode(), len(labels))])


def _times(pairs: list[tuple[Found, Found]]) -> str:
    """Hex sha256 over when each file was last written: a mask edited in place may keep its size."""
    times = np.array([[file.time for file in pair] for pair in pairs], "<i8")
    return hashlib.sha256(times.tobytes()).hexdigest()


def _cache_name(root: Path, split: str) -> str:
    # By place and not by fingerprint: a set that changes leaves nothing behind.
    return hashlib.sha256(os.fsencode(root / IMAGES / split)).hexdigest() + ".json"


def _keep(place: Path, facts: dict[str, str], contents: Contents) -> None:
    found = {"pixels": contents.pixels.tolist(), "empty": list(contents.empty)}
    # A cache only: without it the next start decodes the masks again.
    with contextlib.suppress(DiskError, OSError):
        atomic_json(place, {**facts, **found})


def _kept(place: Path, facts: dict[str, str], classes: int, count: int) -> Contents | None:
    """What ``_keep`` wrote, or None where it is missing, damaged or of other files."""
    try:
        record: dict[str, Any] = json.loads(place.read_bytes())
        if any(record[key] != value for key, value in facts.items()):
            return None
        pixels, empty = np.array(record["pixels"]), np.array(record["empty"], np.int64)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    whole = pixels.shape == (classes,) and pixels.dtype == np.int64 and bool((pixels >= 0).all())
    known = empty.ndim == 1 and bool(((empty >= 0) & (empty < count)).all())
    return Contents(pixels=pixels, empty=tuple(empty.tolist())) if whole and known else None
