"""The model folder: what is written, what timm makes of it, and what is refused."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import zoo.tensors
import zoo.verify
from zoo.card import Card, read_card
from zoo.errors import IntegrityError, UsageError
from zoo.files import sha256_of
from zoo.folder import load_model, remembered_sha256, save_model, verify
from zoo.vit import Tap, ViTConfig, build_vit, taps

SMALL = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)
PARTS = ("README.md", "config.json", "model.safetensors")
SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 3,
}


def card(**changes: Any) -> Card:
    stated = Card(name="tiny", method="mae", heads=3, last_trained_block=3)
    return replace(stated, licenses={"weights": "cc-by-4.0"}, **changes)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return build_vit(SMALL, seed=0).state_dict()


@pytest.fixture
def model(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    save_model(tmp_path / "model", SMALL, weights, card())
    return tmp_path / "model"


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder as others do: a configuration and weights, no record."""

    def make(layout: object, weights: dict[str, Tensor] | None = None) -> Path:
        folder = tmp_path / "foreign"
        folder.mkdir(exist_ok=True)
        text = layout if isinstance(layout, str) else json.dumps(layout)
        (folder / "config.json").write_text(text)
        save_file(weights or build_vit(SMALL, seed=0).state_dict(), folder / "model.safetensors")
        return folder

    return make


def test_what_was_saved_is_loaded(model: Path, weights: dict[str, Tensor]) -> None:
    loaded = load_model(model)
    state = loaded.vit.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert not loaded.vit.training
    assert (loaded.config, loaded.name, loaded.license) == (SMALL, "tiny", "cc-by-4.0")
    assert loaded.card == read_card(model / "zoo.json")
    assert loaded.preprocess.image_size == 32


def test_what_the_folder_says(model: Path) -> None:
    assert sorted(file.name for file in model.iterdir()) == sorted([*PARTS, "zoo.json"])
    layout = json.loads((model / "config.json").read_bytes())
    stated = layout["model_args"]
    assert {key: stated[key] for key in SIZES} == SIZES
    assert layout["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    assert layout["pretrained_cfg"]["std"] == [0.229, 0.224, 0.225]
    assert timm.is_model(layout["architecture"])
    record = read_card(model / "zoo.json")
    assert sorted(record.files) == sorted(PARTS)
    for name, file in record.files.items():
        assert (file.sha256, file.size) == (sha256_of(model / name), (model / name).stat().st_size)
    assert record.digest == load_model(model).digest


def test_timm_gives_the_same_numbers_and_heads_are_part_of_the_model(
    tmp_path: Path, weights: dict[str, Tensor], images: Tensor
) -> None:
    features, records = {}, {}
    for heads in (3, 6):
        folder = tmp_path / f"heads{heads}"
        config = replace(SMALL, heads=heads)
        records[heads] = save_model(folder, config, weights, card(heads=heads))
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert isinstance(theirs, VisionTransformer)
        state = theirs.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
        with torch.no_grad():
            ours = load_model(folder).vit.forward_features(images)
            torch.testing.assert_close(theirs.forward_features(images), ours, rtol=0, atol=1e-6)
        features[heads] = ours
    files = {heads: record.files["model.safetensors"] for heads, record in records.items()}
    assert files[3] == files[6]
    assert records[3].digest != records[6].digest
    assert not torch.allclose(features[3], features[6], atol=1e-3)


def test_every_difference_is_named(model: Path) -> None:
    assert verify(model) == read_card(model / "zoo.json")
    flipped = bytearray((model / "model.safetensors").read_bytes())
    flipped[-5] ^= 1
    (model / "model.safetensors").write_bytes(flipped)
    (model / "README.md").unlink()
    with (model / "config.json").open("a") as file:
        file.write(" ")
    for check in (verify, load_model):
        with pytest.raises(IntegrityError) as caught:
            check(model)
        where = caught.value.where
        assert "model.safetensors has other bytes" in where
        assert "README.md is missing" in where
        assert "config.json has" in where
        assert str(model) in where


def test_a_record_cannot_point_outside(model: Path) -> None:
    record = json.loads((model / "zoo.json").read_bytes())
    record["files"]["../outside"] = {"sha256": "0" * 64, "size": 1}
    (model / "zoo.json").write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match="could leave its folder"):
        verify(model)


def test_a_verified_file_is_hashed_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(zoo.verify, "sha256_of", counted)
    verify(model)
    assert sorted(hashed) == sorted(PARTS)
    verify(model)
    load_model(model)
    assert len(hashed) == 3
    os.utime(model / "config.json", ns=(1, 1))
    verify(model)
    assert hashed[3:] == ["config.json"]


def test_a_home_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = build_vit(SMALL, seed=0).state_dict()
    save_model(tmp_path / "model", SMALL, weights, card())
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    assert load_model(tmp_path / "model").config == SMALL


def test_a_memory_that_cannot_be_read_is_no_obstacle(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zoo.verify, "user_cache_path", lambda _: tmp_path / "memory")
    path = model / "config.json"
    digest = remembered_sha256(path)
    (memory,) = (tmp_path / "memory" / "digests").iterdir()
    for nonsense in (b"", b"[]", b"{", b'{"seen": 3}', b"\xff"):
        memory.write_bytes(nonsense)
        assert remembered_sha256(path) == digest


def test_blocks_beyond_the_last_wanted_are_not_read(
    model: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Tap(2, "q"), Tap(2, "v"), Tap(1, "block")]
    whole = taps(load_model(model).vit, images, wanted)
    names: list[str] = []

    def watched(path: Path, chosen: Any, device: Any) -> dict[str, Tensor]:
        names.extend(chosen)
        return read(path, names, device)

    read = zoo.tensors.read_tensors
    monkeypatch.setattr(zoo.tensors, "read_tensors", watched)
    cut = load_model(model, blocks=2)
    assert names
    assert not [name for name in names if name.startswith(("blocks.2.", "norm."))]
    assert len(cut.vit.blocks) == 2
    assert cut.digest == load_model(model).digest
    found = taps(cut.vit, images, wanted)
    assert all(torch.equal(found[tap], whole[tap]) for tap in wanted)
    for blocks in (0, -1):
        with pytest.raises(UsageError, match="counted from 1"):
            load_model(model, blocks=blocks)


def test_another_image_size(model: Path) -> None:
    loaded = load_model(model, image_size=64)
    assert (loaded.config.image_size, loaded.preprocess.image_size) == (64, 64)
    features = loaded.vit.forward_features(torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, 65, 24)
    theirs: Any = timm.create_model(f"local-dir:{model}", pretrained=True, img_size=64)
    assert torch.equal(loaded.vit.pos_embed, theirs.pos_embed)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="patch 8 does not divide image_size 50"):
        load_model(model, image_size=50)


def test_nan_is_neither_saved_nor_loaded(
    tmp_path: Path, weights: dict[str, Tensor], foreign: Callable[..., Path]
) -> None:
    bad = {**weights, "norm.bias": torch.full((24,), torch.nan)}
    with pytest.raises(IntegrityError, match=r"1 of .* NaN") as caught:
        save_model(tmp_path / "out", SMALL, bad, card())
    assert "norm.bias" in caught.value.where
    assert not (tmp_path / "out").exists()
    layout = {"architecture": "vit_tiny_patch16_224", "model_args": SIZES}
    with pytest.raises(IntegrityError, match="NaN"):
        load_model(foreign(layout, bad))


def test_file_modes_follow_the_umask(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    earlier = os.umask(0o027)
    try:
        save_model(tmp_path / "model", SMALL, weights, card())
    finally:
        os.umask(earlier)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys([*PARTS, "zoo.json"], 0o640)


def test_a_folder_of_others_loads(foreign: Callable[..., Path], images: Tensor) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10, **SIZES).eval()
    assert isinstance(theirs, VisionTransformer)
    layout = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 10,
        "model_args": SIZES,
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "license": "mit"},
    }
    loaded = load_model(foreign(layout, theirs.state_dict()))
    assert loaded.card is None
    assert (loaded.name, loaded.license) == ("foreign", "mit")
    assert loaded.preprocess.mean == (0.5, 0.5, 0.5)
    with torch.no_grad():
        expected = theirs.forward_features(images)
        torch.testing.assert_close(loaded.vit.forward_features(images), expected)


def test_a_folder_that_only_names_its_architecture_loads(foreign: Callable[..., Path]) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    layout = {"architecture": "vit_tiny_patch16_224", "mean": [0.5, 0.5, 0.5]}  # timm's oldest
    loaded = load_model(foreign(layout, theirs.state_dict()))
    assert loaded.config == ViTConfig(width=192, depth=12, heads=3)
    assert loaded.preprocess.mean == (0.5, 0.5, 0.5)


def test_half_precision_loads_as_fp32_and_integers_do_not(
    foreign: Callable[..., Path], weights: dict[str, Tensor]
) -> None:
    layout = {"architecture": "vit_tiny_patch16_224", "model_args": SIZES}
    half = load_model(foreign(layout, {n: t.half() for n, t in weights.items()}))
    assert {p.dtype for p in half.vit.parameters()} == {torch.float32}
    with pytest.raises(IntegrityError, match="no floating-point"):
        load_model(foreign(layout, {**weights, "norm.bias": torch.ones(24, dtype=torch.int32)}))


def test_weights_of_another_network_are_refused(
    foreign: Callable[..., Path], weights: dict[str, Tensor]
) -> None:
    layout = {"architecture": "vit_tiny_patch16_224", "model_args": {**SIZES, "depth": 4}}
    with pytest.raises(IntegrityError, match="42 of 54 tensors match") as caught:
        load_model(foreign(layout, weights))
    assert "missing (12): blocks.3." in caught.value.where
    folder = foreign(layout, weights)
    (folder / "model.safetensors").unlink()
    with pytest.raises(IntegrityError) as caught:
        load_model(folder)
    assert "model.safetensors" in caught.value.where


def _args(**changes: object) -> dict:
    return {"architecture": "vit_tiny_patch16_224", "model_args": {**SIZES, **changes}}


def _pretrained(**stated: object) -> dict:
    return {**_args(), "pretrained_cfg": stated}


HOSTILE = {
    "empty": "",
    "html": "<!DOCTYPE html>",
    "list": [],
    "null": "null",
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "huge": '{"architecture": "' + "a" * 1_100_000 + '"}',
    "no architecture": {},
    "architecture a number": {"architecture": 3},
    "unknown": {"architecture": "vit_enormous_patch16_224"},
    "unknown and long": {"architecture": "vit_" + "a" * 10_000},
    "path": {"architecture": "vit_tiny_patch16_224/../../etc"},
    "hub": {"architecture": "hf-hub:evil/model"},
    "no ViT": {"architecture": "resnet18"},
    "ViT of another kind": {"architecture": "vit_relpos_small_patch16_224"},
    "register tokens": {"architecture": "vit_small_patch14_reg4_dinov2"},
    "rope": {"architecture": "vit_small_patch16_rope_224"},
    "args a list": {"architecture": "vit_tiny_patch16_224", "model_args": [1]},
    "nested": _args(norm_layer={"a": 1}),
    "unknown argument": _args(block_fn="os.system"),
    "checkpoint_path": _args(checkpoint_path="/etc/passwd"),
    "depth a text": _args(depth="3"),
    "depth true": _args(depth=True),
    "depth 10^9": _args(depth=10**9),
    "width 10^9": _args(embed_dim=10**9),
    "width 10^400": json.dumps(_args(embed_dim=7)).replace("7", "1" + "0" * 400),
    "size 10^9": _args(img_size=10**9),
    "mlp 10^9": _args(mlp_ratio=1e9),
    "mlp NaN": _args(mlp_ratio=float("nan")),
    "depth 0": _args(depth=0),
    "heads 0": _args(num_heads=0),
    "heads 5": _args(num_heads=5),
    "patch over image": _args(patch_size=64),
    "two means": _pretrained(mean=[0.5, 0.5]),
    "mean a text": _pretrained(mean="abc"),
    "mean NaN": _pretrained(mean=[float("nan")] * 3),
    "std 0": _pretrained(std=[0, 0, 0]),
    "crop a text": _pretrained(crop_pct="all"),
    "crop 7": _pretrained(crop_pct=7),
    "licence a list": _pretrained(license=["mit"]),
    "pretrained a list": {**_args(), "pretrained_cfg": [1]},
}


@pytest.mark.parametrize("layout", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_configurations_are_refused(foreign: Callable[..., Path], layout: object) -> None:
    folder = foreign(layout)
    with pytest.raises((UsageError, IntegrityError)) as caught:
        load_model(folder)
    assert caught.value.where
    assert caught.value.fix
    assert len(str(caught.value)) < 2000


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    key=st.sampled_from([*SIZES, "global_pool", "fc_norm", "class_token", "mlp_ratio", "other"]),
    value=_JSON,
    where=st.sampled_from(["model_args", "pretrained_cfg", "architecture"]),
)
def test_any_configuration_loads_or_is_refused(
    foreign: Callable[..., Path], key: str, value: object, where: str
) -> None:
    layout: dict[str, Any] = _args()
    layout[where] = {**SIZES, key: value} if where == "model_args" else value
    with contextlib.suppress(UsageError, IntegrityError):
        load_model(foreign(layout))
