"""zoo push --sign: what is published is official, and stays so."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from ownhub import OwnHub
from pushes import FAST, NAME, make, posts
from runs import zoo
from signed import KEY, OTHER, SIGNER, key_file

from zoo.catalog import add_to_user_catalog, load_catalog
from zoo.entry import Hosted
from zoo.errors import Exit, IntegrityError, UsageError
from zoo.hub import pull_model
from zoo.package import packed
from zoo.push import Pushed, push
from zoo.signing import SIGNATURE
from zoo.terms import Terms


def publish(model: Path, key: Path | None, **terms: Any) -> Pushed:
    with packed(str(model), Terms(repository=NAME, sign=key, **terms)) as package:
        return push(package, patience=FAST)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return key_file(tmp_path, KEY)


def test_a_signed_model_is_pulled_as_the_signers(
    hub: OwnHub, api: HfApi, model: Path, key: Path, settings: Path
) -> None:
    pushed = publish(model, key)
    assert SIGNATURE in pushed.sent
    hosted = tomllib.loads((settings / "catalog.toml").read_text())["models"]["tiny"]["hosted"]
    assert hosted["signer"]["public_key"].strip() == str(SIGNER.public_key).strip()
    pulled = pull_model("tiny")
    assert SIGNER.text() in pulled.text()
    assert zoo(["verify", "tiny"]) == Exit.DONE


def test_signing_again_is_no_new_commit(
    hub: OwnHub, api: HfApi, model: Path, key: Path, settings: Path
) -> None:
    first = publish(model, key)
    again = publish(model, key)
    assert (again.commit, again.tag, again.sent) == (first.commit, "v1", ())
    assert posts(hub, "/commit/") == 1
    pull_model("tiny")  # its pin is of the signature that is there


def test_another_key_signs_anew(
    hub: OwnHub, api: HfApi, model: Path, key: Path, tmp_path: Path
) -> None:
    publish(model, key)
    pushed = publish(model, key_file(tmp_path, OTHER))
    assert (pushed.tag, pushed.sent) == ("v2", (SIGNATURE,))
    pull_model("tiny")


def test_a_stale_signature_does_not_stay(
    hub: OwnHub, api: HfApi, model: Path, key: Path, settings: Path, tmp_path: Path
) -> None:
    publish(model, key)
    (settings / "catalog.toml").unlink()  # of another publisher, who knows of no signer
    publish(make(tmp_path / "other", seed=1), None)
    assert SIGNATURE not in api.list_repo_files(NAME)


def test_what_the_signature_would_not_cover(
    hub: OwnHub, api: HfApi, model: Path, key: Path
) -> None:
    api.create_repo(NAME)
    api.upload_file(path_or_fileobj=b"hello", path_in_repo="notes.md", repo_id=NAME)
    with pytest.raises(UsageError, match="would not cover") as caught:
        publish(model, key)
    assert "notes.md" in caught.value.where
    assert "notes.md" in publish(model, None).notes[0]


def test_what_others_commit_is_refused_even_if_the_pin_follows(
    hub: OwnHub, api: HfApi, model: Path, key: Path, settings: Path, tmp_path: Path
) -> None:
    publish(model, key)
    api.upload_file(path_or_fileobj=b"<svg/>", path_in_repo="more.svg", repo_id=NAME)
    entry = load_catalog().models["tiny"]
    moved = Hosted(repository=NAME, commit=api.model_info(NAME).sha, signer=SIGNER)
    add_to_user_catalog(replace(entry, hosted=moved))
    with pytest.raises(IntegrityError, match="sign") as caught:
        pull_model("tiny")
    assert "more.svg" in caught.value.where
    assert not list((tmp_path / "cache").glob("models--me--tiny/snapshots/*"))


def test_the_key_never_gets_in(hub: OwnHub, api: HfApi, model: Path) -> None:
    key = key_file(model, KEY)
    with pytest.raises(IntegrityError, match="does not belong"):
        publish(model, key)
    assert posts(hub, "/commit/") == 0


def test_another_model_of_the_same_signer_is_not_this_one(
    hub: OwnHub, api: HfApi, model: Path, key: Path, settings: Path, tmp_path: Path
) -> None:
    publish(model, key)
    other = make(tmp_path / "other", seed=1)
    with packed(str(other), Terms(repository="me/other", sign=key)) as package:
        push(package, patience=FAST)
        api.upload_folder(repo_id=NAME, folder_path=package.folder)
    with pytest.raises(IntegrityError, match="signed as me/other"):
        pull_model("tiny@main")
    assert not list((tmp_path / "cache").glob("models--me--tiny/snapshots/*"))


def test_a_signer_is_not_lost_by_forgetting_the_key(
    hub: OwnHub, api: HfApi, model: Path, key: Path, settings: Path, tmp_path: Path
) -> None:
    publish(model, key)
    with pytest.raises(UsageError, match="is signed by") as caught:
        publish(model, None)
    assert "--sign" in caught.value.fix
    assert posts(hub, "/commit/") == 1
    pushed = publish(model, key_file(tmp_path, OTHER))
    assert "signed by another than before" in pushed.notes[0]
