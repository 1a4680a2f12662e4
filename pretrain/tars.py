"""Plain tar archives, read member by member: nothing is unpacked, no name becomes a path.

Links, devices and names that lead out are refused, and so is an archive that just stops.  Of a
WebDataset shard, the members that share a key are one sample.
"""

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple

from webdataset.tariterators import group_by_keys

from zoo.errors import DataError, IntegrityError

MOST_HEADER_BYTES = 1 << 20
"""Of a member's header with its extensions: tarfile takes these into memory, however long."""
_MOST_HEADERS = 1000
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""After a key's first dot, in any case; ``seg.png``, say, is no image to train on."""

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_CHUNK = 1 << 20


class Extent(NamedTuple):
    """Where a member's bytes lie."""

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """What a shard holds under one key."""

    ordinal: int
    """Position among the shard's samples."""
    image: Extent
    label: Extent | None
    """Of the ``.cls`` member."""


def samples(file: BinaryIO, where: str) -> Iterator[Sample]:
    """The samples of a WebDataset shard, in order; keys without an image are none.

    No member's bytes are read, and the file may be moved in between.  Raises DataError for what is
    no whole plain tar, or has a name twice in one key; IntegrityError for links and names that
    lead out.
    """
    ordinal = 0
    try:
        for found in group_by_keys(_extents(file, where)):
            images = [found[suffix] for suffix in IMAGE_SUFFIXES if suffix in found]
            if len(images) > 1:
                raise DataError(
                    "two images share one key",
                    where=f"{where}: {images[0].name!r} and {images[1].name!r}",
                    fix="make the shard anew with one image for each key",
                )
            if images:
                yield Sample(ordinal, images[0], found.get("cls"))
                ordinal += 1
    except ValueError as error:  # webdataset's, whose text lists the keys
        raise DataError(
            "a name occurs twice in the shard",
            where=f"{where}: {str(error.args[0]).partition(':')[0]!r}",
            fix="make the shard anew",
        ) from error


def _extents(file: BinaryIO, where: str) -> Iterator[dict]:
    """The files of an archive as webdataset's grouping takes them, extents in place of bytes."""
    for member in members(file, where):
        if plain_name(member, where) is not None and member.isreg():
            extent = Extent(member.name, member.offset_data, member.size)
            yield {"fname": member.name, "data": extent, "__url__": where}


def members(file: BinaryIO, where: str) -> Iterator[tarfile.TarInfo]:
    """All members of an archive.  Raises DataError for whatever is not a whole, plain tar."""
    try:
        _require_plain(file, where)
        with tarfile.open(
            fileobj=_Headers(file),  # type: ignore[arg-type]
            mode="r:",
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            end = 0
            while (member := tar.next()) is not None:
                # It would keep them all: a gigabyte for a million.
                tar.members = []  # type: ignore[attr-defined]
                if member.size < 0 or tar.offset <= end:  # a negative size turns tarfile in circles
                    raise tarfile.ReadError("a member of impossible size")
                end = tar.offset
                _require_few(tar.pax_headers)
                yield member
            _require_end(file, tar.offset)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(
            f"not a whole tar archive: {str(error).splitlines()[0] if str(error) else 'damaged'}",
            where=where,
            fix="fetch it or make it anew",
        ) from error
    except OSError as error:
        raise unreadable(error, where) from error


def _require_few(headers: Mapping[str, str]) -> None:
    """tarfile keeps the headers that are meant for all members to come."""
    size = sum(len(name) + len(value) for name, value in headers.items())
    if len(headers) > _MOST_HEADERS or size > MOST_HEADER_BYTES:
        raise tarfile.ReadError("common headers without end")


class _Headers:
    """What tarfile reads an archive through: headers alone, and none that fills the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek: Callable[..., int] = file.seek
        self.tell: Callable[[], int] = file.tell
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


def unreadable(error: OSError, where: str) -> DataError:
    return DataError(
        f"the archive cannot be read: {error.strerror or type(error).__name__}",
        where=where,
        fix="check that it is there, and readable",
    )


def _require_plain(file: BinaryIO, where: str) -> None:
    magic = file.read(8)
    file.seek(0)
    for start, kind in _COMPRESSED.items():
        if magic.startswith(start):
            raise DataError(
                f"the archive is compressed ({kind}): no image in it can be read by its place",
                where=where,
                fix="unpack it into a folder, or decompress it to a plain .tar",
            )


def _require_end(file: BinaryIO, offset: int) -> None:
    """tarfile takes a damaged header, and a file that just stops, for the end of the archive."""
    file.seek(offset)
    if len(block := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it stops without its end mark")
    while block:
        if block.strip(b"\0"):
            raise tarfile.ReadError("a damaged member, or another archive joined to its end")
        block = file.read(_CHUNK)


def plain_name(member: tarfile.TarInfo, where: str) -> bytes | None:
    """The member's name, without ``./``; None for hidden ones.  Raises IntegrityError, DataError.

    Hidden are, as in folders, names with a leading dot: macOS puts ``._1.jpg`` beside ``1.jpg``.
    """
    parts = [part for part in os.fsencode(member.name).split(b"/") if part not in (b"", b".")]
    if member.name.startswith("/") or b".." in parts or "\\" in member.name:
        what = "a name in the archive leads out of it"
    elif not (member.isreg() or member.isdir()):
        what = "the archive holds a link or a device, which is never followed"
    elif member.issparse():
        raise DataError(
            "the archive holds a sparse file, which cannot be read by its place",
            where=f"{where}: {member.name!r}",
            fix="make the archive anew without --sparse",
        )
    else:
        return None if not parts or any(p.startswith(b".") for p in parts) else b"/".join(parts)
    raise IntegrityError(
        what, where=f"{where}: {member.name!r}", fix="make the archive anew from plain files"
    )
