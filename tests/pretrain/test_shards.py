"""Which shards a source names, wherever they lie, and what is refused about them."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from batches import same
from hypothesis import given
from hypothesis import strategies as st
from shards import Web, picture, serve, write_info, write_shard, write_shards

from pretrain import remote
from pretrain.data import Data
from pretrain.remote import Patience, opened, read_part, require_safe
from pretrain.shards import ShardSet, open_shards
from pretrain.stream_loader import StreamLoader
from pretrain.tars import samples
from zoo.errors import DataError, IntegrityError, UsageError, ZooError

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
    bucket.mkdirs("photos", exist_ok=True)  # moto's buckets outlive its servers
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


@pytest.mark.parametrize("store", ["s3", "hub"])
def test_forked_workers_read_what_lies_here(
    request: pytest.FixtureRequest, folder: Path, store: str
) -> None:
    options = {"transform": Data(source="folder:x").crop(16), "draws": 3, "buffer": 6}
    options |= {"global_batch": 4, "rank_batch": 4, "seed": 5, "stop_step": 6, "workers": 2}
    here, there = (
        list(StreamLoader(open_shards(spec), **options))
        for spec in (str(folder), request.getfixturevalue(store))
    )
    assert same(here, there)


def test_a_first_class_that_is_none(tmp_path: Path) -> None:
    """Where the index names classes, or by a number: other words may be of another's making."""
    files = {"0.jpg": picture(0), "0.cls": b"dog"}
    write_shard(tmp_path / "000.tar", files)
    assert not open_shards(str(tmp_path)).labelled
    write_info(tmp_path, [1], ["ant", "bee"])
    for text in (b"dog", b"2"):
        write_shard(tmp_path / "000.tar", {**files, "0.cls": text})
        with pytest.raises(DataError, match="no class is called") as caught:
            open_shards(str(tmp_path))
        assert caught.value.where == f"{tmp_path}/000.tar: 0.jpg"


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
        ("/tmp/none/{0..200000}.tar", UsageError, "more than 100,000"),
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
