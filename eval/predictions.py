"""What each image was taken for, as a Parquet file: small, whole, and readable by any table tool.

A row an image, in the order of the images' numbers: index, label or labels, top5, confidence, and
the image's name where there are names.  What the predictions are of stands in the schema's metadata
beside a sha256 over all of it.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from eval.classes import CLASSES
from eval.protocols import PROTOCOLS
from eval.result_files import shown
from eval.results import Result
from eval.scoring import TOP, Predictions, concatenate
from zoo.errors import DataError, IntegrityError
from zoo.files import atomic_write

FORMAT = 1
MOST_ROWS = 5_000_000
"""ImageNet-C in one file has 3,750,000."""
MOST_LABELS = 32
"""Right classes of one image; ReaL has up to 9."""

_KEY = b"tinyzoo.predictions"
_MOST_BYTES = 512 * 2**20
_MOST_METADATA = 16 * 2**20
_FIX = "run zoo eval again"

# (N,) int32 · (N, K) int16, filled up with -1 · (N, 5) int16 · (N,) float32
_Columns: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What saved predictions are of; empty where it was not said."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    protocol: str
    """Name and version."""
    protocol_digest: str = ""
    model: str = ""
    model_digest: str = ""
    data_fingerprint: str = ""
    transform: dict[str, Any] = field(default_factory=dict)
    """Preprocessing as resolved."""
    classes: tuple[str, ...] = ()
    """What each class is, in words, by its number; empty for ImageNet-1k's own."""
    label_columns: Annotated[int, Field(ge=1, le=MOST_LABELS)]
    """K of the predictions' labels; of 1 the column is ``label``, of more ``labels``."""
    sha256: str = ""
    """Over all of the above, the columns and the names."""
    format: Literal[1] = FORMAT


_HEADER = TypeAdapter(Header)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Saved:
    """A file of predictions, as read."""

    predictions: Predictions
    names: tuple[str, ...]
    """Of the images, in the predictions' order; empty where none were saved."""
    header: Header


def save_predictions(
    path: Path,
    predictions: Predictions,
    *,
    names: Sequence[str] | None = None,
    result: Result | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Write all of ``path``, or nothing; the rows in the order of the images' numbers.

    names: of the images, in the predictions' order.  result: what the predictions amount to; its
    evidence goes into the file.  classes: in words, by number, where they are not ImageNet-1k's.
    Raises IntegrityError where an image is there twice or a value is out of range, DiskError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert names is None or len(names) == len(predictions), "a name for each image"
    assert result is None or result.protocol == predictions.protocol, "one protocol"
    order: list[int] = predictions.samples.argsort().tolist()
    sorted_names = tuple(_as_text(names[i]) for i in order) if names is not None else ()
    columns = _columns_of(concatenate([predictions]))
    header = _header(predictions, result, classes)
    if fault := _fault(columns, sorted_names, len(header.classes) or CLASSES):
        raise IntegrityError(fault, where=str(path), fix="this is a bug where they were made")
    header = replace(header, sha256=_digest(header, columns, sorted_names))
    schema = _schema(header, named=names is not None)
    index, labels, top5, confidence = columns
    arrays = {
        "index": pa.array(index),
        **_label_array(labels),
        "top5": pa.FixedSizeListArray.from_arrays(pa.array(top5.ravel()), TOP),
        "confidence": pa.array(confidence),
    }
    if names is not None:
        arrays["name"] = pa.array(sorted_names, pa.string())
    text = json.dumps(asdict(header), ensure_ascii=False, allow_nan=False)
    table = pa.table(arrays, schema.with_metadata({_KEY: text.encode()}))
    buffer = io.BytesIO()
    # pyarrow's annotations know less than its documentation.
    repeated: Any = ["label", "labels.list.element", "top5.list.element"]
    # Of a column of near-random floats the bytes compress alone; names share their beginnings.
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=9,
        use_dictionary=repeated,
        column_encoding={
            "index": "DELTA_BINARY_PACKED",
            "confidence": "BYTE_STREAM_SPLIT",
            **({"name": "DELTA_BYTE_ARRAY"} if names is not None else {}),
        },
    )
    atomic_write(path, buffer.getvalue())


def save_with_predictions(
    folder: Path,
    result: Result,
    predictions: Predictions,
    *,
    names: Sequence[str],
    classes: Sequence[str] = (),
) -> Result:
    """Write the predictions, then the result that names their file; returns that one.

    names, classes: as in ``save_predictions``.  Raises DiskError.
    """
    result = replace(result, predictions=f"{result.stem}.parquet")
    place = folder / result.predictions
    save_predictions(place, predictions, names=names, result=result, classes=classes)
    result.save(folder)
    return result


def load_predictions(path: Path) -> Predictions:
    """The predictions in a file that ``save_predictions`` wrote, and nobody changed since.

    Raises DataError where there is no file, IntegrityError.
    """
    return read_saved(path).predictions


def read_saved(path: Path) -> Saved:
    """The same, with the names and what the file says of itself.

    Raises DataError where there is no file, IntegrityError.
    """
    import pyarrow as pa

    try:
        return _read(path)
    except FileNotFoundError as error:
        raise DataError("there is no file of predictions", where=str(path), fix=_FIX) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise _refused(path, what) from error
    except (pa.ArrowException, ValueError, OSError, MemoryError, RecursionError) as error:
        raise _refused(path, (str(error).splitlines() or [type(error).__name__])[0]) from error


def _refused(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"not a file of predictions: {shown(what[:300])}", where=str(path), fix=_FIX
    )


def _read(path: Path) -> Saved:
    """Raises ValueError, OSError and pyarrow's errors for what is no such file."""
    import pyarrow.parquet as pq

    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"over {_MOST_BYTES:,} bytes")
    with pq.ParquetFile(path) as file:
        stated = (file.schema_arrow.metadata or {}).get(_KEY)
        if stated is None or len(stated) > _MOST_METADATA:
            raise ValueError("its metadata is not tinyzoo's")
        header = _HEADER.validate_json(stated)
        schema = file.schema_arrow.remove_metadata()
        named = "name" in schema.names
        if schema != _schema(header, named=named):
            raise ValueError(f"its columns are {', '.join(f'{c.name} {c.type}' for c in schema)}")
        _require_bounds(file.metadata)
        table = file.read()
    table.validate(full=True)
    if any(table[name].null_count for name in table.column_names if name != "label"):
        raise ValueError("values are missing")
    columns = _read_columns(table, header.label_columns)
    names = tuple(table["name"].to_pylist()) if named else ()
    if fault := _fault(columns, names, len(header.classes) or CLASSES):
        raise ValueError(fault)
    if header.sha256 != _digest(header, columns, names):
        raise ValueError("its content is not what its sha256 says")
    index, labels, top5, confidence = map(torch.from_numpy, columns)
    predictions = Predictions(
        protocol=header.protocol,
        samples=index.long(),
        labels=labels,
        top5=top5,
        confidence=confidence,
    )
    return Saved(predictions=predictions, names=names, header=header)


def _require_bounds(metadata: Any) -> None:
    """Raise ValueError for more than could be meant, before any of it is unpacked."""
    if metadata.num_rows > MOST_ROWS:
        raise ValueError(f"{metadata.num_rows:,} rows; at most {MOST_ROWS:,} are read")
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    columns = [group.column(c) for group in groups for c in range(group.num_columns)]
    if any(column.num_values > MOST_LABELS * MOST_ROWS for column in columns) or (
        sum(column.total_uncompressed_size for column in columns) > 4 * _MOST_BYTES
    ):
        raise ValueError("it unpacks to more than could be meant")


def _header(predictions: Predictions, result: Result | None, classes: Sequence[str]) -> Header:
    known = PROTOCOLS.get(predictions.protocol)
    header = Header(
        protocol=predictions.protocol,
        protocol_digest=known.digest if known else "",
        classes=tuple(classes),
        label_columns=predictions.labels.shape[1],
    )
    if result is None:
        return header
    return replace(
        header,
        protocol_digest=result.protocol_digest or header.protocol_digest,
        model=result.model,
        model_digest=result.model_digest,
        data_fingerprint=result.data_fingerprint,
        # As JSON gives it back: its digest must not depend on tuples.
        transform=json.loads(json.dumps(result.transform)),
    )


def _as_text(name: str) -> str:
    # A file's name need not be UTF-8; a column's values are.
    return name.encode(errors="backslashreplace").decode()


def _schema(header: Header, *, named: bool) -> Any:
    import pyarrow as pa

    single = header.label_columns == 1
    label = ("label", pa.int16()) if single else ("labels", pa.list_(pa.int16()))
    fields = [("index", pa.int32()), label, ("top5", pa.list_(pa.int16(), TOP))]
    fields.append(("confidence", pa.float32()))
    return pa.schema([*fields, *([("name", pa.string())] if named else [])])


def _columns_of(predictions: Predictions) -> _Columns:
    samples = predictions.samples.numpy()
    narrow = np.clip(samples, -1, np.iinfo(np.int32).max).astype(np.int32)
    assert (narrow == samples).all(), "an image's number fits in 32 bits"
    rest = (predictions.labels, predictions.top5, predictions.confidence)
    labels, top5, confidence = (np.ascontiguousarray(tensor.numpy()) for tensor in rest)
    return narrow, labels, top5, confidence


def _label_array(labels: np.ndarray) -> dict[str, Any]:
    """One column: a class or null of each image; or the list of its classes."""
    import pyarrow as pa

    there = labels >= 0
    if labels.shape[1] == 1:
        return {"label": pa.array(labels[:, 0], mask=~there[:, 0])}
    offsets = np.concatenate([[0], there.sum(1).cumsum()]).astype(np.int32)
    return {"labels": pa.ListArray.from_arrays(pa.array(offsets), pa.array(labels[there]))}


def _read_columns(table: Any, width: int) -> _Columns:
    import pyarrow.compute as pc

    rows = len(table)
    labels = np.full((rows, width), -1, np.int16)
    if width == 1:
        labels[:, 0] = table["label"].fill_null(-1).to_numpy()
    else:
        lengths = pc.call_function("list_value_length", [table["labels"]]).to_numpy()
        if rows and lengths.max() > width:
            raise ValueError(f"an image has more than {width} labels")
        labels[np.arange(width) < lengths[:, None]] = _flat(table["labels"])
    top5 = _flat(table["top5"]).reshape(rows, TOP)
    columns = (table["index"].to_numpy(), labels, top5, table["confidence"].to_numpy())
    index, labels, top5, confidence = (np.require(c, requirements=["C", "W", "O"]) for c in columns)
    return index, labels, top5, confidence


def _flat(column: Any) -> np.ndarray:
    import pyarrow.compute as pc

    values = pc.call_function("list_flatten", [column])
    if values.null_count:
        raise ValueError("values are missing")
    return values.to_numpy()


def _fault(columns: _Columns, names: Sequence[str], classes: int) -> str | None:
    """What is wrong with the values; None if nothing is."""
    index, labels, top5, confidence = columns
    if len(index) and (index[0] < 0 or (np.diff(index.astype(np.int64)) <= 0).any()):
        return "the images' numbers are not ascending, each once"
    if not _are_classes(labels, classes):
        return f"a label is none of the {classes:,} classes"
    if not _are_classes(top5, classes) or (top5[:, 0] < 0).any():
        return f"a predicted class is none of the {classes:,}"
    if not ((confidence >= 0) & (confidence <= 1)).all():
        return "a confidence is not between 0 and 1"
    if names and len(names) != len(index):
        return f"{len(names):,} names of {len(index):,} images"
    return None


def _are_classes(numbers: np.ndarray, classes: int) -> bool:
    """Whether every row holds classes' numbers, filled up with -1 at its end alone."""
    there = numbers >= 0
    known = ((numbers >= -1) & (numbers < classes)).all()
    return bool(known and (there[:, 1:] <= there[:, :-1]).all())


def _digest(header: Header, columns: _Columns, names: Sequence[str]) -> str:
    stated = {key: value for key, value in asdict(header).items() if key != "sha256"}
    whole = hashlib.sha256(json.dumps([stated, list(names)], sort_keys=True).encode())
    for column in columns:
        whole.update(column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes())
    return whole.hexdigest()
