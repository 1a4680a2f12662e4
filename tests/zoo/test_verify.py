"""zoo verify: every record is asked, every differing file named, no request made."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakehub import FakeHub
from models import make_model
from pulls import FILES, REPOSITORY, WEIGHTS, WHOLE, fetch, published
from runs import zoo

from zoo import verify as zoo_verify
from zoo.errors import Exit, IntegrityError, UsageError
from zoo.files import sha256_of
from zoo.verify import verify_folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with published(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def test_a_pulled_model(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    pulled = fetch()
    hub.requests.clear()
    verified = verify_folder(pulled.folder)
    assert set(verified.files) == set(FILES)
    assert verified.size == sum(map(len, FILES.values()))
    assert zoo(["verify", REPOSITORY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"] == list(verified.against)
    assert zoo(["verify", str(pulled.folder)]) == 0
    assert f"commit {pulled.commit[:12]}" in capsys.readouterr().out
    assert not hub.requests


def test_every_differing_file_is_named(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fetch().folder
    (folder / WEIGHTS).resolve().write_bytes(WHOLE[:-1] + b"?")
    (folder / "README.md").resolve().write_bytes(b"short")
    (folder / "config.json").unlink()
    (folder / "run.py").write_text("evil")
    assert zoo(["verify", str(folder)]) == Exit.INTEGRITY
    said = capsys.readouterr().err
    assert f"{WEIGHTS} has other bytes" in said
    assert "README.md has 5 bytes, not 3,000" in said
    assert "config.json is missing" in said
    assert "run.py is not in the listing" in said


def test_memory_is_believed_only_when_asked(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch().folder
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(zoo_verify, "sha256_of", counted)
    verify_folder(folder, quick=True)
    assert hashed == []
    verify_folder(folder)
    assert hashed == [WEIGHTS]  # the small ones have git's digest: read in any case


def test_a_model_folder_of_our_own(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "ours")
    assert verify_folder(folder).against == ("zoo.json",)
    (folder / "README.md").unlink()
    with pytest.raises(IntegrityError, match=r"zoo\.json says") as caught:
        verify_folder(folder)
    assert "README.md is missing" in caught.value.where


def test_a_copy(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(to=tmp_path / "copy").folder
    assert set(verify_folder(folder).files) == set(FILES)
    (folder / "LICENSE").write_text("none")
    with pytest.raises(IntegrityError):
        verify_folder(folder)


def test_a_pin(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(WHOLE)
    pins = {WEIGHTS: hashlib.sha256(WHOLE).hexdigest()}
    assert verify_folder(tmp_path, pins=pins).files == (WEIGHTS,)
    with pytest.raises(IntegrityError):
        verify_folder(tmp_path, pins={WEIGHTS: "0" * 64})


def test_nothing_to_check_against(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(WHOLE)
    with pytest.raises(UsageError, match="nothing to check"):
        verify_folder(tmp_path)


def test_what_is_not_here(hub: FakeHub) -> None:
    assert zoo(["verify", REPOSITORY]) == Exit.NETWORK
    assert not hub.requests


@pytest.mark.parametrize("damage", ["{", '{"format_version": 9}', '{"format_version": 1}', "[]"])
def test_a_damaged_listing_is_none(hub: FakeHub, damage: str) -> None:
    pulled = fetch()
    (tree,) = (pulled.folder.parents[1] / "trees").iterdir()
    whole = tree.read_text()
    tree.write_text(damage)
    with pytest.raises(UsageError, match="nothing to check"):
        verify_folder(pulled.folder)
    assert fetch().fetched == ()
    assert tree.read_text() == whole
