"""``zoo export``: a model as an ONNX file, and beside it how well the file agrees with the network.

``NAME.onnx`` · ``NAME.onnx.json``, the record: parity on real images, and what was exported of what
"""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from zoo.errors import UsageError
from zoo.files import atomic_file, atomic_json, sha256_of, sweep, typed_path
from zoo.graph import (
    DEFAULT_OPSET,
    OPSETS,
    Readable,
    describe,
    read,
    require_onnx,
    shapes_of,
    write_graph,
)
from zoo.parity import Parity, choose_images, measure, read_digests

FORMATS = ("onnx",)
_STRICT = ConfigDict(extra="forbid", strict=True)
_VERSIONS = ("tinyzoo", "torch", "timm", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What ``NAME.onnx.json`` says."""

    __pydantic_config__ = _STRICT

    model: dict[str, str]
    """Name, digest and licence, and how images become the input; in the file's metadata too."""
    opset: int
    shapes: dict[str, list[str | int]]
    """Of the input and the outputs."""
    sha256: str
    """Of the ONNX file."""
    size: int
    """Of the ONNX file, in bytes."""
    parity: Parity
    data_fingerprint: str
    """Hex sha256 over the lines ``sha256  name`` of the images, as sha256sum prints them."""
    data: dict[str, str]
    """sha256 of each image that was compared on, by its name below the folder."""
    versions: dict[str, str] = field(default_factory=dict)
    format: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export did."""

    file: Path
    record: Record
    present: bool = False
    """The same export was here."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "record_file": str(_record_of(self.file)),
            "present": self.present,
            "record": asdict(self.record),
        }

    def text(self) -> str:
        record = self.record
        shapes = [f"{n} ({', '.join(map(str, sides))})" for n, sides in record.shapes.items()]
        here = ", already there" if self.present else ""
        return "\n".join(
            [
                f"file:    {self.file} ({record.size:,} bytes, opset {record.opset}){here}",
                f"takes:   {shapes[0]}",
                f"gives:   {', '.join(shapes[1:])}",
                f"parity:  {record.parity.line()}",
                f"record:  {_record_of(self.file)}",
            ]
        )


def export(
    source: str,
    *,
    format: str = "onnx",  # noqa: A002  # the option's name
    data: Path | None,
    out: Path = Path("models"),
    opset: int = DEFAULT_OPSET,
    images: int = 64,
) -> Exported:
    """Write a model as an ONNX file that is known to compute the same on real images.

    source: as for ``zoo.hub.locate``.  data: a folder of images, of which ``images`` are compared
    on.  out: a name that ends in ``.onnx``, or a folder.  A file that is there is never replaced:
    the same export is reported, anything else refused.  Raises UsageError, DataError,
    IntegrityError (parity beyond the tolerance; nothing is left behind), NetworkError, DiskError.
    """
    _require_sane(format, data, opset)
    assert data is not None
    require_onnx()
    data = typed_path(data)
    chosen = choose_images(data, images)
    readable = read(source)
    out = typed_path(out)
    file = out if out.suffix == ".onnx" and not out.is_dir() else out / f"{readable.name}.onnx"
    digests = read_digests(chosen, data)
    if here := _same_export(file, readable, opset, digests):
        return Exported(file=file, record=here, present=True)
    sweep(file.parent, file.name)
    with atomic_file(file) as temp:
        write_graph(temp, readable, opset)
        parity = measure(temp, readable, chosen)
        listing = "".join(f"{sha256}  {name}\n" for name, sha256 in digests.items())
        record = Record(
            model=describe(readable),
            opset=opset,
            shapes=shapes_of(temp),
            sha256=sha256_of(temp),
            size=temp.stat().st_size,
            parity=parity,
            data_fingerprint=hashlib.sha256(listing.encode()).hexdigest(),
            data=digests,
            versions={"python": platform.python_version(), **{n: version(n) for n in _VERSIONS}},
        )
        if _same_export(file, readable, opset, digests):
            raise _occupied(file, "another command made it meanwhile")
        # Before the file: one without its record is never seen, and a record alone is replaced.
        atomic_json(_record_of(file), asdict(record))
    return Exported(file=file, record=record)


def _require_sane(format_: str, data: Path | None, opset: int) -> None:
    if format_ not in FORMATS:
        raise UsageError(
            f"no format {format_[:40]!r}", where="--format", fix=f"choose {', '.join(FORMATS)}"
        )
    if data is None:
        raise UsageError(
            "no images to compare on: an export is kept only if it agrees with the network",
            where="--data",
            fix="give --data a folder of photographs such as the network is for",
        )
    if opset not in OPSETS:
        raise UsageError(
            f"no export to opset {opset}",
            where="--opset",
            fix=f"choose {OPSETS[0]} … {OPSETS[-1]}",
        )


def _record_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _same_export(
    file: Path, readable: Readable, opset: int, data: Mapping[str, str]
) -> Record | None:
    """The record of the same export, if its file is here; None where the place is free.

    Raises UsageError where something else is there.
    """
    place = _record_of(file)
    record = None
    if place.exists() or place.is_symlink():
        try:
            record = TypeAdapter(Record).validate_json(place.read_bytes())
        except (OSError, ValidationError):
            raise _occupied(place, "it is no record of an export") from None
    if not (file.exists() or file.is_symlink()):
        return None  # with a record alone: an export that was cut between the two
    if record is None:
        raise _occupied(file, f"no {place.name} is beside it")
    if not file.is_file() or sha256_of(file) != record.sha256:
        raise _occupied(file, f"its bytes are not those of {place.name}")
    if (record.model, record.opset) != (describe(readable), opset):
        raise _occupied(file, f"{place.name} speaks of another model or opset")
    if record.data != data:
        raise _occupied(file, "the same export, compared on other images")
    return record


def _occupied(place: Path, found: str) -> UsageError:
    return UsageError(
        f"there is already something else: {found}",
        where=str(place),
        fix="give --out another name, or remove this one",
    )
