"""zoo doctor on the way to the Hub: the endpoint, the token, the cache."""

import json
import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fakehub import Answer, FakeHub, point_client_at, serve
from hubclient import quick_client, usual_client

from zoo.doctor.cache import cache_checks
from zoo.doctor.check import Check, State
from zoo.doctor.endpoint import endpoint_checks
from zoo.doctor.login import token_checks

CANARIES = ("hf_canaryOfTheEnvironment", "hf_canaryOfTheFile")
CONSTANTS = huggingface_hub.constants


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    quick_client()
    with serve() as hub:
        point_client_at(monkeypatch, hub.endpoint, tmp_path / "cache")
        yield hub
    usual_client()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that other users can look into, as they cannot into pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_nobody(look: Callable[[], list[Check]]) -> list[Check]:
    """What a user sees who may neither read nor write what is root's."""
    if os.geteuid() != 0:
        return look()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        checks = [(c.name, str(c.state), c.what, c.fix) for c in look()]
        os.write(writing, json.dumps(checks).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return [Check(name, State(state), what, fix) for name, state, what, fix in json.loads(text)]


# The endpoint


def test_an_endpoint_that_answers(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARIES[0])
    (check,) = endpoint_checks()
    assert check.state == State.OK
    assert check.what.startswith(f"{hub.endpoint} answers in ")
    assert len(hub.asked) == 1
    assert "authorization" not in hub.asked[0].headers


def test_an_endpoint_that_is_not_asked(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = endpoint_checks(offline=True)
    assert (check.state, check.fix) == (State.NOTE, "")
    monkeypatch.setattr(CONSTANTS, "HF_HUB_OFFLINE", True)
    (check,) = endpoint_checks()
    assert (check.state, check.fix) == (State.NOTE, "unset HF_HUB_OFFLINE")
    assert hub.asked == []


def test_an_endpoint_that_fails(hub: FakeHub) -> None:
    hub.status["HEAD"] = 503
    (check,) = endpoint_checks()
    assert check.state == State.WARN
    assert "status 503" in check.what


def test_a_network_that_wants_a_log_in(hub: FakeHub) -> None:
    login = {"Location": "http://login.example.org/?from=hub"}
    hub.twist = lambda asked, answer: Answer(status=302, headers=login)
    (check,) = endpoint_checks()
    assert check.state == State.WARN
    assert "login.example.org" in check.what


def test_an_endpoint_that_is_dead(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(CONSTANTS, "ENDPOINT", place)
        (check,) = endpoint_checks(limit_seconds=0.2)
        assert check.state == State.WARN
        assert check.what == f"{place} cannot be reached: ReadTimeout"
    (check,) = endpoint_checks(limit_seconds=0.2)
    assert check.state == State.WARN
    assert check.what == f"{place} cannot be reached: ConnectError"
    assert check.fix


ADDRESSES = ("http://hub.example.org", "ftp://example.org", "hub.example.org", "", "https://[x")


@pytest.mark.parametrize("endpoint", ADDRESSES)
def test_an_endpoint_that_pull_refuses(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(CONSTANTS, "ENDPOINT", endpoint)
    (check,) = endpoint_checks()
    assert (check.state, check.fix) == (State.BAD, "unset HF_ENDPOINT")


def test_a_password_in_the_endpoint_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONSTANTS, "ENDPOINT", "https://me:canary@hub.example.org:444/x?canary")
    (check,) = endpoint_checks(offline=True)
    assert check.what == "https://hub.example.org:444/x: not asked; HF_HUB_OFFLINE is set, " + (
        "and nothing is fetched"
    )


# The token


def test_no_token(token_file: Path) -> None:
    assert [check.state for check in token_checks({})] == [State.OK]


def test_where_the_token_comes_from(token_file: Path) -> None:
    environ = {"HF_TOKEN": CANARIES[0]}
    (check,) = token_checks(environ)
    assert (check.state, check.what) == (State.OK, "present, from HF_TOKEN")
    token_file.write_text(CANARIES[1] + "\n")
    token_file.chmod(0o600)
    (check,) = token_checks({"HF_TOKEN": " "})
    assert (check.state, check.what) == (State.OK, f"present, from {token_file}")
    (check,) = token_checks(environ)
    assert check.what == f"present, from HF_TOKEN, not the one in {token_file}"


@pytest.mark.parametrize("name", ["token", "stored_tokens"])
def test_a_token_that_others_can_read(token_file: Path, name: str) -> None:
    file = token_file.with_name(name)
    file.write_text(CANARIES[1])
    file.chmod(0o644)
    (check,) = (check for check in token_checks({}) if check.state == State.WARN)
    assert "mode 644" in check.what
    assert check.fix == f"chmod 600 {file}"
    subprocess.run(check.fix.split(), check=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert State.WARN not in [check.state for check in token_checks({})]


def test_a_token_that_cannot_be_read(
    token_file: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_file = open_folder / "token"
    monkeypatch.setattr(CONSTANTS, "HF_TOKEN_PATH", str(token_file))
    token_file.write_text(CANARIES[1])
    token_file.chmod(0)
    (check,) = as_nobody(lambda: list(token_checks({})))
    assert check.state == State.BAD
    assert check.what == f"{token_file} cannot be read: Permission denied"
    assert check.fix
    # HF_TOKEN is taken first, and then nobody reads the file.
    states = as_nobody(lambda: list(token_checks({"HF_TOKEN": CANARIES[0]})))
    assert {check.state for check in states} == {State.WARN, State.OK}


@pytest.mark.parametrize("content", ["hf_ca nary", "hf_canary\x07", "hf_canäry", b"canary\xff"])
def test_a_token_that_is_none(token_file: Path, content: str | bytes) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    token_file.write_bytes(raw)
    token_file.chmod(0o600)
    (check,) = token_checks({})
    assert check.state == State.BAD
    assert "nary" not in check.what + check.fix
    assert check.fix


# The cache


def test_a_cache_with_models(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    blobs = cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0").write_bytes(bytes(5_000_000))
    (blobs / "1.zoo.incomplete").write_bytes(bytes(3_000_000))
    (check,) = cache_checks(cache)
    assert (check.state, check.what) == (State.OK, f"{cache}, 8 MB of models")
    old = time.time() - 100_000
    os.utime(blobs / "1.zoo.incomplete", (old, old))
    _, check = cache_checks(cache)
    assert check.state == State.NOTE
    assert "1 unfinished" in check.what
    assert "3 MB" in check.what
    assert "hf cache prune" in check.fix


def test_a_cache_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    (check,) = cache_checks(tmp_path / "a" / "b")
    assert check.state == State.OK
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_to(open_folder: Path) -> None:
    cache = open_folder / "cache"
    blobs = cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    for folder in (blobs, blobs.parent, cache):
        folder.chmod(0o755)
    cache.chmod(0o555)
    (check,) = as_nobody(lambda: list(cache_checks(cache)))
    assert check.state == State.BAD
    assert "cannot be written to: Permission denied" in check.what
    assert "HF_HUB_CACHE" in check.fix
    (blobs / "0").write_bytes(b"weights")
    (check,) = as_nobody(lambda: list(cache_checks(cache)))
    assert check.state == State.WARN  # what is there can be used
    (open_folder / "file").touch()
    (check,) = cache_checks(open_folder / "file")
    assert check.state == State.BAD
    assert "Not a directory" in check.what
