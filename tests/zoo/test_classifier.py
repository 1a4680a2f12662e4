"""Model folders with a classifier, as timm writes and reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from models import make_model, make_timm

from zoo.errors import IntegrityError, UsageError
from zoo.folder import count_classes, load_classifier, load_model

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "token", **SMALL}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", **SMALL}),
        ("resnet18", {"channels": [8, 12, 16, 20], "layers": [1, 1, 1, 1]}),
    ],
    ids=["class token", "mean", "convnet"],
)
def test_a_classifier_is_loaded_as_timm_loads_it(
    architecture: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_timm(tmp_path / "net", architecture, num_classes=5, **arguments)
    state = torch.get_rng_state()
    model = load_classifier(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.classes == 5
    side = model.preprocess.image_size
    assert side == (32 if "img_size" in arguments else 224)
    images = torch.randn(2, 3, side, side)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model.net(images), theirs(images))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_timm(tmp_path / "net", "vit_tiny_patch16_224", num_classes=5, **SMALL)


def test_with_and_without_its_classifier(folder: Path, tmp_path: Path) -> None:
    headless = make_model(tmp_path / "headless")
    assert (count_classes(folder), count_classes(headless)) == (5, 0)
    with pytest.raises(UsageError, match="no classifier"):
        load_classifier(headless)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = load_classifier(folder).net.forward_features(images)  # type: ignore[operator]
        assert torch.equal(load_model(folder).vit.forward_features(images), tokens)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "more classes": ({"num_classes": 6, "model_args": SMALL}, "not this network's"),
    "fewer than none": ({"num_classes": -1, "model_args": SMALL}, "not a number of classes: '-1'"),
    "a word": ({"num_classes": "five", "model_args": SMALL}, "not a number of classes: 'five'"),
    "true": ({"num_classes": True, "model_args": SMALL}, "not a number of classes: 'True'"),
    "too many": ({"num_classes": 10**6, "model_args": SMALL}, "not a number of classes"),
    "not square": ({"model_args": {**SMALL, "img_size": [32, 64]}}, "not square"),
    "grey": ({"model_args": {**SMALL, "in_chans": 1}}, "in_chans"),
    "grey too": ({"pretrained_cfg": {"input_size": [1, 32, 32]}}, "not RGB"),
    "others' keys": ({"pretrained_cfg": {"colour": 1}}, "timm cannot build"),
}


@pytest.mark.parametrize(("change", "hint"), WRONG.values(), ids=WRONG.keys())
def test_wrong_configurations_are_refused(change: dict[str, Any], hint: str, folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises((IntegrityError, UsageError), match=hint) as caught:
        load_classifier(folder)
    assert str(config) in str(caught.value) or "model.safetensors" in str(caught.value)
