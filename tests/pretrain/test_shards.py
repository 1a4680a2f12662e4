"""Which shards a source names, wherever they lie, and what is refused about them."""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards import Failure, Web, picture, serve, write_info, write_shard, write_shards

from pretrain import remote
from pretrain.remote import Patience, RemoteFile, opened, read_part, require_safe
from pretrain.shards import ShardSet, open_shards
from pretrain.tars import samples
from zoo.errors import DataError, IntegrityError, NetworkError, UsageError, ZooError

COUNTS = [3, 2, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set") / "shards", COUNTS)


@pytest.fixture
def web(folder: Path) -> Iterator[Web]:
    with serve(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", Patience(attempts=4, first_wait_seconds=0.01))


def names(found: ShardSet) -> list[str]:
    return [shard.place.rpartition("/")[2] for shard in found.shards]


def contents(found: ShardSet) -> list[tuple[str, bytes]]:
    """Every image's name and bytes."""
    out = []
    for shard in found.shards:
        with opened(shard.place, shard.size) as file:
            for sample in samples(file, shard.place):
                file.seek(sample.image.offset)
                out.append((sample.image.name, file.read(sample.image.size)))
    return out


EXPECTED = [(f"{i:04}.jpg", picture(i)) for i in range(sum(COUNTS))]


@pytest.mark.parametrize(
    "spec", ["", "/", "/*.tar", "/{000..002}.tar", "/00[0-2].tar", "/{000,001,002}.ta*"]
)
def test_shards_here(folder: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_shards(f"{folder}{spec}")
    assert contents(found) == EXPECTED
    assert found.labelled
    assert found.samples is None
    monkeypatch.chdir(folder.parent)
    assert open_shards(f"{folder.name}{spec}") == found
    assert open_shards(f"file://{folder}{spec}") == found


def test_one_shard(folder: Path) -> None:
    assert names(open_shards(f"{folder}/001.tar")) == ["001.tar"]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    place = tmp_path / "a{1,2}[3]*.tar"
    write_shard(place, {"a.jpg": picture(0)})
    assert names(open_shards(str(place))) == [place.name]


@pytest.mark.parametrize("spec", ["/{000..002}.tar", "/"])
def test_shards_over_http(folder: Path, tmp_path: Path, spec: str) -> None:
    here = open_shards(str(write_info(write_shards(tmp_path, COUNTS), COUNTS)))
    with serve(tmp_path) as web:
        found = open_shards(web.address + spec)
        assert contents(found) == EXPECTED
        assert found.fingerprint == here.fingerprint
        assert found.samples == sum(COUNTS)


@pytest.fixture
def s3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with the shards on a server of S3's kind."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = s3fs.S3FileSystem()
    bucket.mkdir("photos")
    bucket.put(f"{folder}/", "photos/set/", recursive=True)
    yield "s3://photos/set"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_shards_in_object_storage(s3: str, folder: Path) -> None:
    here = open_shards(str(folder))
    for spec in ("", "/", "/*.tar", "/{000..002}.tar"):
        found = open_shards(s3 + spec)
        assert [shard.place for shard in found.shards] == [f"{s3}/00{i}.tar" for i in range(3)]
        assert found.fingerprint == here.fingerprint
    assert contents(found) == EXPECTED
    shard = found.shards[0]
    data = (folder / "000.tar").read_bytes()
    assert read_part(shard.place, 700, 300) == data[700:1000]
    with pytest.raises(DataError, match="not there") as caught:
        open_shards(s3 + "/{000..003}.tar")
    assert caught.value.where == f"{s3}/003.tar"


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    import fakehub
    from hubclient import quick_client, usual_client
    from huggingface_hub import HfFileSystem

    with fakehub.serve() as server:
        server.add("me/photos", {f"data/{p.name}": p.read_bytes() for p in folder.iterdir()})
        fakehub.point_client_at(monkeypatch, server.endpoint, tmp_path / "cache")
        quick_client()
        HfFileSystem.clear_instance_cache()
        yield "hf://datasets/me/photos/data"
        HfFileSystem.clear_instance_cache()
        usual_client()


def test_shards_on_the_hub(hub: str, folder: Path) -> None:
    here = open_shards(str(folder))
    for spec in ("", "/*.tar", "/{000..002}.tar"):
        found = open_shards(hub + spec)
        assert names(found) == names(here)
        assert found.fingerprint == here.fingerprint
        assert contents(found) == EXPECTED
    data = (folder / "000.tar").read_bytes()
    assert read_part(found.shards[0].place, 700, 300) == data[700:1000]
    with pytest.raises(DataError, match="not there"):
        open_shards(hub + "/{000..003}.tar")


def test_what_lies_beside_shards_is_passed_over(tmp_path: Path) -> None:
    write_shards(tmp_path, [2])
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "folder.tar").mkdir()
    assert names(open_shards(str(tmp_path))) == ["000.tar"]


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("https://me:hunter2@host/a.tar", UsageError, "a password"),
        ("https://host/a.tar?sig=hunter2", UsageError, "a signature"),
        ("s3://key:hunter2@bucket/a.tar", UsageError, "a password"),
        ("simplecache::https://host/a.tar", UsageError, "not joined by ::"),
        ("http://host.example/a.tar", IntegrityError, "anything but https"),
        ("https://[host/a.tar", UsageError, "not an address"),
        ("https://127.0.0.1:1/*.tar", UsageError, "no list of files"),
        ("nothing://host/a.tar", UsageError, "cannot be opened here"),
        ("/tmp/{000..", UsageError, "brace"),
        ("/tmp/none/{0..9999999}.tar", UsageError, "more than 100,000"),
        ("/tmp/none/a.tar", DataError, "not there"),
        ("/tmp/none/*.tar", DataError, "no file is of this name"),
        ("", UsageError, "which shards"),
    ],
)
def test_sources_that_are_refused(spec: str, error: type[ZooError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        open_shards(spec)
    assert "hunter2" not in str(caught.value)
    assert caught.value.fix


def test_no_shard(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tar file is there") as caught:
        open_shards(str(tmp_path))
    assert caught.value.where == str(tmp_path)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_is_refused(text: str) -> None:
    with contextlib.suppress(UsageError, IntegrityError):
        require_safe(text)
        require_safe(f"https://{text}")


def test_a_hub_over_plain_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example")
    with pytest.raises(IntegrityError, match="anything but https"):
        open_shards("hf://datasets/me/photos/a.tar")


INDEXES = {
    "not JSON": ("{", "Invalid JSON"),
    "a list": ("[]", "Input should be"),
    "no splits": ("{}", "Field required"),
    "lengths missing": (
        '{"splits": {"train": {"filenames": ["000.tar"], "shard_lengths": []}}}',
        "not of one number",
    ),
    "a name that leads out": (
        '{"splits": {"train": {"filenames": ["../000.tar"], "shard_lengths": [1]}}}',
        "leads out",
    ),
}


@pytest.mark.parametrize(("text", "says"), INDEXES.values(), ids=INDEXES.keys())
def test_an_index_that_is_none(tmp_path: Path, text: str, says: str) -> None:
    (write_shards(tmp_path, [1]) / "_info.json").write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        open_shards(str(tmp_path))
    assert caught.value.where == f"{tmp_path}/_info.json"


def test_index_and_shards_must_be_of_one_set(tmp_path: Path) -> None:
    write_info(write_shards(tmp_path, COUNTS), COUNTS)
    assert open_shards(f"{tmp_path}/{{000..001}}.tar").samples == 5
    (tmp_path / "001.tar").unlink()
    with pytest.raises(DataError, match="1 shards are in the folder or in its index") as caught:
        open_shards(str(tmp_path))
    assert "001.tar" in caught.value.where
    assert open_shards(f"{tmp_path}/*.tar").samples == 7
    write_shard(tmp_path / "new.tar", {"a.jpg": b""})
    with pytest.raises(DataError, match=r"1 shards .* not in both"):
        open_shards(f"{tmp_path}/*.tar")


def test_an_index_of_several_splits_needs_a_pattern(tmp_path: Path) -> None:
    write_info(write_shards(tmp_path, [2, 3]), [2, 3])
    info = json.loads((tmp_path / "_info.json").read_bytes())
    one = info["splits"]["train"]
    info["splits"]["validation"] = {**one, "name": "validation"}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    with pytest.raises(UsageError, match="2 splits: train, validation"):
        open_shards(str(tmp_path))
    assert open_shards(f"{tmp_path}/000.tar").samples == 2


def test_a_shard_cut_short_is_found_before_the_first_step_where_sizes_are_known(
    tmp_path: Path,
) -> None:
    from photos import make_photos

    from pretrain.pack import pack

    pack(make_photos(tmp_path / "photos"), tmp_path / "shards", shard_bytes=20_000)
    shard = tmp_path / "shards" / "train-000001.tar"
    os.truncate(shard, shard.stat().st_size - 512)
    with pytest.raises(DataError, match="cut short") as caught:
        open_shards(str(tmp_path / "shards"))
    assert caught.value.where == str(shard)


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


def remote_file(web: Web, folder: Path, name: str = "002.tar") -> tuple[RemoteFile, bytes]:
    data = (folder / name).read_bytes()
    return RemoteFile(f"{web.address}/{name}", len(data)), data


@pytest.mark.parametrize(
    "failure",
    [
        Failure(status=503),
        Failure(status=429),
        Failure(cut=100),
        Failure(cut=0),
    ],
    ids=["503", "429", "cut", "closed"],
)
def test_a_broken_connection_is_tried_again_from_where_it_stood(
    web: Web, folder: Path, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    file, data = remote_file(web, folder)
    got = file.read(3000)
    before = len(web.requests)
    broken: list[int] = []

    def fail(method: str, path: str, number: int) -> Failure | None:
        if method == "GET" and len(broken) < 3:
            broken.append(number)
            return failure
        return None

    web.fail = fail
    got += file.read(3000)
    got += file.read()
    assert got == data
    assert len(broken) == 3
    ranges = {wanted for _, _, wanted in web.requests[before:] if wanted}
    assert "bytes=0-4095" in ranges or "bytes=4096-8191" in ranges
    file.close()


def test_patience_ends(web: Web, folder: Path) -> None:
    file, _ = remote_file(web, folder)
    file.read(600)
    file.close()
    before = len(web.requests)
    web.fail = lambda method, path, number: Failure(status=500)
    with pytest.raises(NetworkError, match="4 times in a row: status 500") as caught:
        file.read(600)
    assert caught.value.where == f"{web.address}/002.tar at byte 600"
    assert "same command continues" in caught.value.fix
    assert len(web.requests) - before <= 8


def test_a_server_that_is_silent(web: Web, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.implementations.http

    monkeypatch.setattr(remote, "SILENCE_SECONDS", 0.2)
    fsspec.implementations.http.HTTPFileSystem.clear_instance_cache()
    web.fail = lambda method, path, number: Failure(silent_seconds=1) if number < 3 else None
    file, data = remote_file(web, folder)
    assert file.read(600) == data[:600]
    file.close()
    fsspec.implementations.http.HTTPFileSystem.clear_instance_cache()


def test_no_server_at_all(folder: Path) -> None:
    with serve(folder) as web:
        address = web.address
    with pytest.raises(NetworkError, match="in a row: ClientConnectorError"):
        open_shards(f"{address}/000.tar")


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [(404, DataError, 3), (410, DataError, 3), (401, UsageError, 2), (403, UsageError, 2)],
)
def test_answers_that_will_not_change(
    web: Web, folder: Path, status: int, error: type[ZooError], code: int
) -> None:
    file, _ = remote_file(web, folder)
    file.read(10)
    file.close()
    before = len(web.requests)
    web.fail = lambda method, path, number: Failure(status=status)
    with pytest.raises(error) as caught:
        file.read(10)
    assert caught.value.code == code
    assert "002.tar" in caught.value.where
    assert len(web.requests) - before <= 2
    with pytest.raises(error):
        open_shards(f"{web.address}/{{000..002}}.tar")


def test_a_shard_that_became_another(web: Web, folder: Path) -> None:
    with pytest.raises(DataError, match="cut short, or another"):
        RemoteFile(f"{web.address}/002.tar", 5).read(5)


def test_a_server_without_ranges_is_named(web: Web, folder: Path) -> None:
    web.fail = lambda method, path, number: Failure(whole=True)
    size = (folder / "002.tar").stat().st_size
    with pytest.raises(NetworkError, match="ConnectionError"):
        read_part(f"{web.address}/002.tar", 700, 300)
    file = RemoteFile(f"{web.address}/002.tar", size)
    file.seek(size - 10)
    assert file.read(10) == bytes(10)  # one block holds it all
    file.close()


def test_a_server_without_ranges_cannot_be_streamed(
    web: Web, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1024)
    web.fail = lambda method, path, number: Failure(whole=True)
    file, _ = remote_file(web, folder)
    file.seek(5000)
    with pytest.raises(UsageError, match="does not give parts"):
        file.read(10)


def test_nobody_is_followed_to_an_unsafe_place(web: Web, folder: Path) -> None:
    away = Failure(location="http://elsewhere.example/002.tar")
    web.fail = lambda method, path, number: away
    with pytest.raises(IntegrityError, match="not https") as caught:
        open_shards(f"{web.address}/{{000..002}}.tar")
    assert "elsewhere.example" in caught.value.where


def test_a_name_and_password_come_from_netrc_and_stay_out_of_errors(
    web: Web, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """This machine is reached without them, and so they do not leave."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    open_shards(f"{web.address}/{{000..002}}.tar")
    assert not [headers for headers in web.headers if "authorization" in headers]
