"""``zoo.load``, ``zoo.transform``, ``zoo.features``: what a user's own script calls."""

import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_convnet
from PIL import Image

import zoo
from eval.crops import images_of
from eval.probe import extract
from pretrain.index import ImageIndex, open_index
from pretrain.teachers.convnet import convnet_tokens
from zoo.card import Card
from zoo.errors import DataError, UsageError
from zoo.folder import load_convnet, load_model, save_model
from zoo.images import decode, normalise, read_image
from zoo.vit import Tap, ViTConfig, build_vit, taps

CONFIG = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained up to its second block of three, says its card."""
    folder = tmp_path_factory.mktemp("models") / "vit"
    card = Card(name="vit", method="none", heads=3, last_trained_block=2)
    save_model(folder, CONFIG, build_vit(CONFIG, seed=3).state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_convnet(tmp_path_factory.mktemp("models") / "convnet", stride=16)


@pytest.fixture(scope="module")
def index(photos: Path) -> ImageIndex:
    return open_index(photos)


@pytest.fixture(scope="module")
def paths(index: ImageIndex) -> list[Path]:
    return [index.path(i) for i in range(len(index))]


def test_a_transform_is_that_of_evaluation_to_the_bit(
    vit: Path, index: ImageIndex, paths: list[Path]
) -> None:
    transform, model = zoo.transform(vit), load_model(vit)
    assert transform.preprocess == model.preprocess
    expected = torch.cat(
        [
            normalise(batch / 255, model.preprocess.mean, model.preprocess.std)
            for batch in images_of(index, model.preprocess)
        ]
    )
    assert (expected.shape, expected.dtype) == ((len(paths), 3, 32, 32), torch.float32)
    again = pickle.loads(pickle.dumps(transform))  # to a loader's workers
    for path, wanted in zip(paths[:6], expected, strict=False):
        with Image.open(path) as image:
            given = [path, str(path), image, np.asarray(image), read_image(path)]
            given.append(np.asarray(image.convert("RGB"))[:, ::-1][:, ::-1])
            for one in given:
                assert torch.equal(transform(one), wanted)
        assert torch.equal(again(path), wanted)


def test_a_transform_is_the_cards(vit: Path, tmp_path: Path) -> None:
    layout = json.loads((vit / "config.json").read_bytes())
    layout["pretrained_cfg"] |= {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}
    layout["pretrained_cfg"]["input_size"] = [3, 999, 999]  # the network's own size decides
    (tmp_path / "config.json").write_text(json.dumps(layout))
    (tmp_path / "model.safetensors").write_bytes((vit / "model.safetensors").read_bytes())
    transform = zoo.transform(str(tmp_path))
    assert transform.preprocess == load_model(tmp_path).preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    wanted = (torch.from_numpy(pixels[:, 8:40]).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(transform(pixels), wanted)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "I;16", "1", "CMYK"])
def test_pillows_modes_are_those_of_the_file(mode: str, vit: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 65536, (40, 52), dtype=np.uint16)
    image = Image.fromarray(grey)
    if mode != "I;16":
        image = Image.fromarray((grey >> 8).astype(np.uint8)).convert(mode)
    assert image.mode == mode
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(file)
    transform = zoo.transform(vit)
    with Image.open(file) as opened:
        assert torch.equal(transform(opened), transform(decode(file.read_bytes(), "x")))


def test_a_convnets_transform(convnet: Path) -> None:
    assert zoo.transform(convnet).preprocess == load_convnet(convnet).preprocess


NO_PICTURES: dict[str, Any] = {
    "grey array": np.zeros((9, 9), np.uint8),
    "floats": np.zeros((9, 9, 3), np.float32),
    "RGBA array": np.zeros((9, 9, 4), np.uint8),
    "channels first": np.zeros((3, 9, 9), np.uint8),
    "no pixels": np.zeros((0, 9, 3), np.uint8),
    "a tensor": torch.zeros(3, 9, 9),
    "bytes": b"\xff\xd8",
}


@pytest.mark.parametrize("given", NO_PICTURES.values(), ids=NO_PICTURES.keys())
def test_what_is_no_image_is_refused(given: Any, vit: Path) -> None:
    with pytest.raises(UsageError, match="no image") as caught:
        zoo.transform(vit)(given)
    assert "(H, W, 3)" in caught.value.fix


def test_bad_images_are_errors_of_the_data(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    transform = zoo.transform(vit)
    strip = np.zeros((1, 300, 3), np.uint8)
    for given in (tmp_path / "bad.jpg", tmp_path / "none.jpg", Image.fromarray(strip), strip):
        with pytest.raises(DataError):
            transform(given)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_features_are_those_of_evaluation_to_the_bit(
    pooling: Any, vit: Path, index: ImageIndex, paths: list[Path]
) -> None:
    expected = extract(load_model(vit), index, pooling=pooling, device=CPU, batch=7, workers=0)
    assert expected.shape == (len(paths), 24)
    assert torch.equal(zoo.features(vit, paths, pooling=pooling, batch=7), expected)
    assert torch.equal(zoo.features(load_model(vit), paths, pooling=pooling, batch=7), expected)


def test_tokens_are_read_after_the_last_trained_block(vit: Path, paths: list[Path]) -> None:
    transform, model = zoo.transform(vit), load_model(vit)
    inputs = torch.stack([transform(path) for path in paths[:5]])
    last = Tap(2, "block")
    with torch.no_grad():
        expected = model.vit.norm(taps(model.vit, inputs, [last])[last])
    tokens = zoo.features(model, inputs, pooling="tokens")
    assert tokens.shape == (5, 17, 24)
    assert torch.equal(tokens, expected)
    assert not torch.allclose(tokens, zoo.load(vit).forward_features(inputs), atol=0.01)  # type: ignore[operator]
    assert torch.equal(zoo.features(vit, paths[:5], pooling="tokens"), expected)
    assert torch.equal(zoo.features(model, inputs), tokens[:, 1:].mean(1))
    assert torch.equal(zoo.features(model, inputs, pooling="cls"), tokens[:, 0])
    torch.testing.assert_close(zoo.features(model, inputs.double(), batch=2), tokens[:, 1:].mean(1))


def test_features_of_a_convnet(convnet: Path, index: ImageIndex, paths: list[Path]) -> None:
    teacher = convnet_tokens(convnet, stride=None, image_size=None, precision="fp32", device=CPU)
    expected = extract(teacher, index, pooling="mean", device=CPU, batch=64, workers=0)
    assert torch.equal(zoo.features(str(convnet), paths), expected)
    inputs = torch.stack([zoo.transform(convnet)(path) for path in paths])
    tokens = zoo.features(convnet, inputs, pooling="tokens")
    assert tokens.shape == (len(paths), 4, 16)  # stride 16 of 32 px: the card's, not the last
    assert torch.equal(tokens.mean(1), expected)
    maps = load_convnet(convnet).net.forward_intermediates(  # type: ignore[operator]
        inputs, indices=[3], intermediates_only=True
    )[0]
    torch.testing.assert_close(tokens, maps.flatten(2).transpose(1, 2).detach())
    assert zoo.features(convnet, torch.rand(2, 3, 64, 64), pooling="tokens").shape == (2, 16, 16)
    with pytest.raises(UsageError, match="no class token"):
        zoo.features(convnet, paths, pooling="cls")


def test_a_head_can_be_trained_on_features(vit: Path, paths: list[Path]) -> None:
    features = zoo.features(vit, paths[:4])
    assert (features.requires_grad, features.is_inference()) == (False, False)
    head = torch.nn.Linear(24, 3)
    head(features).square().sum().backward()
    assert head.weight.grad is not None


WRONG_CALLS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bytes": (lambda vit: zoo.features(vit, torch.zeros(1, 3, 32, 32).byte()), "uint8 tensor"),
    "size": (lambda vit: zoo.features(vit, torch.zeros(1, 3, 48, 48)), r"\(1, 3, 48, 48\)"),
    "not a batch": (lambda vit: zoo.features(vit, torch.zeros(3, 32, 32)), r"\(3, 32, 32\)"),
    "last": (lambda vit: zoo.features(vit, torch.zeros(1, 32, 32, 3)), "not a batch"),
    "empty batch": (lambda vit: zoo.features(vit, torch.zeros(0, 3, 32, 32)), "not a batch"),
    "empty": (lambda vit: zoo.features(vit, []), "no images"),
    "a path": (lambda vit: zoo.features(vit, "x.jpg"), "one str, where a list"),
    "an array": (lambda vit: zoo.features(vit, np.zeros((9, 9, 3))), "one ndarray"),  # type: ignore[arg-type]
    "pooling": (lambda vit: zoo.features(vit, ["x"], pooling="max"), "no pooling 'max'"),  # type: ignore[arg-type]
    "batch": (lambda vit: zoo.features(vit, ["x"], batch=0), "a batch of 0"),
    "cut": (lambda vit: zoo.features(load_model(vit, blocks=1), ["x"]), "loaded up to block 1"),
    "no model": (lambda vit: zoo.features(vit / "none", ["x"]), "no model of this name"),
    "no model's transform": (lambda vit: zoo.transform("none-such"), "no model of this name"),
}


@pytest.mark.parametrize(("call", "hint"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_wrong_calls(call: Callable[[Path], Any], hint: str, vit: Path) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        call(vit)
    assert caught.value.fix


def test_convnets_take_what_their_cells_tile(convnet: Path) -> None:
    for shape in ((1, 3, 40, 40), (1, 3, 32, 64)):
        with pytest.raises(UsageError, match="not a batch of this network's inputs"):
            zoo.features(convnet, torch.zeros(shape))


def test_all_that_is_public_is_documented() -> None:
    for name in ("load", "transform", "features"):
        call = getattr(zoo, name)
        assert inspect.isfunction(call)  # no module of this name hides it
        assert "Raises" in (call.__doc__ or "")
        assert all(
            p.annotation is not inspect.Parameter.empty
            for p in inspect.signature(call).parameters.values()
        )


def test_a_network_alone_is_no_model(vit: Path) -> None:
    with pytest.raises(UsageError, match="a network alone") as caught:
        zoo.features(zoo.load(vit), torch.zeros(1, 3, 32, 32))  # type: ignore[arg-type]
    assert "load_model" in caught.value.fix
