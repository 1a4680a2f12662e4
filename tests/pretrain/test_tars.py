"""Shards that are cut, damaged or made to harm: found, named, and nothing of them on the disk."""

import contextlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards import picture, write_shard

from pretrain.remote import opened
from pretrain.shards import open_shards
from pretrain.tars import samples
from zoo.errors import DataError, IntegrityError


def read_all(place: Path) -> list:
    with opened(str(place), place.stat().st_size) as file:
        return list(samples(file, str(place)))


def test_a_shard_cut_anywhere_is_found(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "a.tar", {f"{i}.jpg": picture(i) for i in range(3)})
    data, cut = whole.read_bytes(), tmp_path / "cut.tar"
    end = max(s.image.offset + s.image.size for s in read_all(whole))
    for size in range(0, end + 1, 97):
        cut.write_bytes(data[:size])
        with pytest.raises(DataError, match="not a whole tar archive"):
            read_all(cut)
    cut.write_bytes(data[: -(-end // 512) * 512])
    with pytest.raises(DataError, match="without its end mark"):
        read_all(cut)


def with_member(change: Callable[[tarfile.TarInfo], None], data: bytes = b"") -> bytes:
    member = tarfile.TarInfo("b.jpg")
    change(member)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        ordinary = tarfile.TarInfo("a.jpg")
        ordinary.size = 3
        tar.addfile(ordinary, io.BytesIO(b"abc"))
        tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def as_kind(kind: bytes, link: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, link

    return change


def as_name(name: str) -> Callable[[tarfile.TarInfo], None]:
    return lambda member: setattr(member, "name", name)


EVIL = {
    "a symbolic link": as_kind(tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": as_kind(tarfile.LNKTYPE, "a.jpg"),
    "a device": as_kind(tarfile.CHRTYPE),
    "a pipe": as_kind(tarfile.FIFOTYPE),
    "an absolute name": as_name("/etc/b.jpg"),
    "a name that climbs": as_name("../b.jpg"),
    "a name that climbs later": as_name("x/../../b.jpg"),
    "a backslash": as_name("..\\b.jpg"),
}


@pytest.mark.parametrize("change", EVIL.values(), ids=EVIL.keys())
def test_members_that_no_data_set_has(tmp_path: Path, change: Callable) -> None:
    place = tmp_path / "000.tar"
    place.write_bytes(with_member(change))
    with pytest.raises(IntegrityError) as caught:
        read_all(place)
    assert caught.value.where.startswith(f"{place}: ")
    assert int(caught.value.code) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["000.tar"]


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    place = tmp_path / "000.tar"
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 1 << 40
    place.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 12))
    with pytest.raises(DataError, match="a header of 1,099,511,627,776 bytes"):
        read_all(place)


@pytest.mark.parametrize("long", ["comment{}=" + "x" * 400_000, "x" * 400_000 + "{}="])
def test_common_headers_that_would_fill_the_memory(tmp_path: Path, long: str) -> None:
    """Those for all members to come are kept as long as the archive is read."""
    place = tmp_path / "000.tar"
    with place.open("wb") as file:
        for number in range(4):
            text = long.format(number) + "\n"
            line = f"{len(text) + 7} {text}".encode()
            header = tarfile.TarInfo("pax")
            header.type, header.size = tarfile.XGLTYPE, len(line)
            file.write(header.tobuf(tarfile.USTAR_FORMAT) + line + bytes(-len(line) % 512))
            image = tarfile.TarInfo(f"{number}.jpg")
            image.size = 3
            file.write(image.tobuf(tarfile.USTAR_FORMAT) + b"abc" + bytes(509))
        file.write(bytes(1024))
    with pytest.raises(DataError, match="common headers without end"):
        read_all(place)


def test_shards_that_are_no_data_set(tmp_path: Path) -> None:
    place = tmp_path / "000.tar"
    place.write_bytes(b"\x1f\x8b" + bytes(1000))
    with pytest.raises(DataError, match="compressed"):
        read_all(place)
    write_shard(place, {"a.jpg": picture(0), "a.png": picture(1)})
    with pytest.raises(DataError, match="two images share one key"):
        read_all(place)
    with tarfile.open(place, "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DataError, match="occurs twice") as caught:
        read_all(place)
    assert caught.value.where == f"{place}: 'a.jpg'"
    write_shard(place, {"a.json": b"{}", "b.seg.png": b"", "c.cls": b"1", "._d.jpg": b""})
    assert read_all(place) == []
    with pytest.raises(DataError, match="holds no image"):
        open_shards(str(place))


@given(data=st.binary(max_size=2048), at=st.integers(0, 3000))
def test_damage_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int
) -> None:
    place = tmp_path_factory.mktemp("fuzz") / "a.tar"
    write_shard(place, {"a.jpg": b"abc", "a.cls": b"1", "b.jpg": b"defg"})
    whole = bytearray(place.read_bytes())
    whole[at : at + len(data)] = data
    place.write_bytes(whole)
    with contextlib.suppress(DataError, IntegrityError):
        for sample in read_all(place):
            assert sample.image.offset + sample.image.size <= len(whole)
