"""Tiny data sets in the layouts that ImageNet's family comes in."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from eval.classes import class_names, synsets
from eval.layouts import Expected
from eval.layouts.expected import reassessed

SYNSETS = synsets()
# The Hub's library wants different names: two of the thousand are called crane.
WORDS = [w if w not in class_names()[:i] else f"{w}2" for i, w in enumerate(class_names())]
THREE = SYNSETS[0], SYNSETS[2], SYNSETS[10]
TEN = 10
SMALL = Expected(images=3 * TEN, synsets=THREE, per_class=TEN)


@cache
def picture(seed: int) -> bytes:
    """An 8 x 8 JPEG; every seed gives other pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=95)


@cache
def val_numbers_of(synset: str, count: int = TEN) -> tuple[int, ...]:
    """Validation images whose reassessed labels have this class."""
    _, pairs = reassessed()
    label = SYNSETS.index(synset)
    return tuple((pairs[pairs % 1000 == label] // 1000)[:count].tolist())


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08}.JPEG"


def val_files(names: tuple[str, ...] = THREE) -> dict[str, bytes]:
    """``SYNSET/ILSVRC2012_val_*.JPEG``, ten of each class, of plausible numbers."""
    return {
        f"{synset}/{val_name(n)}": picture(n) for synset in names for n in val_numbers_of(synset)
    }


def flat_files() -> dict[str, bytes]:
    """The same without class folders."""
    return {name.partition("/")[2]: data for name, data in val_files().items()}


def val_pairs() -> list[tuple[str, str]]:
    """(``ILSVRC2012_val_00000001``, synset) of the same, by number."""
    return sorted(
        (val_name(n).removesuffix(".JPEG"), synset)
        for synset in THREE
        for n in val_numbers_of(synset)
    )


def plain_files(
    folders: tuple[str, ...], count: int = TEN, form: str = "{}.jpg"
) -> dict[str, bytes]:
    """``FOLDER/0.jpg`` and so on."""
    return {
        f"{folder}/{form.format(i)}": picture(1000 * place + i)
        for place, folder in enumerate(folders)
        for i in range(count)
    }


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path: Path, files: dict[str, bytes], *, sort: bool = False) -> Path:
    """A plain tar of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in sorted(files) if sort else files:
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return path


def shard_files(files: dict[str, bytes], label_of: Mapping[str, int | str]) -> dict[str, bytes]:
    """WebDataset's pairs: ``key.jpg`` and ``key.cls``, the key from the place in ``files``."""
    shard: dict[str, bytes] = {}
    for i, (name, data) in enumerate(files.items()):
        shard[f"{i:06}.jpg"] = data
        shard[f"{i:06}.cls"] = str(label_of[name.partition("/")[0]]).encode()
    return shard


def parquet_rows(files: Mapping[str, bytes], label_of: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``image`` of {bytes, path} and ``label``, a row a file, as the Hub has them."""
    return [
        {"image": {"bytes": data, "path": name}, "label": label_of[name.partition("/")[0]]}
        for name, data in files.items()
    ]


def write_parquet(
    path: Path, rows: list[dict[str, Any]], *, names: Sequence[str] = (), metadata: object = None
) -> Path:
    """A Parquet file; with names its label is a class label, as the Hub's library notes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features["label"] = {"names": list(names), "_type": "ClassLabel"}
    if names or metadata is not None:
        said = {"info": {"features": features}} if metadata is None else metadata
        table = table.replace_schema_metadata({"huggingface": json.dumps(said)})
    pq.write_table(table, path, row_group_size=4)
    return path
