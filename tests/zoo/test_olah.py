"""zoo pull from olah, a Hub server that others wrote: it serves a git repository."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubclient import quick_client, settings, usual_client
from models import make_model

from zoo.errors import UsageError
from zoo.pull import pull
from zoo.verify import verify_folder

pytestmark = pytest.mark.olah

MODEL = "org/tiny"
BINARY = "TINYZOO_OLAH"
_START_SECONDS = 60


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    done = subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit_with_lfs(folder: Path) -> str:
    """All files of a folder in git, the weights as git-lfs keeps them; returns the commit."""
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    stored = folder / ".git" / "lfs" / "objects" / sha256[:2] / sha256[2:4] / sha256
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(data)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
    weights.write_text(pointer)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a model")
    weights.write_bytes(data)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = make_model(tmp_path / "mirrors" / "models" / MODEL)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    return folder


@pytest.fixture
def olah(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server, and the Hub client pointed at it."""
    binary = os.environ.get(BINARY)
    if not binary:
        pytest.fail(f"{BINARY} does not name olah-cli: run make test-olah")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "olah.toml"
    config.write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\n'
        f"repos-path = {json.dumps(str(tmp_path / 'cached'))}\n"
        f"mirrors-path = [{json.dumps(str(tmp_path / 'mirrors'))}]\n"
        "[accessibility]\noffline = true\n"
    )
    words = [Path(binary).absolute(), "--config", config, "--log-path", tmp_path / "logs"]
    with (tmp_path / "said.txt").open("w") as said:
        server = subprocess.Popen(words, cwd=tmp_path, stdout=said, stderr=said)
        try:
            wait_for(server, port, tmp_path / "said.txt")
            for name, value in settings(f"http://127.0.0.1:{port}", tmp_path / "cache").items():
                monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
            quick_client()
            yield
        finally:
            usual_client()
            server.terminate()
            server.wait(30)


def wait_for(server: subprocess.Popen, port: int, said: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert server.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)


@pytest.mark.usefixtures("olah")
def test_a_model_in_git_is_pulled_through_another_server(repository: Path) -> None:
    first = commit_with_lfs(repository)
    pulled = pull(MODEL)
    assert pulled.commit == first
    assert set(pulled.fetched) == {"config.json", "model.safetensors", "README.md", "zoo.json"}
    for name in pulled.fetched:
        assert (pulled.folder / name).read_bytes() == (repository / name).read_bytes()
    assert verify_folder(pulled.folder).size == pulled.received
    other = make_model(repository.parent / "other" / repository.name, seed=1)
    shutil.copytree(other, repository, dirs_exist_ok=True)
    second = commit_with_lfs(repository)
    assert pull(f"{MODEL}@{second}").commit == second != first
    assert pull(f"{MODEL}@{first}").fetched == ()
    with pytest.raises(UsageError):
        pull("org/nothing")
