"""The network: whose weights it has, what it computes, how fast each of its parameters learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model
from streets import STUDENT, make_student
from torch import Tensor, nn

from eval.segmentation.config import Setting, network, optimization
from eval.segmentation.packages import import_mmseg, quiet
from eval.segmentation.recipe import Segmentation, SegTraining, UPerNet
from eval.segmentation.record import Network
from eval.segmentation.weights import backbone_weights, require_taken, resize_positions
from pretrain.methods.tinymim import never_trained
from zoo.errors import IntegrityError
from zoo.folder import Model, load_model
from zoo.images import Preprocess
from zoo.vit import VIT_T, ViTConfig

RECIPE = Segmentation(name="x", protocol="upernet@1", model="m", data="d")


@pytest.fixture(autouse=True, scope="module")
def mmseg() -> None:
    import_mmseg()


def made(config: ViTConfig, classes: int = 3) -> Network:
    palette = tuple((number, number, number) for number in range(classes))
    names = tuple(f"class {number}" for number in range(classes))
    return Network(
        student=config,
        preprocess=Preprocess(image_size=config.image_size),
        model="m",
        model_digest="0",
        origin="mae",
        classes=names,
        palette=palette,
    )


def built(recipe: Segmentation, config: ViTConfig, weights: Path | None = None) -> Any:
    """As a run builds it, weights by way of mmengine's loading."""
    from mmseg.registry import MODELS

    with quiet():
        net = MODELS.build(network(recipe, Setting(network=made(config), weights=weights)))
        if weights:
            net.init_weights()
    return net.eval()


def features_of_timm(model: Model, images: Tensor, taps: tuple[int, ...]) -> list[Tensor]:
    """(B, D, h, w) after each block of timm's own network, its positions resized plainly."""
    vit, side = model.vit, images.shape[-1] // model.config.patch
    positions = resize_positions(vit.pos_embed.detach(), side, side)  # type: ignore[union-attr]
    vit.patch_embed.set_input_size((images.shape[-1],) * 2)  # type: ignore[operator]
    vit.pos_embed = nn.Parameter(positions)
    found = vit.get_intermediate_layers(
        images, n=[tap - 1 for tap in taps], reshape=True, norm=False
    )
    return list(found)


@pytest.mark.parametrize("backbone", ["mae", "plain"])
def test_features_at_the_four_taps_are_those_of_timm(backbone: Any, tmp_path: Path) -> None:
    model = load_model(make_model(tmp_path / "vit-t", VIT_T))
    with torch.no_grad():  # norms and biases that are not their identity
        for parameter in model.vit.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    recipe = replace(RECIPE, method=UPerNet(backbone=backbone))
    weights = backbone_weights(VIT_T, model, backbone=backbone, grid=32, seed=0)
    file = tmp_path / "backbone.pth"
    torch.save(weights, file)
    net = built(recipe, VIT_T, file)
    require_taken(net.backbone, weights)
    images = torch.randn(1, 3, 512, 512)
    with torch.no_grad():
        ours = net.backbone(images)
        theirs = features_of_timm(model, images, recipe.method.taps)
    assert [tuple(level.shape) for level in ours] == [(1, 192, 32, 32)] * 4
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_a_plain_backbone_takes_any_size_that_its_patches_tile(tmp_path: Path) -> None:
    recipe = replace(RECIPE, method=UPerNet(backbone="plain", crop=32, taps=(1, 2, 3, 4)))
    levels = built(recipe, STUDENT).backbone(torch.randn(2, 3, 40, 64))
    assert [tuple(level.shape) for level in levels] == [(2, 24, 5, 8)] * 4


def test_positions_are_resized_as_mmsegmentation_resizes_them() -> None:
    from mmseg.models.backbones import MAE

    with quiet():
        theirs = MAE(img_size=64, patch_size=8, embed_dims=24, num_layers=1, num_heads=3)
    positions = torch.randn(1, 1 + 16, 24)
    expected = theirs.resize_abs_pos_embed({"pos_embed": positions})["pos_embed"]
    assert torch.equal(resize_positions(positions, 8, 8), expected)


def test_fresh_parameters_begin_anew_and_all_others_as_they_were(tmp_path: Path) -> None:
    model = load_model(make_student(tmp_path / "student"))
    assert model.card
    fresh = list(never_trained(STUDENT.depth))
    model = replace(model, card=replace(model.card, fresh_parameters=fresh))
    with torch.no_grad():
        for name in fresh:
            model.vit.get_parameter(name).fill_(7.0)
    weights = backbone_weights(STUDENT, model, backbone="mae", grid=4, seed=0)
    assert 0.01 < weights["layers.3.attn.proj.weight"].std() < 0.03
    assert weights["layers.3.ln2.weight"].unique().tolist() == [1.0]
    assert not weights["layers.3.attn.proj.bias"].any()
    assert not any((tensor == 7.0).any() for tensor in weights.values())
    assert torch.equal(weights["layers.2.ln1.weight"], model.vit.blocks[2].norm1.weight)  # type: ignore[union-attr]
    again = backbone_weights(STUDENT, model, backbone="mae", grid=4, seed=0)
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_weights_that_do_not_arrive_are_an_error(tmp_path: Path) -> None:
    model = load_model(make_student(tmp_path / "student"))
    recipe = replace(RECIPE, method=UPerNet(crop=32, taps=(1, 2, 3, 4)))
    weights = backbone_weights(STUDENT, model, backbone="mae", grid=4, seed=0)
    backbone = built(recipe, STUDENT).backbone
    with pytest.raises(IntegrityError, match=f"of {len(weights)} pre-trained tensors did not"):
        require_taken(backbone, weights)
    backbone.load_state_dict(weights, strict=False)
    require_taken(backbone, weights)
    del weights["cls_token"]
    with pytest.raises(IntegrityError, match="1 of it were given none"):
        require_taken(backbone, weights)


def expected_group(name: str, ndim: int, training: SegTraining, depth: int) -> tuple[float, float]:
    """Learning rate and weight decay of a parameter, by the recipe's words."""
    where = name.removeprefix("backbone.").removeprefix("vit.")
    if not name.startswith("backbone."):
        layer = depth + 1
    elif where.startswith(("layers.", "blocks.")):
        layer = 1 + int(where.split(".")[1])
    else:
        layer = 0
    token = where in {"cls_token", "pos_embed"}
    decayed = training.decay_tokens if token else ndim > 1
    rate = training.lr * training.layer_decay ** (depth + 1 - layer)
    return rate, training.weight_decay if decayed else 0.0


@pytest.mark.parametrize("decay_tokens", [True, False])
@pytest.mark.parametrize("backbone", ["mae", "plain"])
def test_every_parameter_has_the_rate_and_the_decay_that_the_recipe_says(
    backbone: Any, decay_tokens: bool
) -> None:
    from mmengine.optim import build_optim_wrapper

    config = replace(STUDENT, depth=12)
    training = SegTraining(layer_decay=0.65, decay_tokens=decay_tokens)
    method = UPerNet(backbone=backbone, crop=32, head_channels=16)
    recipe = replace(RECIPE, method=method, training=training)
    net = built(recipe, config)
    setting = Setting(network=made(config))
    with quiet():
        wrapper = build_optim_wrapper(net, optimization(recipe, setting)["optim_wrapper"])
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        name: expected_group(name, parameter.ndim, training, 12)
        for name, parameter in net.named_parameters()
    }
    assert found.keys() == expected.keys()
    for name, (rate, decay) in expected.items():
        assert found[name] == (pytest.approx(rate), decay), name
    assert len({rate for rate, _ in expected.values()}) == 14


def test_the_network_of_the_protocol_is_the_published_one() -> None:
    net = built(RECIPE, VIT_T)
    assert {type(part).__name__ for part in net.children()} >= {
        "MAE",
        "Feature2Pyramid",
        "UPerHead",
        "FCNHead",
    }
    assert net.decode_head.channels == 768
    assert net.auxiliary_head.in_index == 2
    assert net.auxiliary_head.loss_decode.loss_weight == 0.4
    assert net.backbone.layers[0].gamma_1.unique().tolist() == [1.0]
    assert not net.backbone.layers[5].attn.relative_position_bias_table.any()
    assert net.backbone.layers[0].ln1.eps == 1e-6
    assert [net.backbone.layers[i].drop_path.drop_prob for i in (0, 11)] == [
        0.0,
        pytest.approx(0.1),
    ]
