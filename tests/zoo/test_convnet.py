"""Convnets in model folders: read at a stage, loaded as strictly as a ViT."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from models import CONVNET, make_convnet, make_model
from safetensors.torch import load_file, save_file

from zoo import load
from zoo.card import Card
from zoo.convnet import (
    ConvnetConfig,
    build_convnet,
    empty_convnet,
    read_stage,
    require_grid,
    stage_at,
    stages,
)
from zoo.errors import IntegrityError, UsageError, ZooError
from zoo.folder import holds_convnet, load_convnet, load_model, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_convnet(tmp_path_factory.mktemp("models") / "convnet")


def test_timm_and_we_read_the_same(folder: Path) -> None:
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = load_convnet(folder)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.forward_features(images)  # type: ignore[operator]
        torch.testing.assert_close(read_stage(ours.net, images, ours.stage), expected)
    assert (ours.stage.stride, ours.stage.channels) == (32, 20)
    assert ours.preprocess.image_size == 32
    assert not ours.net.training
    assert holds_convnet(folder)
    assert not holds_convnet(make_model(folder.parent / "vit"))


@pytest.mark.parametrize(("stride", "channels", "side"), [(2, 64, 32), (4, 8, 16), (16, 16, 4)])
def test_it_is_cut_after_the_stage(folder: Path, stride: int, channels: int, side: int) -> None:
    model = load_convnet(folder, stride=stride, image_size=64)
    assert read_stage(model.net, torch.randn(1, 3, 64, 64), model.stage).shape[1:] == (
        channels,
        side,
        side,
    )
    left = {name.partition(".")[0] for name, _ in model.net.named_parameters()}
    layers = {f"layer{n}" for n in (1, 2, 3, 4) if 2 ** (n + 1) <= stride}
    assert left == {"conv1", "bn1"} | layers


def test_the_card_says_how_far_it_was_trained(tmp_path: Path) -> None:
    folder = make_convnet(tmp_path / "half", stride=16)
    assert load_convnet(folder).stage.stride == 16
    assert load_convnet(folder, stride=8).stage.stride == 8
    assert "stage of stride 16" not in (folder / "README.md").read_text()  # nothing left fresh


def test_zoo_load_gives_either_kind(folder: Path) -> None:
    net = load(str(folder))
    assert type(net).__name__ == "ResNet"
    assert not net.training
    assert type(load(str(make_model(folder.parent / "another")))).__name__ == "VisionTransformer"


def test_half_precision_weights_and_whole_counters(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    half = {n: t.half() if t.is_floating_point() else t + 3 for n, t in weights.items()}
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(half, tmp_path / "model.safetensors")
    model = load_convnet(tmp_path)
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}
    assert model.net.get_buffer("bn1.num_batches_tracked").tolist() == 3
    assert model.card is None


def test_a_classifier_is_left_out(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(weights | {"fc.weight": torch.zeros(9, 20)}, tmp_path / "model.safetensors")
    assert load_convnet(tmp_path).stage.channels == 20


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "nan"])
def test_weights_of_another_network_are_refused(folder: Path, tmp_path: Path, change: str) -> None:
    weights = load_file(folder / "model.safetensors")
    if change == "missing":
        del weights["layer4.0.bn1.running_var"]
    elif change == "extra":
        weights["layer9.weight"] = torch.zeros(1)
    elif change == "shape":
        weights["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 4)
    else:
        weights["layer1.0.bn1.running_mean"][3] = torch.nan
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(IntegrityError) as caught:
        load_convnet(tmp_path, stride=16 if change == "missing" else None)  # cut or not
    assert "layer" in caught.value.where


def test_each_kind_is_refused_where_the_other_is_wanted(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a plain ViT"):
        load_model(folder)
    with pytest.raises(UsageError, match="not a convnet"):
        load_convnet(make_model(tmp_path / "vit"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", "os_system"),
        ("architecture", "../resnet18"),
        ("architecture", "hf-hub:evil/model"),
        ("architecture", "local-dir:/tmp/another"),
        ("model_args", {"channels": [8, 8, 8, 10**9]}),
        ("model_args", {"channels": [8] * 99}),
        ("model_args", {"layers": "many"}),
        ("model_args", {"layers": [1, 1]}),
        ("model_args", {"block_args": {"x": 1}}),
    ],
)
def test_a_hostile_configuration_builds_nothing(
    folder: Path, tmp_path: Path, key: str, value: object
) -> None:
    layout = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(layout | {key: value}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ZooError) as caught:
        load_convnet(tmp_path)
    assert caught.value.code in (2, 4)


@pytest.mark.parametrize("name", ["", "no_such_net", "vit_tiny_patch16_224"])
def test_a_configuration_names_a_convnet_of_timms(name: str) -> None:
    with pytest.raises(UsageError, match="timm has no convnet"):
        ConvnetConfig(architecture=name)


@pytest.mark.parametrize("name", ["resnet50", "convnext_atto", "regnetx_002", "densenet121"])
def test_many_of_timms_convnets_can_be_read(name: str) -> None:
    net = empty_convnet(name, {})
    assert stages(net)[-1].stride == 32
    stage = stage_at(net, 16)
    found = read_stage(net, torch.empty(1, 3, 64, 64, device="meta"), stage)
    assert found.shape == (1, stage.channels, 4, 4)


def test_dinos_resnet_has_318_entries() -> None:
    assert len(empty_convnet("resnet50", {}).state_dict()) == 318


def test_sizes_that_no_cell_tiles_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="cells of 32 px do not tile") as caught:
        load_convnet(folder, image_size=80)
    assert "64 or 96" in caught.value.fix
    assert CONVNET.arguments == {"channels": [8, 12, 16, 20], "layers": [1, 1, 1, 1]}


@pytest.mark.parametrize("name", ["resnetblur18", "convnext_atto", "efficientnet_b0", "resnet18"])
def test_features_are_timms_to_the_last_digits(name: str, tmp_path: Path) -> None:
    """Some networks keep tables that no weight file holds: they must not be left out."""
    config = ConvnetConfig(architecture=name, image_size=64)
    net: Any = build_convnet(name, {}, seed=1).eval()
    card = Card(name=name, method="none", heads=None, last_trained_block=None)
    save_model(tmp_path / name, config, net.state_dict(), card)
    images = torch.randn(2, 3, 64, 64)
    model = load_convnet(tmp_path / name)
    with torch.no_grad():
        (expected,) = net.forward_intermediates(images, indices=1, intermediates_only=True)
        found = read_stage(model.net, images, model.stage)
    torch.testing.assert_close(found, expected)
    tensors = [*model.net.parameters(), *model.net.buffers()]
    assert not [t for t in tensors if t.is_meta]


def test_a_network_of_one_size_says_so(tmp_path: Path) -> None:
    net = empty_convnet("swin_tiny_patch4_window7_224", {})
    with pytest.raises(UsageError, match="do not tile an image of 96 px") as caught:
        require_grid(net, stage_at(net, 32), 96)
    assert "own image size" in caught.value.fix
    assert require_grid(net, stage_at(net, 32), 224) == 7
    shrunk = empty_convnet("inception_v3", {})
    with pytest.raises(UsageError, match="224 px") as caught:
        require_grid(shrunk, stage_at(shrunk, 32), 224)
    assert "5 cells a side" in caught.value.fix


@pytest.mark.parametrize("size", [0, -3, 10**9])
def test_a_size_that_no_image_has_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="no convnet takes images"):
        ConvnetConfig(architecture="resnet18", image_size=size)


def test_a_deit_is_a_vit(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "deit")
    layout = json.loads((folder / "config.json").read_text())
    (folder / "zoo.json").unlink()
    for name, fits in (("deit_tiny_patch16_224", True), ("deit_tiny_distilled_patch16_224", False)):
        (folder / "config.json").write_text(json.dumps(layout | {"architecture": name}))
        assert not holds_convnet(folder)
        if fits:
            assert load_model(folder).config.width == 48
        else:
            with pytest.raises(UsageError, match="not a plain ViT"):
                load_model(folder)
