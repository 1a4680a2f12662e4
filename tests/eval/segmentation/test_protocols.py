"""Protocols pin what moves their number; recipes follow from them and the model."""

from dataclasses import replace

import pytest
from streets import STUDENT

from eval.benchmarks import benchmarks
from eval.segmentation.plan import changed
from eval.segmentation.protocols import SEG_PROTOCOLS, find_seg_protocol, of_own
from eval.segmentation.recipe import Segmentation, SegTraining, UPerNet, recipe_for
from eval.segmentation.record import Network
from pretrain.recipe import override
from zoo.errors import UsageError
from zoo.images import Preprocess
from zoo.vit import VIT_B, VIT_L, VIT_S, VIT_T, ViTConfig

DIGESTS = {
    "ade20k-upernet@1": "52c93b8c63539933",
    "ade20k-upernet-plain@1": "6118d5c85b3930ac",
    "upernet@1": "2f2586c8d20f18cc",
    "upernet-plain@1": "b01817a0e5abca00",
}


def test_digests_are_frozen() -> None:
    """Another rule is another version: raise it, and add the new digest here."""
    assert {name: p.digest[:16] for name, p in SEG_PROTOCOLS.items()} == DIGESTS
    assert benchmarks().keys() >= SEG_PROTOCOLS.keys()


@pytest.mark.parametrize(
    ("config", "origin", "layer_decay", "drop_path", "taps"),
    [
        (VIT_T, "tinymim", 0.8, 0.1, (4, 6, 8, 12)),
        (VIT_S, "mae", 0.8, 0.1, (4, 6, 8, 12)),
        (VIT_B, "tinymim", 0.75, 0.1, (4, 6, 8, 12)),
        (VIT_B, "mae", 0.65, 0.1, (4, 6, 8, 12)),
        (VIT_B, "", 0.65, 0.1, (4, 6, 8, 12)),
        (VIT_L, "mae", 0.65, 0.2, (8, 12, 16, 24)),
        (STUDENT, "mae", 0.8, 0.1, (1, 2, 3, 4)),
    ],
)
def test_settings_follow_from_size_and_origin(
    config: ViTConfig, origin: str, layer_decay: float, drop_path: float, taps: tuple[int, ...]
) -> None:
    method, training = recipe_for(config, origin, backbone="mae")
    assert (training.layer_decay, method.drop_path) == (layer_decay, drop_path)
    assert method.taps == taps
    assert (training.iterations, training.global_batch, training.lr) == (160_000, 16, 1e-4)
    assert (method.crop, method.head_channels, method.auxiliary_channels) == (512, 768, 256)


def made(origin: str = "tinymim") -> tuple[Segmentation, Network]:
    method, training = recipe_for(VIT_B, origin, backbone="mae")
    network = Network(
        student=VIT_B,
        preprocess=Preprocess(image_size=224),
        model="m",
        model_digest="0",
        origin=origin,
        classes=("a", "b"),
        palette=((0, 0, 0), (1, 1, 1)),
    )
    recipe = Segmentation(
        name="x",
        protocol="ade20k-upernet@1",
        model="m",
        data="d",
        method=method,
        training=training,
    )
    return recipe, network


def test_what_is_not_as_the_protocol_has_it_is_named() -> None:
    recipe, network = made()
    assert changed(recipe, network) == {}
    free = ["training.workers=9", "training.save_every=7", "testing.windows=3"]
    assert changed(override(recipe, free), network) == {}
    other = override(recipe, ["training.iterations=9", "method.taps=[1, 2, 3, 4]", *free])
    assert changed(other, network) == {"training.iterations": 9, "method.taps": [1, 2, 3, 4]}
    scratch = replace(recipe, from_scratch=True)
    assert changed(scratch, network) == {"from_scratch": True}
    assert changed(recipe, replace(network, origin="mae")) == {"training.layer_decay": 0.75}


def test_names() -> None:
    assert find_seg_protocol("ade20k-upernet").id == "ade20k-upernet@1"
    assert of_own(find_seg_protocol("ade20k-upernet-plain")).id == "upernet-plain@1"
    assert of_own(find_seg_protocol("upernet")).id == "upernet@1"
    with pytest.raises(UsageError, match="no benchmark is called 'ade20k-upernet@2'"):
        find_seg_protocol("ade20k-upernet@2")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("training.layer_decay=0.0", "training.layer_decay"),
        ("training.precision=fp16", "bfloat16"),
        ("method.backbone=swin", "plain"),
        ("method.taps=[4, 6, 8]", "method.taps"),
        ("testing.stride=0", "testing.stride"),
    ],
)
def test_overrides_are_checked(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        override(made()[0], [text])


def test_defaults_are_the_protocol() -> None:
    assert (SegTraining(), UPerNet()) == recipe_for(VIT_B, "mae", backbone="mae")[::-1]
