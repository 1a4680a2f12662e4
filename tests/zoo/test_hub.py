"""From a name to a folder: the real Hub client, a Hub on loopback."""

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from fakehub import FakeHub, point_client_at, serve
from models import make_convnet

import zoo
from pretrain.teachers.tokens import open_tokens
from zoo.card import Card
from zoo.catalog import add_to_user_catalog
from zoo.entry import parse_entry
from zoo.errors import DiskError, IntegrityError, NetworkError, UsageError
from zoo.files import sha256_of
from zoo.folder import load_model, save_model
from zoo.hub import locate
from zoo.vit import ViTConfig, build_vit

SMALL = ViTConfig(width=24, depth=2, heads=3, patch=8, image_size=32)
CARD = Card(name="tiny", method="mae", heads=3, last_trained_block=2, relation_heads=6)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with serve() as hub:
        point_client_at(monkeypatch, hub.endpoint, tmp_path / "cache")
        monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between retries
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A model folder with its record."""
    save_model(tmp_path / "ours", SMALL, build_vit(SMALL, seed=0).state_dict(), CARD)
    return tmp_path / "ours"


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The same model, trained on."""
    save_model(tmp_path / "newer", SMALL, build_vit(SMALL, seed=1).state_dict(), CARD)
    return tmp_path / "newer"


@pytest.fixture
def foreign(ours: Path) -> Path:
    """The same without a record."""
    (ours / "zoo.json").unlink()
    return ours


def names(hub: FakeHub, method: str) -> list[str]:
    """Of files that were asked for."""
    files = [path for verb, path in hub.requests if verb == method and "/resolve/" in path]
    return [path.rpartition("/")[2] for path in files]


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_folder_is_itself(ours: Path, hub: FakeHub) -> None:
    assert locate(str(ours)) == ours
    assert not hub.requests


def test_our_own_model_is_pulled_verified_and_loaded(hub: FakeHub, ours: Path) -> None:
    hub.add_folder("org/tiny", ours)
    folder = locate("hf-hub:org/tiny")
    pulled, there = load_model(folder), load_model(ours)
    assert pulled.card == there.card
    assert pulled.card is not None
    assert pulled.card.relation_heads == 6
    assert pulled.digest == there.digest
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(pulled.vit(images), there.vit(images))
    assert torch.equal(zoo.load("org/tiny")(images), there.vit(images))


def test_wrong_bytes_of_the_right_size_are_found(hub: FakeHub, ours: Path) -> None:
    hub.add_folder("org/tiny", ours)
    weights = hub.repositories["org/tiny"]["model.safetensors"]
    hub.repositories["org/tiny"]["model.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
    with pytest.raises(IntegrityError) as caught:
        load_model(locate("org/tiny"))
    assert "model.safetensors has other bytes" in caught.value.where


@pytest.mark.parametrize("name", ["hf-hub:org/name", "org/name", "org/name@main"])
def test_spellings_of_a_name(hub: FakeHub, foreign: Path, name: str) -> None:
    hub.add_folder("org/name", foreign)
    folder = locate(name)
    assert (folder / "config.json").read_bytes() == (foreign / "config.json").read_bytes()
    assert load_model(folder).card is None
    assert not (folder / "README.md").exists()


def test_a_timm_name_is_looked_up(hub: FakeHub, foreign: Path) -> None:
    hub.add_folder("timm/vit_base_patch16_224.mae", foreign)
    assert load_model(locate("vit_base_patch16_224.mae")).config == SMALL
    with pytest.raises(UsageError, match="no model of this name"):
        locate("vit_base_patch16_224.nosuchtag")


def test_a_convnet_by_its_timm_name_teaches(hub: FakeHub, tmp_path: Path) -> None:
    convnet = make_convnet(tmp_path / "convnet")
    (convnet / "zoo.json").unlink()
    hub.add_folder("timm/resnet18.a1_in1k", convnet)
    teacher = open_tokens("resnet18.a1_in1k", stride=16, image_size=48)
    assert teacher(torch.rand(2, 3, 48, 48)).shape == (2, 9, 16)
    assert teacher.record is not None
    assert teacher.record.stride == 16


def test_what_the_catalog_pins_holds(hub: FakeHub, ours: Path, settings: Path) -> None:
    hub.add_folder("org/tiny", ours)
    commit = hub.commit("org/tiny")
    right, wrong = sha256_of(ours / "model.safetensors"), "0" * 64
    table = {
        "title": "A model",
        "method": "mae",
        "paper": "none",
        "vit": {"width": 24, "depth": 2, "heads": 3, "patch": 8, "image_size": 32},
        "parameters": 1,
        "licenses": {"code": "Apache-2.0"},
    }
    for name, sha256 in (("right", right), ("wrong", wrong)):
        pin = {"commit": commit, "files": {"model.safetensors": {"sha256": sha256}}}
        hosted = {"repository": "org/tiny", **pin}
        add_to_user_catalog(parse_entry(name, {**table, "hosted": hosted}))
    with pytest.raises(IntegrityError, match=r"pin|sha256|digest"):
        locate("wrong")
    assert load_model(locate("right")).card is not None
    assert zoo.load("right@main").num_classes == 0
    assert (settings / "catalog.toml").is_file()


def test_a_commit_can_be_named(hub: FakeHub, ours: Path, newer: Path) -> None:
    hub.add_folder("org/tiny", ours)
    first, digest = hub.commit("org/tiny"), load_model(locate("org/tiny")).digest
    hub.add_folder("org/tiny", newer)
    assert load_model(locate("org/tiny")).digest != digest
    assert load_model(locate(f"org/tiny@{first}")).digest == digest


def test_all_files_are_of_one_commit_though_the_branch_moves(
    hub: FakeHub, ours: Path, newer: Path
) -> None:
    hub.add_folder("org/tiny", ours)
    digest = load_model(ours).digest

    def move(path: str) -> None:
        if path.endswith("config.json"):
            hub.add_folder("org/tiny", newer)

    hub.after = move
    assert load_model(locate("org/tiny")).digest == digest


def test_the_second_time_nothing_is_fetched(
    hub: FakeHub, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_folder("org/tiny", ours)
    folder = locate("org/tiny")
    fetched = names(hub, "GET")
    assert sorted(fetched) == ["README.md", "config.json", "model.safetensors", "zoo.json"]
    assert locate("org/tiny") == folder
    assert names(hub, "GET") == fetched
    hub.requests.clear()
    go_offline(monkeypatch)
    assert locate("org/tiny") == folder
    assert load_model(folder).card is not None
    assert not hub.requests


def test_a_foreign_model_works_offline_once_it_is_here(
    hub: FakeHub, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_folder("org/name", foreign)
    folder = locate("org/name")
    go_offline(monkeypatch)
    assert locate("org/name") == folder


def test_offline_and_not_here(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch)
    with pytest.raises(NetworkError, match="not in the cache") as caught:
        locate("org/name")
    assert caught.value.code == 5
    assert "online" in caught.value.fix
    assert not hub.requests


@pytest.mark.parametrize("name", ["org/nothing", "hf-hub:org/nothing", "hf-hub:org/a--b/c"])
def test_a_missing_repository(hub: FakeHub, name: str) -> None:
    with pytest.raises(UsageError, match="the Hub has no model"):
        locate(name)


def test_a_missing_revision(hub: FakeHub, foreign: Path) -> None:
    hub.add_folder("org/name", foreign)
    with pytest.raises(UsageError, match="the Hub has no model 'org/name@nosuch'"):
        locate("org/name@nosuch")


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_no_safetensors(hub: FakeHub, foreign: Path, missing: str) -> None:
    hub.add_folder("org/name", foreign)
    data = hub.repositories["org/name"].pop(missing)
    hub.repositories["org/name"]["pytorch_model.bin"] = data
    with pytest.raises(UsageError, match="no safetensors weights"):
        locate("org/name")
    assert "pytorch_model.bin" not in names(hub, "GET")


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails(hub: FakeHub, foreign: Path, status: int) -> None:
    hub.add_folder("org/name", foreign)
    hub.status["GET"] = status
    with pytest.raises(NetworkError) as caught:
        locate("org/name")
    assert caught.value.fix
    hub.status.clear()
    assert load_model(locate("org/name")).config == SMALL


def test_a_connection_that_breaks(hub: FakeHub, foreign: Path) -> None:
    hub.add_folder("org/name", foreign)
    hub.cut = 100
    with pytest.raises(NetworkError, match="did not deliver"):
        locate("org/name")
    hub.cut = None
    assert load_model(locate("org/name")).config == SMALL


def test_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve() as hub:
        pass
    point_client_at(monkeypatch, hub.endpoint, tmp_path / "cache")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(NetworkError, match="cannot be reached"):
        locate("org/name")


def test_no_space_for_the_cache(
    hub: FakeHub, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.add_folder("org/name", foreign)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskError, match="no space left"):
        locate("org/name")


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "run.py", "weights.bin"])
def test_a_record_names_data_inside_the_folder_only(hub: FakeHub, ours: Path, name: str) -> None:
    hub.add_folder("org/evil", ours)
    record = json.loads(hub.repositories["org/evil"]["zoo.json"])
    record["files"][name] = {"sha256": "0" * 64, "size": 1}
    hub.repositories["org/evil"]["zoo.json"] = json.dumps(record).encode()
    hub.repositories["org/evil"][name] = b"x"
    with pytest.raises(IntegrityError):
        locate("org/evil")
    assert set(names(hub, "GET")) <= {"config.json", "zoo.json"}


@pytest.mark.parametrize(
    "name", ["./nowhere", "runs/x/export", "models/dino-rn50", "a/b/c", "resnet", "", "~/nowhere"]
)
def test_what_is_no_name(hub: FakeHub, name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        locate(name)
    assert not hub.requests


def test_a_folder_that_holds_no_model(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        locate(str(tmp_path))
    assert not hub.requests
