"""Reading from a server that fails: again from where it stood, for so long, and never too far."""

from collections.abc import Iterator
from pathlib import Path

import fsspec.implementations.http
import pytest
from shards import Failure, Web, serve, write_shards

from pretrain import remote
from pretrain.remote import Patience, RemoteFile, read_part
from pretrain.shards import open_shards
from zoo.errors import DataError, IntegrityError, NetworkError, UsageError, ZooError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set") / "shards", [3, 2, 4])


@pytest.fixture
def web(folder: Path) -> Iterator[Web]:
    with serve(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", Patience(attempts=4, first_wait_seconds=0.01))


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
    remote_file(web, folder)[0].read(600)
    file, _ = remote_file(web, folder)
    file.seek(600)
    before = len(web.requests)
    web.fail = lambda method, path, number: Failure(status=500)
    with pytest.raises(NetworkError, match="4 times in a row: status 500") as caught:
        file.read(600)
    assert caught.value.where == f"{web.address}/002.tar at byte 600"
    assert "same command continues" in caught.value.fix
    assert len(web.requests) - before <= 8


def test_a_server_that_is_silent(web: Web, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("by", ["Location", "URI"])
def test_nobody_is_followed_to_an_unsafe_place(web: Web, folder: Path, by: str) -> None:
    away = Failure(location="http://elsewhere.example/002.tar", by=by)
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
