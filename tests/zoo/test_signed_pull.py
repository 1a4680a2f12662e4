"""Pulling what is signed: whoever must have signed it, in the cache or from the Hub."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakehub import FakeHub
from pulls import FILES, REPOSITORY, fetch, gets, published
from runs import zoo
from signed import KEY, SIGNER, Files, key_file, public, signed, write, write_catalog

from zoo.errors import Exit, IntegrityError, UsageError
from zoo.hub import locate
from zoo.signing import SIGNATURE, sign_folder

NOT_JUDGED = "the signature was not judged"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Files:
    files = {**FILES, "train.py": b"print()"}  # which a pull does not fetch
    return signed(tmp_path_factory.mktemp("good") / "new", files, KEY)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with published(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """To call: from then on, the extra is as good as not installed."""

    def remove() -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == "model_signing"]:
            monkeypatch.setitem(sys.modules, name, None)

    return remove


def test_a_signed_model(
    good: Files,
    hub: FakeHub,
    settings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commit = hub.add(REPOSITORY, good)
    write_catalog(settings, commit=commit)
    copy = tmp_path / "copy"
    assert zoo(["pull", "mine", "--to", str(copy), "--json"]) == 0
    pulled = json.loads(capsys.readouterr().out)
    assert pulled["signature"] == {"signer": SIGNER.text(), "files": sorted(FILES)}
    assert pulled["not_fetched"] == ["train.py"]
    assert zoo(["verify", "mine"]) == 0
    assert f"signed:   by {SIGNER.text()}" in capsys.readouterr().out
    (tmp_path / "key.pub.pem").write_text(public(KEY))
    signer = ["--signer", str(tmp_path / "key.pub.pem")]
    assert zoo(["verify", str(copy), *signer, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == pulled["signature"]
    # The signature goes with whatever revision is asked for, the pin with its own alone.
    assert zoo(["pull", "mine@main"]) == 0
    assert f"signed by:   {SIGNER.text()}, over {len(FILES)} files" in capsys.readouterr().out


def test_another_revision_is_to_be_signed_too(good: Files, hub: FakeHub, settings: Path) -> None:
    write_catalog(settings, commit=hub.add(REPOSITORY, good))
    assert zoo(["pull", "mine"]) == 0
    hub.add(REPOSITORY, {**good, "config.json": b"{}"})
    assert zoo(["pull", "mine@main"]) == Exit.INTEGRITY
    with pytest.raises(IntegrityError, match=r"config\.json|not those"):
        locate("mine@main")


def test_what_is_in_the_cache_is_judged_as_well(
    good: Files, hub: FakeHub, settings: Path, tmp_path: Path
) -> None:
    hub.add(REPOSITORY, {**good, "LICENSE": b"mine"})
    fetch()  # by its name on the Hub, of which no signer is known
    write_catalog(settings)
    assert zoo(["pull", "mine"]) == Exit.INTEGRITY
    assert zoo(["pull", "mine", "--offline"]) == Exit.INTEGRITY
    assert zoo(["verify", "mine"]) == Exit.INTEGRITY


def test_loading_judges_once(
    good: Files, hub: FakeHub, settings: Path, no_library: Callable[[], None]
) -> None:
    write_catalog(settings, commit=hub.add(REPOSITORY, good))
    folder = locate("mine")
    assert (folder / SIGNATURE).read_bytes() == good[SIGNATURE]
    no_library()
    hub.requests.clear()
    assert locate("mine") == folder
    assert zoo(["pull", "mine", "--offline"]) == 0
    assert not hub.requests
    assert zoo(["verify", "mine"]) == Exit.USAGE  # which always judges anew


def test_offline_and_not_all_here(good: Files, hub: FakeHub, settings: Path) -> None:
    write_catalog(settings, commit=hub.add(REPOSITORY, good))
    folder = locate("mine")
    (folder / "README.md").unlink()
    assert zoo(["pull", "mine", "--offline"]) == Exit.NETWORK
    assert zoo(["verify", "mine"]) == Exit.INTEGRITY
    assert zoo(["pull", "mine"]) == 0
    assert zoo(["verify", "mine"]) == 0
    for listing in folder.parents[1].glob("trees/*"):
        listing.unlink()
    assert zoo(["pull", "mine", "--offline"]) == Exit.NETWORK


def test_whoever_has_a_copy_may_sign_it(hub: FakeHub, tmp_path: Path) -> None:
    copy = fetch(to=tmp_path / "copy").folder
    (tmp_path / "key.pub.pem").write_text(public(KEY))
    signer = ["--signer", str(tmp_path / "key.pub.pem")]
    assert zoo(["verify", str(copy), *signer]) == Exit.INTEGRITY
    sign_folder(copy, key_file(tmp_path, KEY))
    assert zoo(["verify", str(copy), *signer]) == 0


def test_nothing_passes_for_want_of_the_library(
    good: Files,
    hub: FakeHub,
    settings: Path,
    no_library: Callable[[], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = {**good, "README.md": b"another text"}  # of which no judgement is remembered
    write_catalog(settings, commit=hub.add(REPOSITORY, other))
    no_library()
    assert zoo(["pull", "mine"]) == Exit.USAGE
    assert "pip install 'tinyzoo[sign]'" in capsys.readouterr().err
    assert gets(hub) == []
    with pytest.raises(UsageError, match="library"):
        locate("mine")
    with pytest.raises(UsageError, match="library"):
        sign_folder(write(tmp_path / "model", FILES), key_file(tmp_path, KEY))
    fetch()  # no signer, no need
    assert zoo(["verify", "mine"]) == Exit.USAGE


def test_a_signature_that_nobody_vouches_for(
    good: Files, hub: FakeHub, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add(REPOSITORY, good)
    write_catalog(settings, signer=None, commit=commit)
    for command in (["pull", "mine"], ["pull", REPOSITORY], ["verify", "mine"]):
        assert zoo(command) == 0
        assert NOT_JUDGED in capsys.readouterr().out
    hub.add(REPOSITORY, dict(FILES))
    for command in (["pull", REPOSITORY], ["verify", REPOSITORY]):
        assert zoo(command) == 0
        assert "signed" not in capsys.readouterr().out
