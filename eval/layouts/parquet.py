"""Parquet shards in the Hub's form: a column ``image`` of {bytes, path}, a column ``label``.

The ``datasets`` package unpacks them once into its cache, from where every worker maps them into
memory.  It never decodes an image: the bytes come to our own decoder.
"""

import contextlib
import glob
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.classes import class_names
from eval.layouts.expected import OWN
from eval.layouts.folders import is_class_name
from eval.layouts.listing import Listing, arrange, each, fingerprint_of, first_ten
from pretrain.index import PackedNames
from zoo.errors import DataError, IntegrityError, UsageError
from zoo.files import disk_errors
from zoo.images import decode

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMNS = ("image", "label")
_LEAST_AGREEMENT = 0.9
# Lists of the same words differ in spelling here and there; in another order hardly one agrees.
_AGAIN = "fetch the files anew"


@dataclass(frozen=True, kw_only=True, eq=False)
class TableStore:
    """Rows of a table that lies on disk, mapped into memory by whoever reads."""

    table: "Dataset"
    """Its one column is ``image``, as {bytes, path}; its rows come as Arrow's."""
    rows: np.ndarray
    """(N,) int64, the row of each image."""
    place: str

    def read(self, i: int, name: bytes) -> np.ndarray:
        """(H, W, 3) uint8 RGB of image ``i``.  Raises DataError."""
        row = int(self.rows[i])
        where = f"{self.place}: {name.decode(errors='backslashreplace')} (row {row:,})"
        try:
            image = self.table[row]["image"]
            data = pc.struct_field(image, "bytes")[0].as_py()  # type: ignore[attr-defined]
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"the cached table cannot be read: {_reason(error)}",
                where=where,
                fix="remove the set from the cache of datasets, and start again",
            ) from error
        return decode(data, where)


def require_datasets() -> None:
    """Raise UsageError where the extra is not installed."""
    if find_spec("datasets") is None:
        raise UsageError(
            "Parquet files need the package datasets: not installed",
            where="--data",
            fix="pip install 'tinyzoo[datasets]'",
        )


def list_parquet(paths: Sequence[Path], benchmark: str, place: Path) -> Listing:
    """The images in these shards, by the names in ``path``; without any, by their row.

    What an image is of stands in ``targets``: a synset or a class number for a benchmark, the
    name of the class for a user's own set.  place: for messages.  Raises DataError for what is no
    whole Parquet file of this form, for labels that are none and for names of classes in another
    order than ImageNet's; IntegrityError for names that lead out; UsageError without the extra.
    """
    require_datasets()
    for path in paths:
        _require_form(path)
    table = _load(paths)
    images = table[:]["image"]  # mapped, not read
    blobs = pc.struct_field(images, "bytes")  # type: ignore[attr-defined]
    if blobs.null_count:
        raise DataError(
            f"{blobs.null_count:,} of {len(table):,} rows hold no image, only the name of one",
            where=str(place),
            fix="write the images themselves into the Parquet files",
        )
    targets = _targets(table, benchmark, place)
    sizes = pc.binary_length(blobs).to_numpy().astype(np.int64)  # type: ignore[attr-defined]
    stated = pc.struct_field(images, "path").cast(pa.binary())  # type: ignore[attr-defined]
    names = _names(stated.to_pylist(), targets, place)
    found = arrange(names, set(), place)
    return Listing(
        place=place,
        names=found.names,
        folder_ids=found.folder_ids,
        folders=found.folders,
        fingerprint=fingerprint_of(
            found.names, list(each(found.folders)), found.folder_ids, sizes[found.order]
        ),
        store=TableStore(table=table.select_columns("image"), rows=found.order, place=str(place)),
        targets=PackedNames.of([targets[row] for row in found.order.tolist()]),
    )


def _require_form(path: Path) -> None:
    try:
        schema = pq.read_schema(path)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(
            f"not a whole Parquet file: {_reason(error)}", where=str(path), fix=_AGAIN
        ) from error
    lacking = [name for name in _COLUMNS if name not in schema.names]
    if lacking:
        raise DataError(
            f"no column {' and no column '.join(lacking)}: there are {first_ten(schema.names)}",
            where=str(path),
            fix="give files with a column image of {bytes, path} and a column label",
        )
    image, label = (schema.field(name).type for name in _COLUMNS)
    of_bytes = image
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        of_bytes = image.field("bytes").type
    if not (pa.types.is_binary(of_bytes) or pa.types.is_large_binary(of_bytes)):
        raise DataError(
            f"the column image holds {image}", where=str(path), fix="it must hold {bytes, path}"
        )
    texts = pa.types.is_string(label) or pa.types.is_large_string(label)
    if not (pa.types.is_integer(label) or texts):
        raise DataError(
            f"the column label holds {label}",
            where=str(path),
            fix="it must hold a class number or the name of a class",
        )


def _load(paths: Sequence[Path]) -> "Dataset":
    """The table in the cache of ``datasets``; its fingerprint is over names and times."""
    from datasets import Image, config, load_dataset

    files = {"rows": [glob.escape(str(path)) for path in paths]}
    with _quiet(), disk_errors(Path(config.HF_DATASETS_CACHE)):
        try:
            table = load_dataset("parquet", data_files=files, split="rows", keep_in_memory=False)
            table = table.select_columns(list(_COLUMNS))
            table = table.cast_column("image", Image(decode=False)).with_format("arrow")
        except Exception as error:  # on hostile metadata: anything from ValueError to KeyError
            cause = _cause(error)
            if isinstance(cause, OSError) and cause.errno is not None:
                raise cause from error  # of the disk; Arrow's own have no number
            raise DataError(
                f"the Parquet files cannot be read: {_reason(error)}",
                where=first_ten(map(str, paths)),
                fix=_AGAIN,
            ) from error
    rows = sum(pq.read_metadata(path).num_rows for path in paths)
    if len(table) != rows:
        raise DataError(
            f"the cache has {len(table):,} rows of these files, which hold {rows:,}",
            where=first_ten(map(str, paths)),
            fix="remove the set from the cache of datasets, and start again",
        )
    return table


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of ``datasets``, and its progress bars on terminals alone."""
    import datasets
    from datasets.utils import logging

    level, silent = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)  # what it says is in the error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not silent:
            datasets.enable_progress_bars()


def _targets(table: "Dataset", benchmark: str, place: Path) -> list[bytes]:
    """What each row is of, as text."""
    column = table[:]["label"]
    if not pa.types.is_integer(column.type):
        column = column.cast(pa.binary())  # nobody has checked that it is UTF-8
    labels: list[Any] = column.to_pylist()
    names = getattr(table.features["label"], "names", None)
    if None in labels:
        raise DataError(
            f"{labels.count(None):,} of {len(labels):,} rows have no label",
            where=str(place),
            fix="give a split that has labels",
        )
    if names is None:
        return [x if isinstance(x, bytes) else str(x).encode() for x in labels]
    if benchmark != OWN and not all(map(is_class_name, names)):
        _require_order(names, place)
        return [str(label).encode() for label in labels]
    counts = Counter(labels)
    outside = sorted(counts.keys() - set(range(len(names))))
    if outside:
        raise DataError(
            f"labels that are none: {first_ten(map(str, outside))}",
            where=f"{place}: the set names {len(names):,} classes",
            fix="give a split that has labels",
        )
    barren = [name for i, name in enumerate(names) if not counts[i]]
    if benchmark == OWN and barren:
        raise DataError(
            f"classes without an image: {first_ten(barren)}",
            where=str(place),
            fix="give the whole set, or write it again without them",
        )
    return [names[label].encode() for label in labels]


def _require_order(names: Sequence[str], place: Path) -> None:
    """Are these words those of ImageNet's 1000 classes, in the order of the synsets?"""
    ours = class_names()
    if len(names) != len(ours):
        raise DataError(
            f"{len(names):,} names of classes in words, which do not say whose order they follow: "
            f"{first_ten(names)}",
            where=str(place),
            fix="give a set whose names of classes are synsets (n01440764 …), or class folders",
        )
    odd = [i for i, (a, b) in enumerate(zip(names, ours, strict=True)) if not _alike(a, b)]
    if len(odd) > (1 - _LEAST_AGREEMENT) * len(ours):
        shown = first_ten(f"{i} is {names[i]!r}, not {ours[i]!r}" for i in odd[:10])
        raise DataError(
            f"the classes are permuted: {len(odd)} of {len(ours):,} names are not those of "
            "ImageNet's classes in the order of the synsets",
            where=f"{place}: {shown}",
            fix="give a set whose labels follow the sorted synsets, or class folders",
        )


def _alike(one: str, other: str) -> bool:
    """Whether two lists of synonyms share one."""
    return bool(_synonyms(one) & _synonyms(other))


def _synonyms(words: str) -> set[str]:
    return {" ".join(part.casefold().replace("_", " ").split()) for part in words.split(",")}


def _names(paths: Sequence[bytes | None], targets: Sequence[bytes], place: Path) -> list[bytes]:
    """The images' names, each different where that can be."""
    if None in paths:
        return [b"%08d" % row for row in range(len(paths))]
    names = [_checked(path or b"", place) for path in paths]
    if len(set(names)) == len(names) or any(b"/" in target for target in targets):
        return names
    # Written from class folders by base name alone: with the class they are what they were.
    return [_checked(b"%s/%s" % pair, place) for pair in zip(targets, names, strict=True)]


def _checked(path: bytes, place: Path) -> bytes:
    """A name without ``./``.  Raises IntegrityError where it leads out of the set."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    hostile = path.startswith(b"/") or b".." in parts or b"\\" in path or b"\0" in path
    if hostile or not parts:
        raise IntegrityError(
            "the name of an image leads out of the set, or is none",
            where=f"{place}: {path[:200]!r}",
            fix="write the files again, with relative names in image.path, or none",
        )
    return b"/".join(parts)


def _cause(error: BaseException) -> BaseException:
    """The first of a chain: datasets says what it was doing, not what went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    return str(cause).strip().partition("\n")[0][:200] or type(cause).__name__
