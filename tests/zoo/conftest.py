"""A Hub of the project's own, for the tests that publish."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hubclient import quick_client, usual_client
from huggingface_hub import HfApi
from ownhub import OwnHub, own_hub, use_client


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[OwnHub]:
    """Running, and empty."""
    (tmp_path / "served").mkdir()
    quick_client()
    with own_hub(tmp_path / "served") as hub:
        yield hub
    usual_client()


@pytest.fixture
def api(hub: OwnHub, tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """The real client, pointed at it, with the token that it knows."""
    return use_client(monkeypatch, hub, tmp_path / "cache")
