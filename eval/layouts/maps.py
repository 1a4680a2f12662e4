"""Files that say which of ImageNet's 50,000 validation images is of which class.

Told apart by their content, within a few well-known names.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from eval.classes import VAL_IMAGES, class_of, synsets
from eval.layouts.listing import is_synset
from zoo.errors import DataError

_KAGGLE = "LOC_val_solution.csv"
_PLAIN = ("imagenet_2012_validation_synset_labels.txt", "val.txt", "valprep.sh")
_OFFICIAL = (
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2015_clsloc_validation_ground_truth.txt",
)
_OFFICIAL_ORDER = "map_clsloc.txt"
_CLASS_MAP = "class_map.txt"
_MOST_BYTES = 64 << 20

_ID = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})", re.ASCII)
_PAIR = re.compile(
    r"(?:mv\s+)?(?:\S*/)?ILSVRC2012_val_(\d{8})(?:\.\w+)?[\s,]+(?:\S*/)?(n\d{8}|\d{1,4})/?",
    re.ASCII,
)
_AGAIN = "fetch the file anew"


@dataclass(frozen=True, slots=True)
class ValMap:
    """Labels by image number, and the file they are from."""

    place: Path
    labels: dict[int, int]
    """Position among the 1000 classes by the number in ILSVRC2012_val_00000001."""


def find_map(place: Path) -> ValMap | None:
    """The first map beside the images' folder or archive, or one above; None where there is none.

    Raises DataError for a map that cannot be read, and for the official list of labels without
    the order of its classes.
    """
    folders = _around(place)
    for name in (_KAGGLE, *_PLAIN):
        for path in (folder / name for folder in folders):
            if path.is_file():
                labels = _kaggle(path) if name == _KAGGLE else _plain(path)
                return ValMap(path, labels)
    for folder in folders:
        for path in (folder / name for name in _OFFICIAL):
            if path.is_file():
                return ValMap(path, _official(path))
    return None


def _around(place: Path) -> list[Path]:
    """Where a map may lie: with the images, above, and at the top of Kaggle's tree."""
    start = [place] if place.is_dir() else []
    up = 4 if place.parts[-3:-1] == ("Data", "CLS-LOC") else 1
    folders = [*start, *list(place.parents)[:up]]
    kits = [kit / "data" for folder in folders for kit in sorted(folder.glob("ILSVRC*_devkit*"))]
    return [*folders, *kits]


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _unreadable(path, f"over {_MOST_BYTES >> 20} MiB")
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(f"the map of classes cannot be read: {reason}", where=str(path), fix=_AGAIN)


def _kaggle(path: Path) -> dict[int, int]:
    """``ImageId,PredictionString``; a prediction is a synset and a box, once for each box."""
    labels: dict[int, int] = {}
    try:
        for number, row in enumerate(csv.reader(_lines(path)), start=1):
            if not row or row[0] == "ImageId":
                continue
            image = _ID.fullmatch(row[0])
            names = {word for word in " ".join(row[1:]).split() if word.startswith("n")}
            if image is None or len(names) != 1:
                raise _unreadable(path, f"line {number} is not an image and its one class")
            _add(labels, int(image[1]), names.pop(), path, number)
    except csv.Error as error:
        raise _unreadable(path, str(error)) from error
    return labels


def _plain(path: Path) -> dict[int, int]:
    """Lines of name and class, ``mv NAME SYNSET/`` among others, or one synset a line."""
    lines = [(number, line.strip()) for number, line in enumerate(_lines(path), start=1)]
    if path.suffix == ".sh":
        lines = [(number, line) for number, line in lines if line.startswith("mv ")]
    lines = [(number, line) for number, line in lines if line]
    labels: dict[int, int] = {}
    if lines and all(is_synset(line) for _, line in lines):
        if sorted(line for _, line in lines) == list(synsets()):
            raise DataError(
                "this is the order of the 1,000 classes, not the class of each image",
                where=str(path),
                fix="replace it by one with a line for each of the 50,000 images",
            )
        for image, (number, line) in enumerate(lines, start=1):
            _add(labels, image, line, path, number)
        return labels
    order = _class_order(path.with_name(_CLASS_MAP))
    for number, line in lines:
        pair = _PAIR.fullmatch(line)
        if pair is None:
            raise _unreadable(path, f"line {number} is not an image and its class")
        name = pair[2]
        if not is_synset(name) and int(name) < len(order):
            name = order[int(name)]
        _add(labels, int(pair[1]), name, path, number)
    return labels


def _class_order(path: Path) -> tuple[str, ...]:
    """What class numbers mean: timm's class map where there is one, else the sorted synsets."""
    if not path.is_file():
        return synsets()
    order = tuple(line.strip() for line in _lines(path) if line.strip())
    if sorted(order) != list(synsets()):
        raise DataError(
            "the class map does not name each of ImageNet's 1,000 synsets once",
            where=str(path),
            fix="timm's class map has a synset a line, and the line is the class number",
        )
    return order


def _official(path: Path) -> dict[int, int]:
    """The development kit's ``1 … 1000`` a line, in the order of ILSVRC's own class numbers."""
    order = path.with_name(_OFFICIAL_ORDER)
    if not order.is_file():
        kept = " (meta.mat has it, and is a MATLAB file that is not read here)"
        raise DataError(
            "the official list of labels counts classes in an order of ILSVRC's own, not in that "
            "of the synsets, and the file that has this order is not beside it",
            where=str(path),
            fix=f"put the kit's {_OFFICIAL_ORDER} beside it{kept}, or {_KAGGLE} beside the images",
        )
    names: dict[str, str] = {}
    for number, line in enumerate(_lines(order), start=1):
        words = line.split()
        if words and (len(words) < 2 or not is_synset(words[0])):
            raise _unreadable(order, f"line {number} is not a synset and its number")
        if words:
            names[words[1]] = words[0]
    if sorted(names.values()) != list(synsets()):
        raise _unreadable(order, "it does not name each of ImageNet's 1,000 synsets once")
    labels: dict[int, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            _add(labels, number, names.get(line.strip(), line.strip()), path, number)
    return labels


def _add(labels: dict[int, int], image: int, name: str, path: Path, line: int) -> None:
    label = class_of().get(name)
    if label is None:
        raise _unreadable(path, f"line {line} says {name!r}, which is no class of ImageNet")
    if not 1 <= image <= VAL_IMAGES:
        raise _unreadable(path, f"line {line} is of image {image}; there are {VAL_IMAGES:,}")
    if labels.setdefault(image, label) != label:
        raise _unreadable(path, f"line {line} contradicts an earlier one on image {image}")
