"""zoo push against the project's own Hub, by the real client: what is there afterwards."""

import json
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard, snapshot_download
from models import TEACHER, make_convnet
from ownhub import CANARY, OwnHub
from pushes import FAST, NAME, failure, make, posts, publish
from runs import zoo
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eval.results import Result
from zoo import load
from zoo.card import Card
from zoo.catalog import load_catalog
from zoo.errors import Exit, UsageError
from zoo.folder import save_model
from zoo.hub import pull_model
from zoo.package import packed
from zoo.push import push
from zoo.terms import Terms
from zoo.vit import VIT_T, build_vit


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "runs" / "tiny" / "export")


def test_what_is_pushed_gives_the_same_features_everywhere(
    hub: OwnHub, api: HfApi, model: Path
) -> None:
    pushed = publish(model)
    images = torch.rand(2, 3, TEACHER.image_size, TEACHER.image_size)
    here = load(model).forward_features(images)  # type: ignore[operator]
    pulled = pull_model(NAME)
    assert pulled.commit == pushed.commit
    assert torch.equal(load(pulled.folder).forward_features(images), here)  # type: ignore[operator]
    by_timm = timm.create_model(f"hf-hub:{NAME}@{pushed.tag}", pretrained=True).eval()
    assert torch.equal(by_timm.forward_features(images), here)  # type: ignore[operator]
    assert Path(snapshot_download(NAME, local_files_only=True)) == pulled.folder


def test_the_page_is_valid_and_its_model_index_parses(
    hub: OwnHub, api: HfApi, model: Path, tmp_path: Path
) -> None:
    digest = json.loads((model / "zoo.json").read_bytes())["digest"]
    result = Result(
        protocol="knn@1",
        model="tiny",
        model_digest=digest,
        metric="top-1",
        value=61.25,
        standard_error=0.75,
        samples=400,
        transform={},
        settings={"pooling": "cls"},
        data="photos",
        data_fingerprint="cd" * 32,
        dtype="float32",
        seconds=1,
        code_version="tinyzoo",
    )
    result.save(tmp_path / "results")
    terms = Terms(repository=NAME, results=tmp_path / "results", datasets=("me/photos",))
    with packed(str(model), terms) as package:
        push(package, patience=FAST)
    page: Any = ModelCard.load(NAME, ignore_metadata_errors=False)
    page.validate()  # by the Hub
    assert page.data.license == "mit"
    assert page.data.datasets == ["me/photos"]
    (found,) = page.data.eval_results
    assert (found.metric_name, found.metric_value) == ("knn@1 top-1 (pooling cls)", 61.25)
    assert (
        json.loads((pull_model(NAME).folder / "zoo.json").read_bytes())["scores"][0]["samples"]
        == 400
    )


def test_one_commit_then_a_tag_and_again_changes_nothing(
    hub: OwnHub, api: HfApi, model: Path
) -> None:
    first = publish(model)
    assert posts(hub, "/commit/") == 1
    assert set(first.sent) == {"README.md", "config.json", "model.safetensors", "zoo.json"}
    assert first.tag == "v1"
    again = publish(model)
    assert posts(hub, "/commit/") == 1
    assert (again.commit, again.tag, again.sent) == (first.commit, "v1", ())
    assert [ref.name for ref in api.list_repo_refs(NAME).tags] == ["v1"]


def test_another_model_is_the_next_version_and_sends_what_differs(
    hub: OwnHub, api: HfApi, model: Path, tmp_path: Path
) -> None:
    first = publish(model)
    second = publish(make(tmp_path / "other", seed=1))
    assert second.tag == "v2"
    assert "config.json" not in second.sent
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(NAME).tags} == {
        "v1": first.commit,
        "v2": second.commit,
    }


def test_a_tag_is_never_moved(hub: OwnHub, api: HfApi, model: Path, tmp_path: Path) -> None:
    first = publish(model, tag="paper")
    assert publish(model, tag="paper").commit == first.commit
    error = failure(make(tmp_path / "other", seed=1), UsageError, tag="paper")
    assert "already marks other files" in error.what
    assert posts(hub, "/commit/") == 1


TAGS = ["", "a b", "../x", "-x", "a/b", "x" * 101, "a..b", "v1.", "v1.lock", "main", "a" * 40]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_that_cannot_be(hub: OwnHub, api: HfApi, model: Path, tag: str) -> None:
    failure(model, UsageError, tag=tag)
    assert hub.requests == []


def test_the_users_catalog_knows_it_by_its_pin(
    hub: OwnHub, api: HfApi, model: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = publish(model)
    assert pushed.catalog == settings / "catalog.toml"
    entry = tomllib.loads((settings / "catalog.toml").read_text())["models"]["tiny"]
    assert entry["hosted"]["repository"] == NAME
    assert entry["hosted"]["commit"] == pushed.commit
    pulled = pull_model("tiny")
    assert pulled.commit == pushed.commit
    assert zoo(["verify", "tiny"]) == Exit.DONE
    assert "the catalog's pin" in capsys.readouterr().out
    # Another commit of that name is not what was pinned.
    weights = pulled.folder / "model.safetensors"
    weights.resolve().write_bytes(b"other")
    assert zoo(["verify", "tiny"]) == Exit.INTEGRITY


def test_a_shipped_name_keeps_what_is_known_of_it(
    hub: OwnHub, api: HfApi, tmp_path: Path, settings: Path
) -> None:
    card = Card(name="t", method="tinymim", heads=VIT_T.heads, last_trained_block=12)
    save_model(tmp_path / "t", VIT_T, build_vit(VIT_T, seed=0).state_dict(), card)
    with packed(
        str(tmp_path / "t"), Terms(repository="me/tinymim-vit-t", license="mit")
    ) as package:
        pushed = push(package, patience=FAST)
    assert pushed.notes == ()
    entry = load_catalog().find("tinymim-vit-t")
    assert entry.hosted is not None
    assert entry.hosted.commit == pushed.commit
    assert entry.headline("top1") is not None
    assert entry.recipe == "tinymim-vit-t"


def test_a_shipped_name_is_not_taken_by_another_model(
    hub: OwnHub, api: HfApi, tmp_path: Path, settings: Path
) -> None:
    before = load_catalog().models
    for name in ("dino-rn50", "mae-vit-l", "tinymim-vit-s"):
        net = make_convnet(tmp_path / name)
        with packed(str(net), Terms(repository=f"me/{name}", license="mit")) as package:
            pushed = push(package, patience=FAST)
        assert pushed.catalog is None
        assert "not noted in your catalog" in pushed.notes[0]
    assert load_catalog().models == before
    assert load_catalog().problems == {}


def test_a_name_is_not_taken_from_another_repository(
    hub: OwnHub, api: HfApi, model: Path, settings: Path
) -> None:
    publish(model)
    assert "that of me/tiny" in publish(model, name="you/tiny").notes[0]
    hosted = load_catalog().find("tiny").hosted
    assert hosted is not None
    assert hosted.repository == NAME


def test_a_catalog_that_cannot_be_written_does_not_undo_a_push(
    hub: OwnHub, api: HfApi, model: Path, settings: Path
) -> None:
    (settings / "catalog.toml").write_text("format = 99\n")
    pushed = publish(model)
    assert pushed.catalog is None
    assert "not noted in your catalog" in pushed.notes[0]
    assert api.model_info(NAME).sha == pushed.commit


def test_private_stays_private(hub: OwnHub, api: HfApi, model: Path) -> None:
    publish(model, private=True)
    assert api.model_info(NAME).private
    publish(model)  # still
    assert api.model_info(NAME).private
    publish(model, name="me/public")
    error = failure(model, UsageError, name="me/public", private=True)
    assert "everybody can see it" in error.what


def test_files_of_others_in_the_repository_stay(hub: OwnHub, api: HfApi, model: Path) -> None:
    api.create_repo(NAME)
    api.upload_file(path_or_fileobj=b"hello", path_in_repo="notes.md", repo_id=NAME)
    publish(model)
    assert "notes.md" in api.list_repo_files(NAME)


def test_a_hub_without_xet_is_no_obstacle(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    publish(model)
    assert any("xet-write-token" in path for _, path in hub.requests)
    assert posts(hub, "/objects/batch")


def test_where_xet_is_served_the_weights_go_that_way(
    hub: OwnHub, api: HfApi, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    store = tmp_path / "xet"  # the wheel has a server of its own for tests: a folder
    store.mkdir()
    until = int(time.time()) + 3600
    token = {"casUrl": f"local://{store}", "accessToken": "x", "exp": until}
    headers = {
        "X-Xet-Cas-Url": token["casUrl"],
        "X-Xet-Access-Token": "x",
        "X-Xet-Token-Expiration": str(until),
    }

    def answer(request: Request) -> Response | None:
        if "xet-write-token" not in request.url.path:
            return None
        return JSONResponse(token, headers=headers)

    hub.answer = answer
    hub.history.blobs.copy("model.safetensors", model / "model.safetensors")  # as its storage would
    pushed = publish(model)
    assert "model.safetensors" in pushed.sent
    assert posts(hub, "/objects/batch") == 0
    stored = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    assert stored > 0.5 * (model / "model.safetensors").stat().st_size
    assert pull_model(NAME).commit == pushed.commit


def test_the_verb(hub: OwnHub, api: HfApi, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(model.parent)
    assert zoo(["push", run, "--repo", NAME, "--dry-run"]) == Exit.DONE
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown
    assert "license: mit" in shown
    assert hub.requests == []
    assert zoo(["push", run, "--repo", NAME, "--tag", "first"]) == Exit.DONE
    shown = capsys.readouterr().out
    assert shown.index("model.safetensors") < shown.index("published:")
    assert f"zoo pull {NAME}@first" in shown
    assert zoo(["push", run, "--repo", NAME, "--tag", "first", "--json"]) == Exit.DONE
    record = json.loads(capsys.readouterr().out)
    assert "LICENSE" in " ".join(record["notes"])
    assert (record["tag"], record["sent"]) == ("first", [])
    assert record["files"]["config.json"]["size"] > 100
    assert zoo(["push", run, "--repo", "nonsense"]) == Exit.USAGE
    assert zoo(["push", "nowhere", "--repo", NAME]) == Exit.USAGE
    everything = capsys.readouterr()
    assert CANARY not in shown + json.dumps(record) + everything.out + everything.err
