"""Which layout is it?  ``open_eval_set`` looks, and never asks."""

import contextlib
import os
from pathlib import Path

from eval.layouts.checks import checked
from eval.layouts.corrupted import label_corrupted
from eval.layouts.evalset import EvalSet
from eval.layouts.expected import OWN, Expected, expected
from eval.layouts.flat import label_flat
from eval.layouts.folders import (
    is_class_name,
    label_own_folders,
    label_own_targets,
    label_synset_folders,
    label_targets,
    parents_of,
)
from eval.layouts.hubdata import fetch_parquet, is_hub_data
from eval.layouts.labelled import Labelled
from eval.layouts.listing import Listing, first_ten, list_folder, list_index
from eval.layouts.parquet import list_parquet
from eval.layouts.shards import choose_shards
from eval.layouts.tars import TarStore, list_tars, tars_below
from pretrain.data import open_source
from pretrain.index import EXTENSIONS
from zoo.errors import DataError, UsageError

SPLIT = "split:"
"""How a list of images that were set aside begins: ``split:FILE#val``."""

_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_SQUEEZED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# list_tars says of these what to do with them.
_OTHER_V2 = ("threshold", "top-images", "topimages")
_ONE = "give the folder in which the class folders lie, and nothing else"


def open_eval_set(
    data: Path, benchmark: str, *, partial: bool = False, due: Expected | None = None
) -> EvalSet:
    """The images and labels of ``benchmark`` (or ``"own"``) at ``data``, recognised and checked.

    Known are class folders (synsets, ImageNetV2's numbers, a user's own), ImageNet's validation
    images in one folder with a map beside it, Kaggle's tree, ImageNet-C's ``type/severity/synset``,
    and all of these in plain tars; WebDataset shards with ``.cls`` files; and Parquet files with
    columns ``image`` and ``label``, in a folder or on the Hub (``hf:ORG/NAME[@REVISION][#SPLIT]``,
    which fetches them).  ``data`` may be the folder that holds ``train/`` and ``val/``.  Images
    are not decoded.

    partial: take an incomplete set, whose name then says so.  due: hold the set against this
    instead of the table.

    Raises DataError that names what differs (classes, counts, order), for what is no data set,
    and for a flat folder without a map; IntegrityError for tars with hostile members; UsageError
    for an unknown benchmark, for Parquet files without the extra ``datasets`` and where it is not
    clear which of them are meant; NetworkError and DiskError where it fetches.
    """
    if benchmark not in {*expected(), OWN}:
        raise UsageError(
            f"no set of images is called {benchmark!r}",
            fix=f"choose one of: {', '.join([*expected(), OWN])}",
        )
    listing = _list(data.expanduser(), benchmark)
    if benchmark == OWN:
        return checked(_own(listing), benchmark, None, partial=partial)
    return checked(
        _known(listing, benchmark), benchmark, due or expected()[benchmark], partial=partial
    )


def _own(listing: Listing) -> Labelled:
    if listing.targets is not None:
        return label_own_targets(listing)
    parents = parents_of(listing)
    if len(parents) == 1 and parents[0]:
        listing = _below(listing, parents[0])
    return label_own_folders(listing)


def _known(listing: Listing, benchmark: str) -> Labelled:
    """Labels of a benchmark of ImageNet's family.  Raises DataError."""
    if benchmark == "in1k-v2":
        _require_matched_frequency(listing)
    if listing.targets is not None:
        if benchmark == "in1k-c":
            raise DataError(
                "shards do not say the type and severity of each image",
                where=str(listing.place),
                fix="give ImageNet-C as folders, or as the tars it is published in",
            )
        return label_targets(listing, benchmark)
    if benchmark == "in1k-c":
        return label_corrupted(listing)
    held = [listing.folder_names[i] for i in listing.holding]
    if len(held) == 1 and not is_class_name(held[0].rpartition("/")[2]):
        if benchmark != "in1k-val":
            raise DataError(
                f"the images lie in one folder, where {benchmark} has class folders",
                where=str(listing.place),
                fix="give the set with its folders as published",
            )
        return label_flat(_below(listing, held[0]) if held[0] else listing)
    parents = parents_of(listing)
    if len(parents) > 1:
        raise DataError(
            f"class folders lie in {len(parents):,} places",
            where=f"{listing.place}: {first_ten(name or '.' for name in parents)}",
            fix=_ONE,
        )
    return label_synset_folders(_below(listing, parents[0]) if parents[0] else listing, benchmark)


def _require_matched_frequency(listing: Listing) -> None:
    """ImageNetV2 is three sets of the same form; the one that scores are known for is meant."""
    shown = {listing.place.name, *(name.partition("/")[0] for name in listing.folder_names)}
    other = [name for name in shown if any(mark in name.lower() for mark in _OTHER_V2)]
    if other:
        raise DataError(
            f"{other[0]} is another set of ImageNetV2, and in1k-v2 is matched-frequency",
            where=str(listing.place),
            fix="give imagenetv2-matched-frequency-format-val",
        )


def _below(listing: Listing, prefix: str) -> Listing:
    """The same set without the folder that all of it lies in."""
    if isinstance(listing.store, TarStore):
        return tars_below(listing, listing.store, os.fsencode(prefix))
    return list_folder(listing.place / prefix)


def _list(data: Path, benchmark: str) -> Listing:
    """The images at ``data``, whatever they lie in.  Raises DataError, UsageError."""
    if str(data).startswith(SPLIT):
        return list_index(open_source(str(data)))
    if is_hub_data(data):
        return list_parquet(fetch_parquet(data, benchmark), benchmark, data)
    if data.is_file():
        if data.suffix == ".parquet":
            return list_parquet([data.resolve()], benchmark, data)
        return list_tars([data.resolve()])
    folder = _validation_folder(data, benchmark)
    if not folder.is_dir():
        return list_folder(folder)  # which says that there is none
    packed = _packed(folder)
    tars = [path for path in packed if path.suffix == ".tar"]
    if tars := tars or [path for path in packed if path.name.endswith(_SQUEEZED)]:
        return list_tars([path.resolve() for path in _of_validation(tars)])
    if packed:
        names = [path.relative_to(folder).as_posix() for path in packed]
        shards = choose_shards(names, "", benchmark, str(folder))
        return list_parquet([folder.resolve() / name for name in shards], benchmark, folder)
    return list_folder(folder)


def _packed(folder: Path) -> list[Path]:
    """Archives and Parquet files, sorted; none where images or class folders lie beside them."""
    found: list[Path] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                # The Hub's data sets have theirs one folder down.
                inside = _packed(Path(entry.path)) if entry.name == "data" else []
                if not inside:
                    return []
                found += inside
            elif os.fsencode(entry.name).lower().endswith(EXTENSIONS):
                return []
            elif entry.name.endswith((".tar", ".parquet", *_SQUEEZED)):
                found.append(Path(entry.path))
    return sorted(found)


def _validation_folder(data: Path, benchmark: str) -> Path:
    """The folder of the validation images where ``data`` holds a training set too."""
    if benchmark not in {"in1k-val", OWN}:
        return data
    for place in (data, *(data / part for part in _KAGGLE)):
        if not (place / "val").is_dir():
            continue
        folders = [p for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")]
        if benchmark != OWN or (place / "train").is_dir() or len(folders) == 1:
            return place / "val"
    if benchmark == OWN and (data / "train").is_dir():
        raise DataError(
            "there is a train/ folder and no val/",
            where=str(data),
            fix="give the validation images: a folder, or split:RUN/split.json#val where zoo "
            "finetune set them aside",
        )
    return data


def _of_validation(tars: list[Path]) -> list[Path]:
    """Without the archives of the training set that stand beside them, by name."""
    if not any("train" in path.name for path in tars):
        return tars
    chosen = [path for path in tars if "val" in path.name]
    if not chosen:
        raise DataError(
            "the archives are of a training set by their names",
            where=str(tars[0].parent),
            fix="give the validation archive, or a folder of validation shards",
        )
    return chosen
