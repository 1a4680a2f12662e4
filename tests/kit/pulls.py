"""A small published model, its pull, and what must never be seen in the cache."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakehub import FakeHub, point_client_at, serve
from hubclient import quick_client, usual_client

from zoo.pull import Pulled, pull
from zoo.wire import Patience

REPOSITORY = "org/name"
WEIGHTS = "model.safetensors"
WHOLE = hashlib.shake_256(b"weights").digest(200_000)
FILES = {
    "config.json": b'{"architecture": "vit_tiny_patch16_224"}',
    WEIGHTS: WHOLE,
    "README.md": b"# A model\n" * 300,
    "images/curve.svg": b"<svg/>",
    "LICENSE": b"Do as you like.",
}
FAST = Patience(
    attempts=3,
    progress=40_000,
    first_wait_seconds=0.001,
    stall_seconds=0.2,
    total_seconds=1.5,
    least_rate=1e9,
)


@contextlib.contextmanager
def published(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """A Hub that holds the model, and the real client pointed at it."""
    quick_client()
    with serve() as hub:
        point_client_at(monkeypatch, hub.endpoint, cache)
        hub.add(REPOSITORY, dict(FILES))
        yield hub
    usual_client()


def fetch(source: str = REPOSITORY, **options: object) -> Pulled:
    """A pull that soon loses patience."""
    return pull(source, **{"patience": FAST, **options})  # type: ignore[arg-type]


def gets(hub: FakeHub) -> list[str]:
    """Files that were asked for, in any revision or place."""
    return [asked.name for asked in hub.asked if asked.method == "GET" and asked.name]


def litter(cache: Path) -> list[str]:
    """Partial and temporary files."""
    return [p.name for p in cache.rglob("*") if "incomplete" in p.name or "tmp" in p.name]


def assert_nothing_wrong(cache: Path, truths: dict[str, bytes] = FILES) -> None:
    """No file under a snapshot, and no blob, that is not what was published."""
    for snapshot in cache.glob("models--*/snapshots/*"):
        for path in snapshot.rglob("*"):
            if not path.is_dir():
                assert path.read_bytes() == truths[path.relative_to(snapshot).as_posix()]
    known = {hashlib.sha256(data).hexdigest() for data in truths.values()}
    for blob in cache.glob("models--*/blobs/*"):
        if not blob.name.endswith(".incomplete"):
            assert hashlib.sha256(blob.read_bytes()).hexdigest() in known


def assert_complete(pulled: Pulled, cache: Path, truths: dict[str, bytes] = FILES) -> None:
    """Everything is there, right, and alone."""
    for name, data in truths.items():
        assert (pulled.folder / name).read_bytes() == data
    assert_nothing_wrong(cache, truths)
    assert litter(cache) == []
