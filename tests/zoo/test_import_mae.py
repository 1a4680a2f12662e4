"""``zoo import`` of MAE's and TinyMIM's files: told apart by content, with upstream's numbers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from imports import found_in, imported, own_folder  # noqa: F401
from maefiles import WRONG, Weights, decoder, encoder, plain_tokens, student, training
from safetensors.torch import load_file
from torch import Tensor

import zoo
from pretrain.distillation import relation_logits
from pretrain.teachers.vit import ViTTeacher
from zoo.card import read_card
from zoo.errors import IntegrityError
from zoo.folder import load_model
from zoo.foreign.formats import EXPECTED, FORMATS, recognise
from zoo.foreign.found import Found
from zoo.foreign.importer import import_file
from zoo.vit import (
    VIT_B,
    VIT_H,
    VIT_L,
    VIT_S,
    VIT_T,
    Tap,
    ViTConfig,
    empty_vit,
    sincos_positions,
    taps,
)

pytestmark = pytest.mark.usefixtures("own_folder")

TINY = replace(VIT_T, heads=6)
TEACHERS = {"model": "tinymim_vit_tiny_patch16", "teacher_model": "mae_vit_base"}


@pytest.fixture(scope="module")
def tiny() -> Weights:
    return student(TINY)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Those for which TinyMIM's own code was measured."""
    pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    return torch.from_numpy(pixels)


def through_timm(folder: Path, images: Tensor) -> Tensor:
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return net.forward_features(images)  # type: ignore[operator]


def test_a_mae_gives_the_numbers_of_its_source(images: Tensor) -> None:
    weights = {name: tensor.half() for name, tensor in encoder(VIT_B).items()}
    result = imported(training(weights | decoder(768), model="mae_vit_base_patch16"))
    assert result.format == (
        "MAE ViT (768 × 12, 12 heads, patch 16), with decoder: its 32 tensors are left out"
    )
    assert "its 32 tensors are left out: 150 tensors, 85.8 M numbers" in result.text()
    stored = load_file(result.folder / "model.safetensors")
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name].float()) for name in weights)
    single = {name: tensor.float() for name, tensor in weights.items()}
    expected = plain_tokens(single, images[:1], heads=12, blocks=12)
    torch.testing.assert_close(
        through_timm(result.folder, images[:1]), expected, rtol=1e-5, atol=1e-5
    )
    features = zoo.features(result.folder, images[:1], pooling="cls")
    torch.testing.assert_close(features, expected[:, 0], rtol=1e-5, atol=1e-5)
    card = read_card(result.folder / "zoo.json")
    assert (card.method, card.heads, card.last_trained_block) == ("mae", 12, 12)
    assert (card.relation_heads, card.fresh_parameters) == (None, [])
    assert "CC-BY-NC-4.0" in card.licenses["weights"]
    assert card.source.keys() == {"file", "sha256", "format", "heads", "norm"}


def test_a_student_gives_the_numbers_of_upstream(tiny: Weights, images: Tensor) -> None:
    path = "/home/someone/mae_pretrain_vit_base.pth"
    result = imported(training(tiny, **TEACHERS, teacher_path=path), "tiny")
    stored = load_file(result.folder / "model.safetensors")
    zeroed = {f"blocks.11.{p}.{k}" for p in ("attn.proj", "mlp.fc2") for k in ("weight", "bias")}
    assert {name for name in tiny if not torch.equal(stored[name], tiny[name])} == {
        name for name in zeroed if name.endswith("weight")
    }
    assert not any(stored[name].any() for name in zeroed)

    expected = plain_tokens(tiny, images, heads=6, blocks=11)
    torch.testing.assert_close(through_timm(result.folder, images), expected, rtol=1e-5, atol=1e-5)
    model = load_model(result.folder)
    assert (model.config, model.last_trained_block) == (TINY, 11)
    for pooling, wanted in (("cls", expected[:, 0]), ("mean", expected[:, 1:].mean(1))):
        found = zoo.features(model, images, pooling=pooling)  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

    # What TinyMIM's unmodified code gives for these weights: the relations of its last block.
    places = (Tap(12, "q"), Tap(12, "k"), Tap(12, "v"))
    held = taps(model.vit, images, places)
    q, k, v = (held[place] for place in places)
    squares = [relation_logits(p, 12).softmax(-1).square().sum().item() for p in ((q, k), (v, v))]
    assert squares == pytest.approx([30.82492608, 34.44427484], rel=1e-5)
    assert (
        ViTTeacher(source=str(result.folder)).load(VIT_T, torch.device("cpu")).relation_heads == 12
    )


def test_what_the_card_of_a_student_says(tiny: Weights, tmp_path: Path) -> None:
    path = "/home/someone/mae_pretrain_vit_base.pth"
    result = imported(training(tiny, **TEACHERS, teacher_path=path), "tiny")
    card = read_card(result.folder / "zoo.json")
    assert (card.method, card.heads, card.relation_heads) == ("tinymim", 6, 12)
    assert card.last_trained_block == 11
    assert len(card.fresh_parameters) == 10
    assert sum(tiny[name].numel() for name in card.fresh_parameters) == 333_696
    assert card.source["teacher"] == (
        "mae_vit_base, block 12, weights mae_pretrain_vit_base.pth (by the options in the file)"
    )
    assert card.source["heads"].startswith("6 in blocks 1 … 11 and 12 in the relations of block 12")
    assert "takes 3 in every block" in card.source["heads"]
    assert "never trained" in card.source["norm"]
    assert "all rights reserved" in card.licenses["weights"]
    assert card.licenses["teacher"].startswith("CC-BY-NC-4.0")
    page = (result.folder / "README.md").read_text()
    assert f"- teacher: {card.source['teacher']}" in page
    assert "exact identity" in page
    for file in result.folder.iterdir():
        assert b"someone" not in file.read_bytes()
        assert str(tmp_path).encode() not in file.read_bytes()


def test_an_initial_last_block_is_enough_to_tell_a_student(tiny: Weights) -> None:
    first = imported(training(tiny, **TEACHERS))
    bare = imported({"model": tiny}, "bare")
    assert bare.digest == first.digest
    assert read_card(bare.folder / "zoo.json").source["teacher"] == "not stated"
    assert imported({"model": tiny}, "bare").new is False


@pytest.mark.parametrize(
    "options",
    [{"teacher_model": 3}, {"teacher_model": "../..\x1b[31m|"}, {"teacher_path": "a" * 101}],
)
def test_odd_options_are_not_repeated(options: dict[str, object], tiny: Weights) -> None:
    result = imported(training({n: t.half() for n, t in tiny.items()}, **options))
    assert read_card(result.folder / "zoo.json").source["teacher"] == "not stated"


def shapes_of(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in empty_vit(config).state_dict().items()}


def found(config: ViTConfig, *, trained: bool, name: str = "x.pth", **seen: object) -> Found:
    """A file of this network's shapes in MAE's container, with values where they are looked at."""

    def read(names: object) -> Weights:
        values = {n: torch.full(shapes[n], 0.5 if trained else float("w" in n)) for n in names}  # type: ignore[attr-defined]
        fixed = {"pos_embed": sincos_positions(config.width, config.grid)}
        first = {
            f"blocks.0.norm2.{kind}": torch.full((config.width,), 0.5)
            for kind in ("weight", "bias")
        }
        return {n: {**values, **fixed, **first}[n] for n in values}

    shapes = shapes_of(config)
    keys = {"model": "dict"}
    bare = found_in(shapes, part="model", entries=1, keys=keys, **seen)
    return replace(bare, file=Path(name), read=read)


@pytest.mark.parametrize("config", [VIT_B, VIT_L, VIT_H], ids=["B", "L", "H"])
def test_the_encoders_of_mae(config: ViTConfig) -> None:
    what = recognise(found(config, trained=True))
    assert (what.config, what.method, what.zeroed) == (config, "mae", ())
    assert what.format.endswith(f"{config.heads} heads, patch {config.patch}), encoder only")


@pytest.mark.parametrize(
    ("config", "heads", "relations"), [(VIT_T, 6, 12), (VIT_S, 6, 12), (VIT_B, 12, 16)]
)
def test_the_students_of_tinymim(config: ViTConfig, heads: int, relations: int) -> None:
    what = recognise(found(config, trained=False))
    assert (what.config, what.method) == (replace(config, heads=heads), "tinymim")
    assert (what.relation_heads, what.last_trained_block) == (relations, 11)
    assert set(what.zeroed) <= set(what.fresh)


def test_the_released_base_names_its_teacher() -> None:
    what = recognise(found(VIT_B, trained=False, name="TinyMIM-PT-B.pth"))
    assert what.facts["teacher"].startswith("mae_vit_large, block 18")
    options = {"teacher_model": "mae_vit_base", "teacher_path": "TinyMIM-PT-B.pth"}
    what = recognise(found(VIT_S, trained=False, options=options))
    assert what.facts["teacher"].startswith("mae_vit_base, block 12, weights TinyMIM-PT-B.pth")
    assert what.licenses["teacher"] == "not stated"


@pytest.mark.parametrize(("make", "hint"), WRONG.values(), ids=WRONG.keys())
def test_anything_else_is_refused_and_leaves_nothing(
    make: Callable[[Weights], object], hint: str, tiny: Weights
) -> None:
    with pytest.raises(IntegrityError) as caught:
        imported(make({name: tensor.half() for name, tensor in tiny.items()}))
    assert hint in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert sorted(path.name for path in Path().iterdir()) == ["model.pth", "temp"]


def test_a_large_model_says_so_in_its_configuration() -> None:
    from zoo.layout import timm_config

    layout = json.loads(json.dumps(timm_config(VIT_H, "mae-vit-h")))
    assert layout["architecture"] == "vit_huge_patch14_224"
    with torch.device("meta"):
        net = timm.create_model(layout["architecture"], num_classes=0, **layout["model_args"])
    assert {n: tuple(t.shape) for n, t in net.state_dict().items()} == shapes_of(VIT_H)


def test_an_unknown_file_is_told_all_that_can_be_imported() -> None:
    torch.save({"weights": {"a": torch.rand(3)}}, "x.pth")
    with pytest.raises(IntegrityError) as caught:
        import_file(Path("x.pth"), "a")
    assert EXPECTED in caught.value.fix
    assert len(FORMATS) == 3
    assert all(one.expected in caught.value.fix for one in FORMATS)
