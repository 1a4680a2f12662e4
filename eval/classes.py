"""ImageNet-1k's 1000 classes, the 200 of ImageNet-A and of ImageNet-R, and the ReaL labels.

Every list is timm's own.  A class is known by its number, the place of its synset in the sorted
list (n01440764 is 0, n15075141 is 999), or by its synset.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from zoo.errors import DataError

CLASSES = 1000
VAL_IMAGES = 50_000

Subset = Literal["all", "a", "r"]
"""Which classes a benchmark asks for: all, ImageNet-A's or ImageNet-R's."""

_INDICES = {"a": "imagenet_a_indices.txt", "r": "imagenet_r_indices.txt"}
_REAL = "imagenet_real_labels.json"
# The Hub's copies append the synset to the name.
_VAL_NAME = re.compile(r"ILSVRC2012_val_([0-9]{8})(?:_n[0-9]{8})?\.[A-Za-z]+")


@cache
def synsets() -> tuple[str, ...]:
    """The 1000 synsets, by class number."""
    return tuple(_info("imagenet_synsets.txt").split())


@cache
def class_of() -> Mapping[str, int]:
    """The class number of each synset."""
    return MappingProxyType({synset: number for number, synset in enumerate(synsets())})


@cache
def class_names() -> tuple[str, ...]:
    """What each class is, in words, by class number."""
    rows = csv.reader(_info("imagenet_synset_to_lemma.txt").splitlines(), delimiter="\t")
    lemmas = dict(rows)
    return tuple(lemmas[synset] for synset in synsets())


def columns(subset: Subset) -> Tensor:
    """The numbers of a subset's classes, ascending: (1000,) or (200,) int64.

    Their order is also that of the sorted synsets, so the n-th column is the n-th class folder.
    """
    return torch.tensor(_columns(subset))


def synsets_of(subset: Subset) -> tuple[str, ...]:
    """The synsets of a subset's classes, in the order of its columns."""
    return tuple(synsets()[number] for number in _columns(subset))


@cache
def _columns(subset: Subset) -> tuple[int, ...]:
    if subset == "all":
        return tuple(range(CLASSES))
    return tuple(int(line) for line in _info(_INDICES[subset]).split())


@cache
def real_labels() -> Tensor:
    """ReaL's labels of ImageNet's validation images, in the order of their names.

    (50000, 9) int64: each row a set of class numbers, filled up with -1; all -1 where the
    annotators agreed on none of the classes.  The tensor is shared: do not write to it.
    Source: Beyer et al. 2020, "Are we done with ImageNet?", arXiv 2006.07159.
    """
    return label_sets(json.loads(_info(_REAL)))


def real_labels_of(names: Sequence[str]) -> Tensor:
    """The rows of ``real_labels`` for these files, (N, 9) int64.

    names: such as ``ILSVRC2012_val_00000001.JPEG``, without folders.  Raises DataError for another.
    """
    rows = [val_number(name) - 1 for name in names]
    return real_labels()[torch.tensor(rows, dtype=torch.int64)]


def val_number(name: str) -> int:
    """From 1 to 50,000: which validation image has this file name.  Raises DataError."""
    match = _VAL_NAME.fullmatch(name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= VAL_IMAGES:
        raise DataError(
            "not the name of an ImageNet validation image",
            where=repr(name),
            fix="keep the original names, ILSVRC2012_val_00000001.JPEG to …_00050000.JPEG",
        )
    return number


def label_sets(sets: Sequence[Sequence[int]]) -> Tensor:
    """Sets of class numbers as (N, K) int64, filled up with -1; K is the largest set's size."""
    most = max(map(len, sets), default=0)
    rows = [[*labels, *[-1] * (most - len(labels))] for labels in sets]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(sets), most)


@cache
def class_order_sha256() -> str:
    """Of the 1000 synsets, one per line: what the class numbers mean."""
    return sha256("\n".join(synsets()).encode()).hexdigest()


@cache
def real_labels_sha256() -> str:
    """Of the file of ReaL's labels."""
    return sha256(_info(_REAL).encode()).hexdigest()


def _info(name: str) -> str:
    # By its place: to import timm costs ten seconds, and tables of results need no network.
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text("utf-8")
