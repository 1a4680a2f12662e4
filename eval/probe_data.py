"""The two sets of a probe: training images that are known, validation images that are asked."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.classes import synsets
from eval.layouts import EvalSet, Expected, open_eval_set
from eval.layouts.checks import checked
from eval.layouts.folders import label_synset_folders
from eval.layouts.listing import FolderStore, list_folder
from eval.probe_protocols import TRAIN_IMAGES
from pretrain.index import ImageIndex, open_index
from zoo.errors import DataError, UsageError

_TRAIN = "in1k-train"
_PLACES = ("train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train", "CLS-LOC/train")
_FIX = "give a folder that holds train/<class>/ and val/<class>/"


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeData:
    """Both sets with the same classes.

    Raises DataError where they are the same images.
    """

    name: str
    """What a result may call it."""
    train: EvalSet
    val: EvalSet

    def __post_init__(self) -> None:
        if self.train.fingerprint == self.val.fingerprint:
            raise DataError(
                "training and validation images are the same files",
                where=str(self.train.listing.place),
                fix="give validation images that are not in the training set",
            )

    @property
    def complete(self) -> bool:
        return self.train.complete and self.val.complete

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint}+{self.val.fingerprint}"

    @property
    def classes(self) -> int:
        return len(self.val.classes)

    def train_index(self) -> ImageIndex:
        """The training images for the loop's own loader.  Raises UsageError for tars."""
        place = self.train.listing.place
        if not isinstance(self.train.listing.store, FolderStore):
            raise UsageError(
                "a linear probe trains on image files in class folders",
                where=str(place),
                fix="unpack the archives, or choose the knn or the linear-sweep protocol",
            )
        return open_index(place)


def open_probe_data(data: Path, *, imagenet: bool, partial: bool) -> ProbeData:
    """Both sets below ``data``, recognised and checked before any forward pass.

    imagenet: they must be ImageNet-1k's, whole unless ``partial``; class folders of training
    images, validation images in any layout that is known.  Else any two sets of class folders of
    the same names.  Raises DataError, UsageError.
    """
    data = data.expanduser()
    if imagenet:
        return _open_imagenet(data, partial=partial)
    for name in ("train", "val"):
        if not (data / name).is_dir():
            raise DataError(f"there is no {name}/ folder", where=str(data), fix=_FIX)
    train, val = (open_eval_set(data / name, "own") for name in ("train", "val"))
    if train.classes != val.classes:
        only = sorted(set(train.classes) ^ set(val.classes))
        raise DataError(
            "train/ and val/ do not hold the same class folders",
            where=f"{data}: only in one of them: {', '.join(only[:10])}",
            fix=_FIX,
        )
    return ProbeData(name=data.resolve().name, train=train, val=val)


def _open_imagenet(data: Path, *, partial: bool) -> ProbeData:
    places = [data / place for place in _PLACES if (data / place).is_dir()]
    if not places:
        raise DataError(
            "there is no train/ folder",
            where=str(data),
            fix="give ImageNet-1k's folder, which holds train/<synset>/ and val/",
        )
    # The quick one first: nobody waits for a million names to learn that val/ is not whole.
    val = open_eval_set(data, "in1k-val", partial=partial)
    due = Expected(images=TRAIN_IMAGES, synsets=synsets(), per_class=None)
    found = label_synset_folders(list_folder(places[0]), _TRAIN)
    train = checked(found, _TRAIN, due, partial=partial)
    short = [part.name for part in (train, val) if not part.complete]
    name = f"ImageNet-1k: {', '.join(short)}" if short else "ImageNet-1k"
    return ProbeData(name=name, train=train, val=val)


def class_of_column(train: EvalSet) -> np.ndarray:
    """(folders with images,) int64: the class of each of the index's labels.

    The loader counts the folders that are there; in a part of ImageNet-1k some are not.
    """
    listing = train.listing
    first = np.unique(listing.folder_ids, return_index=True)[1]
    return train.labels[first]
