"""The network: reference values, timm's own forward, and reading no further than asked."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zoo.errors import UsageError
from zoo.vit import (
    VIT_B,
    VIT_S,
    VIT_T,
    Kind,
    Tap,
    ViTConfig,
    build_vit,
    config_of,
    divisors,
    embed,
    empty_vit,
    set_drop_path,
    sincos_positions,
    taps,
)

SMALL = ViTConfig(width=24, depth=4, heads=3, patch=8, image_size=32)


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    return build_vit(SMALL, seed=0).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_positions_have_the_reference_values() -> None:
    positions = sincos_positions(192, 14)
    assert positions.shape == (1, 197, 192)
    assert positions.dtype == torch.float32
    assert not positions[0, 0].any()
    column = positions[0, 2, [0, 1, 48, 96, 144]].tolist()
    assert column == pytest.approx([0.84147096, 0.73482198, 0.54030228, 0, 1], abs=1e-7)
    row = positions[0, 15, [0, 48, 96, 144]].tolist()
    assert row == pytest.approx([0, 1, 0.84147096, 0.54030228], abs=1e-7)
    assert positions.double().sum().item() == pytest.approx(17277.554147, abs=1e-4)


@pytest.mark.parametrize(
    ("config", "count"),
    [(VIT_T, 5_524_416), (VIT_S, 21_665_664), (VIT_B, 85_798_656)],
    ids=["T", "S", "B"],
)
def test_parameter_counts(config: ViTConfig, count: int) -> None:
    vit = empty_vit(config)
    assert sum(parameter.numel() for parameter in vit.parameters()) == count
    assert config_of(vit) == config


def test_initialisation_leaves_nothing_out() -> None:
    state = build_vit(SMALL, seed=0).state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert state["patch_embed.proj.bias"].any()
    assert not state["blocks.0.attn.qkv.bias"].any()
    width, fan_in = SMALL.width, 3 * SMALL.patch**2
    bound = math.sqrt(6 / (width + fan_in))  # Xavier, of the projection seen as a matrix
    patch = state["patch_embed.proj.weight"].abs().max().item()
    assert 0.9 * bound < patch <= bound


def test_the_seed_decides_all_and_the_global_generator_nothing() -> None:
    torch.manual_seed(1)
    first = build_vit(SMALL, seed=7).state_dict()
    torch.manual_seed(2)
    again, other = build_vit(SMALL, seed=7).state_dict(), build_vit(SMALL, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.3.mlp.fc2.weight"], other["blocks.3.mlp.fc2.weight"])
    assert not build_vit(SMALL, seed=7).pos_embed.requires_grad  # type: ignore[union-attr]


def test_same_features_as_timm(vit: VisionTransformer, images: Tensor) -> None:
    theirs = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=0
    ).eval()
    theirs.load_state_dict(vit.state_dict())
    last = Tap(SMALL.depth, "block")
    with torch.no_grad():
        ours = vit.norm(taps(vit, images, [last])[last])
        torch.testing.assert_close(ours, theirs.forward_features(images), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            theirs.forward_features(images), vit.forward_features(images), rtol=0, atol=1e-6
        )


def test_q_k_and_v_are_what_the_projection_gives(vit: VisionTransformer, images: Tensor) -> None:
    captured: list[Tensor] = []
    qkv: nn.Module = vit.blocks[2].attn.qkv  # type: ignore[assignment]
    handle = qkv.register_forward_hook(lambda *call: captured.append(call[2]))
    vit.forward_features(images)
    handle.remove()
    found = taps(vit, images, [Tap(3, "q"), Tap(3, "k"), Tap(3, "v")])
    assert set(found) == {Tap(3, "q"), Tap(3, "k"), Tap(3, "v")}
    for number, kind in enumerate("qkv"):
        expected = captured[0][..., number * SMALL.width : (number + 1) * SMALL.width]
        torch.testing.assert_close(found[Tap(3, kind)], expected, rtol=0, atol=1e-6)  # type: ignore[arg-type]


BRANCHES = ("attention", "attention_residual", "ffn", "block")


def test_branches_are_what_timms_modules_give(vit: VisionTransformer, images: Tensor) -> None:
    given: dict[str, Tensor] = {}
    third: nn.Module = vit.blocks[2]  # type: ignore[assignment]
    hooks = [
        third.attn.register_forward_hook(lambda *call: given.update(attention=call[2])),  # type: ignore[union-attr]
        third.mlp.register_forward_hook(lambda *call: given.update(ffn=call[2])),  # type: ignore[union-attr]
        third.norm2.register_forward_pre_hook(  # type: ignore[union-attr]
            lambda *call: given.update(attention_residual=call[1][0])
        ),
        third.register_forward_hook(lambda *call: given.update(block=call[2])),
    ]
    vit.forward_features(images)
    for hook in hooks:
        hook.remove()
    found = taps(vit, images, [Tap(3, kind) for kind in BRANCHES])  # type: ignore[arg-type]
    for kind in BRANCHES:
        torch.testing.assert_close(found[Tap(3, kind)], given[kind], rtol=0, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["attention", "attention_residual"])
def test_a_read_attention_branch_runs_no_mlp(kind: str, images: Tensor) -> None:
    vit = build_vit(SMALL, seed=0).eval()
    third: nn.Module = vit.blocks[2]  # type: ignore[assignment]
    for part in (third.norm2, third.mlp, vit.blocks[3], vit.norm):
        part.register_forward_pre_hook(_must_not_run)  # type: ignore[operator]
    assert taps(vit, images, [Tap(3, kind)])[Tap(3, kind)].shape == (2, SMALL.tokens, SMALL.width)  # type: ignore[arg-type]


def test_reading_on_the_way_changes_nothing_later(vit: VisionTransformer, images: Tensor) -> None:
    kinds: tuple[Kind, ...] = get_args(Kind)
    everything = [Tap(n, kind) for n in range(1, 5) for kind in kinds]
    found = taps(vit, images, everything)
    assert len(found) == len(everything)
    tokens = embed(vit, images)
    for number, block in enumerate(vit.blocks, start=1):
        tokens = block(tokens)
        torch.testing.assert_close(found[Tap(number, "block")], tokens, rtol=0, atol=1e-5)
    for tap in everything:
        alone = taps(vit, images, [tap])[tap]
        torch.testing.assert_close(found[tap], alone, rtol=0, atol=1e-5)


def test_drop_path_is_kept_where_a_block_is_read(images: Tensor) -> None:
    vit = build_vit(SMALL, seed=0).train()
    set_drop_path(vit, [0.0, 0.5, 0.5, 0.0])
    wanted = [Tap(2, "q"), Tap(4, "block")]
    torch.manual_seed(0)
    read = taps(vit, images, wanted)[Tap(4, "block")]
    torch.manual_seed(0)
    plain = taps(vit, images, wanted[1:])[Tap(4, "block")]
    torch.testing.assert_close(read, plain, rtol=0, atol=1e-5)
    assert not torch.allclose(read, taps(vit.eval(), images, wanted)[Tap(4, "block")], atol=1e-3)


def _must_not_run(*_: object) -> None:
    raise AssertionError("ran beyond the last place wanted")


@pytest.fixture
def fenced() -> VisionTransformer:
    """A network in which nothing past the third block's qkv may run."""
    vit = build_vit(SMALL, seed=0).eval()
    third: nn.Module = vit.blocks[2]  # type: ignore[assignment]
    beyond = [*vit.blocks[3].modules(), vit.norm, third.attn.proj, third.norm2, third.mlp.fc1]  # type: ignore[union-attr]
    for part in beyond:
        part.register_forward_pre_hook(_must_not_run)  # type: ignore[operator]
    return vit


def test_nothing_runs_beyond_the_last_place(fenced: VisionTransformer, images: Tensor) -> None:
    found = taps(fenced, images, [Tap(3, "v"), Tap(1, "block")])
    assert found[Tap(3, "v")].shape == (2, SMALL.tokens, SMALL.width)
    with pytest.raises(AssertionError, match="ran beyond"):  # the fence stands
        taps(fenced, images, [Tap(3, "block")])


def test_visible_patches_are_those_of_the_whole(vit: VisionTransformer, images: Tensor) -> None:
    visible = torch.tensor([[5, 0, 9], [15, 2, 3]])
    tokens = embed(vit, images, visible)
    whole = embed(vit, images)
    assert tokens.shape == (2, 4, SMALL.width)
    for image in range(2):
        expected = whole[image, [0, *(1 + visible[image]).tolist()]]
        torch.testing.assert_close(tokens[image], expected, rtol=0, atol=1e-6)
    read = taps(vit, images, [Tap(1, "block")], visible=visible)[Tap(1, "block")]
    torch.testing.assert_close(read, vit.blocks[0](tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        {"reg_tokens": 2},
        {"qk_norm": True},
        {"no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
        {"pre_norm": True},
        {"dynamic_img_size": True},
        {"pos_embed": "none"},
        {"scale_attn_norm": True},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_networks_are_refused(other: dict) -> None:
    arguments: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 3,
    }
    assert config_of(VisionTransformer(**arguments, num_classes=0)).width == 24
    with pytest.raises(UsageError, match="not a plain ViT") as caught:
        config_of(VisionTransformer(**arguments, num_classes=0, **other))
    assert caught.value.fix


@settings(deadline=None)
@given(
    width=st.integers(-8, 800),
    heads=st.integers(-2, 40),
    depth=st.integers(-1, 3),
    patch=st.integers(-1, 40),
    image_size=st.integers(-1, 300),
)
def test_sizes_divide_or_the_error_says_which_would(
    width: int, heads: int, depth: int, patch: int, image_size: int
) -> None:
    sizes = {"width": width, "heads": heads, "depth": depth}
    try:
        config = ViTConfig(**sizes, patch=patch, image_size=image_size)
    except UsageError as error:
        said = error
    else:
        assert config.width % config.heads == 0
        assert config.grid * config.patch == config.image_size
        assert config.tokens == config.grid**2 + 1
        assert min(width, heads, depth, patch, image_size) >= 1
        return
    assert said.where.startswith("ViTConfig.")
    if "does not divide" in said.what:
        assert str(divisors(width if said.where.endswith("heads") else image_size)) in said.fix


@pytest.mark.parametrize("name", ["width", "depth", "heads", "patch", "image_size"])
def test_sizes_that_no_network_has_are_refused_at_once(name: str) -> None:
    sizes = {"width": 192, "depth": 12, "heads": 3, name: 10**9}
    with pytest.raises(UsageError, match=f"{name} 1,000,000,000"):
        ViTConfig(**sizes)
