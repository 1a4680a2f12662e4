"""zoo serve, asked by the real clients: pull and push."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hubclient import quick_client, usual_client
from huggingface_hub import CommitOperationAdd, HfApi
from ownhub import OwnHub, own_hub, use_client

from zoo.pull import pull

WHOLE = hashlib.shake_256(b"weights").digest(300_000)
FILES = {
    "config.json": b'{"architecture": "vit_tiny_patch16_224"}',
    "model.safetensors": WHOLE,
    "README.md": b"---\nlicense: apache-2.0\ntags: [tiny]\n---\n# A model\n",
    "images/curve.svg": b"<svg/>",
}
MODEL = "org/name"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[OwnHub]:
    (tmp_path / "served").mkdir()
    quick_client()
    with own_hub(tmp_path / "served") as hub:
        yield hub
    usual_client()


@pytest.fixture
def api(hub: OwnHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    return use_client(monkeypatch, hub, cache)


def additions(files: dict[str, bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path_in_repo=n, path_or_fileobj=data) for n, data in files.items()]


def push(api: HfApi, files: dict[str, bytes] = FILES, **options: object) -> str:
    api.create_repo(MODEL, exist_ok=True)
    done = api.create_commit(MODEL, additions(files), commit_message="a push", **options)  # type: ignore[arg-type]
    return done.oid


def test_what_is_pushed_is_pulled(hub: OwnHub, api: HfApi, cache: Path) -> None:
    commit = push(api)
    api.create_tag(MODEL, tag="v1")
    assert api.model_info(MODEL, revision="v1").sha == commit
    folder = Path(huggingface_hub.snapshot_download(MODEL, revision="v1"))
    assert {n: (folder / n).read_bytes() for n in FILES} == FILES
    assert pull(MODEL).commit == commit
