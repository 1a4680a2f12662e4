"""TinyMIM: the numbers of the official classes, and what is computed, trained and shipped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from maefiles import encoder
from models import TEACHER, make_model
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pretrain.distillation import relation_logits, relation_loss
from pretrain.methods.tinymim import Distillation, TinyMIM
from pretrain.objective import Batch
from pretrain.teachers.vit import FrozenViT, ViTTeacher
from pretrain.views import TWO_VIEW_DRAWS
from zoo.card import TeacherRecord
from zoo.folder import timm_config
from zoo.images import Preprocess
from zoo.vit import VIT_B, VIT_L, VIT_S, VIT_T, Tap, ViTConfig, build_vit, empty_vit, taps

CPU = torch.device("cpu")
STUDENT = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)
# The official pre-training trunks have 6 heads in both.
PAIRS = {"tiny": replace(VIT_T, heads=6), "small": VIT_S}
# Measured with the unmodified official classes on the weights and images below, in float64.
LOSSES = {"tiny": (0.2523942212, 0.3175196983), "small": (0.2707967268, 0.2981912179)}
SQUARES = {"tiny": (30.82492608, 34.44427484), "small": (31.94412798, 34.83023187)}
TEACHER_SQUARES = (30.97358400, 38.93030660)
GRADIENTS = {
    "cls_token": (0.032343485, 0.018050397),
    "patch_embed.proj.weight": (0.31741695, 0.26825126),
    "blocks.0.attn.qkv.weight": (0.43572297, 0.43678175),
    "blocks.10.mlp.fc2.weight": (0.22928551, 0.22347339),
    "blocks.11.norm1.weight": (0.095428269, 0.069697535),
    "blocks.11.attn.qkv.weight": (0.37202549, 0.43137247),
}
TEACHER_SPOT = (0.0045109699, 0.0036902554, 0.0073636597, 0.005155215)
STUDENT_SPOT = {
    "tiny": (0.0055973741, 0.0043511538, 0.0096229632, 0.0055581681),
    "small": (0.0029369044, 0.0078857506, 0.0042691919, 0.014600152),
}


def filled(config: ViTConfig) -> VisionTransformer:
    """The network with weights that numpy draws from each parameter's name."""
    vit = empty_vit(config)
    vit.load_state_dict(encoder(config), assign=True)
    return vit.eval()


def read(vit: VisionTransformer, images: Tensor, block: int) -> list[Tensor]:
    wanted = [Tap(block, kind) for kind in ("q", "k", "v")]
    found = taps(vit, images, wanted)
    return [found[tap] for tap in wanted]


@pytest.fixture(scope="module")
def base() -> VisionTransformer:
    return filled(VIT_B)


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["f64", "f32"])
def reference(
    request: pytest.FixtureRequest, base: VisionTransformer
) -> tuple[Tensor, list[Tensor]]:
    """Two images, and the base teacher's Q, K and V of block 12 for them."""
    pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    images = torch.from_numpy(pixels).to(request.param)
    with torch.no_grad():
        return images, read(base.to(request.param), images, 12)


def test_teacher_relations_are_the_official_ones(reference: tuple[Tensor, list[Tensor]]) -> None:
    _, (q, k, v) = reference
    found = [relation_logits(pair, 12).softmax(-1) for pair in ((q, k), (v, v))]
    assert [r.square().sum().item() for r in found] == pytest.approx(TEACHER_SQUARES, rel=1e-5)
    assert found[0][0, 0, 0, :4].tolist() == pytest.approx(TEACHER_SPOT, rel=1e-5)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_losses_and_gradients_are_the_official_ones(
    size: str, reference: tuple[Tensor, list[Tensor]]
) -> None:
    images, (q_t, k_t, v_t) = reference
    student = filled(PAIRS[size]).to(images.dtype)
    q, k, v = read(student, images, 12)
    qk, vv = relation_loss((q_t, k_t), (q, k), 12), relation_loss((v_t, v_t), (v, v), 12)
    assert qk.dtype == images.dtype
    assert (qk.item(), vv.item()) == pytest.approx(LOSSES[size], rel=1e-5)
    found = [relation_logits(pair, 12).softmax(-1) for pair in ((q, k), (v, v))]
    assert [r.square().sum().item() for r in found] == pytest.approx(SQUARES[size], rel=1e-5)
    assert found[1][1, -1, -1, -4:].tolist() == pytest.approx(STUDENT_SPOT[size], rel=1e-5)
    (qk + vv).backward()
    # Single precision rounds gradients about ten times more than losses.
    tolerance = 1e-5 if images.dtype == torch.float64 else 1e-4
    for name, norms in GRADIENTS.items():
        gradient = student.get_parameter(name).grad
        assert gradient is not None
        expected = norms[list(PAIRS).index(size)]
        assert gradient.norm().item() == pytest.approx(expected, rel=tolerance), name


def test_positions_are_the_official_ones() -> None:
    positions = build_vit(VIT_T, seed=0).state_dict()["pos_embed"]
    first_column, second_row = positions[0, 2], positions[0, 15]
    assert first_column[[0, 1, 48, 96, 144]].tolist() == pytest.approx(
        [0.84147096, 0.73482198, 0.54030228, 0, 1]
    )
    assert second_row[[0, 48, 96, 144]].tolist() == pytest.approx([0, 1, 0.84147096, 0.54030228])
    assert positions.double().sum().item() == pytest.approx(17277.554147, rel=1e-7)
    assert not positions[0, 0].any()


def test_loss_is_finite_where_a_probability_underflows() -> None:
    far = torch.tensor([[[300.0, 0.0], [0.0, 300.0]]], requires_grad=True)
    near = torch.tensor([[[0.0, 300.0], [300.0, 0.0]]])
    assert relation_logits((far, far), 1).softmax(-1).min() == 0
    loss = relation_loss((near, far.detach()), (far, far), 1)
    loss.backward()
    assert loss.isfinite()
    assert loss > 1000
    assert far.grad is not None
    assert far.grad.isfinite().all()


def test_equal_relations_cost_nothing() -> None:
    pair = (torch.randn(2, 5, 12), torch.randn(2, 5, 12))
    assert relation_loss(pair, pair, 3).item() == pytest.approx(0, abs=1e-6)


def batch_of(size: int, config: ViTConfig = STUDENT, device: str = "cpu") -> Batch:
    side = config.image_size
    images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, device=device)
    draws = torch.rand(size, TWO_VIEW_DRAWS, device=device)
    return Batch(images=images, indices=torch.arange(size), draws=draws)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "teacher")


def distillation(teacher: Path, student: ViTConfig = STUDENT) -> Distillation:
    return TinyMIM(teacher=ViTTeacher(source=str(teacher))).build(student, seed=0, device=CPU)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_everything_shipped_was_trained_or_is_declared(teacher: Path, depth: int) -> None:
    objective = distillation(teacher, replace(STUDENT, depth=depth)).train()
    losses = objective(batch_of(4))
    assert losses["total"].item() == pytest.approx((losses["qk"] + losses["vv"]).item())
    losses["total"].backward()
    trained = {
        name.removeprefix("student.")
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    made = objective.export()
    assert trained.isdisjoint(made.fresh)
    # A key's bias cannot move a softmax over keys, but its slice belongs to the fused qkv bias.
    assert trained | set(made.fresh) | {"pos_embed"} == set(made.weights)
    assert {n.split(".")[1] for n in made.fresh if n.startswith("blocks.")} == {str(depth - 1)}
    assert made.last_trained_block == depth - 1
    grouped = {name for group in objective.param_groups(0.05) for name in group.names}
    assert {name.removeprefix("student.") for name in grouped} == trained


def test_teacher_is_neither_saved_nor_trained(teacher: Path) -> None:
    objective = distillation(teacher)
    assert not [name for name in objective.state_dict() if "teacher" in name]
    assert not [name for name, _ in objective.named_parameters() if "teacher" in name]


def test_exported_last_block_is_an_identity(teacher: Path, tmp_path: Path) -> None:
    objective = distillation(teacher)
    made = objective.export()
    atomic = timm_config(STUDENT, "student")
    save_file(dict(made.weights), tmp_path / "model.safetensors")
    model = timm.create_model(
        atomic["architecture"],
        num_classes=0,
        **atomic["model_args"],
        checkpoint_path=str(tmp_path / "model.safetensors"),
    ).eval()
    assert isinstance(model, VisionTransformer)
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        tokens = model.blocks[:2](taps(model, images, [Tap(1, "block")])[Tap(1, "block")] * 3)
        assert torch.equal(model.blocks[2](tokens), tokens)
        second = taps(objective.student.eval(), images, [Tap(2, "block")])[Tap(2, "block")]
        assert torch.equal(model.forward_features(images), model.norm(second))


def test_drop_path_is_constant_and_spares_the_last_block(teacher: Path) -> None:
    blocks = distillation(teacher).student.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == [0.1, 0.1, 0.0]


# Matrix products of N tokens, two floating-point operations a multiply-add.


def block_flops(c: ViTConfig) -> int:
    return 24 * c.tokens * c.width**2 + 4 * c.tokens**2 * c.width


def qkv_flops(c: ViTConfig) -> int:
    return 6 * c.tokens * c.width**2


def embed_flops(c: ViTConfig) -> int:
    return 2 * c.patches * 3 * c.patch**2 * c.width


def relation_flops(c: ViTConfig) -> int:
    return 2 * 2 * c.tokens**2 * c.width


def frozen(config: ViTConfig, block: int) -> FrozenViT:
    record = TeacherRecord(name="t", digest="", block=block, license="", relation_heads=12)
    return FrozenViT(
        empty_vit(config), Preprocess(image_size=224), record=record, relation_heads=12
    )


@pytest.mark.parametrize(("config", "block", "giga"), [(VIT_B, 12, 32.9), (VIT_L, 18, 88.5)])
def test_teacher_runs_no_further_than_it_is_read(
    config: ViTConfig, block: int, giga: float
) -> None:
    with FlopCounterMode(display=False) as counter:
        frozen(config, block)(torch.empty(1, 3, 224, 224, device="meta"))
    expected = embed_flops(config) + (block - 1) * block_flops(config) + qkv_flops(config)
    assert counter.get_total_flops() == expected
    assert expected / 1e9 == pytest.approx(giga, abs=0.05)


def test_a_training_step_computes_this_and_nothing_else() -> None:
    """Forward and backward of 11 student blocks and one qkv; forward of the teacher's."""
    size = 3
    objective = Distillation(
        VIT_T, frozen(VIT_B, 12), TinyMIM(teacher=ViTTeacher(source="")), seed=0
    )
    objective = objective.to("meta").train()
    with FlopCounterMode(display=False) as counter:
        objective(batch_of(size, VIT_T, "meta"))["total"].backward()
    teacher = embed_flops(VIT_B) + 11 * block_flops(VIT_B) + qkv_flops(VIT_B)
    student = 11 * block_flops(VIT_T) + qkv_flops(VIT_T)
    # Backward costs each product twice more; the images need no gradient.
    expected = teacher + relation_flops(VIT_B) + 2 * embed_flops(VIT_T)
    expected += 3 * (student + relation_flops(VIT_T))
    assert counter.get_total_flops() == size * expected
    assert expected / 1e9 == pytest.approx(40.2, rel=0.01)


def test_same_model_folder_in_float_and_half(teacher: Path) -> None:
    half = ViTTeacher(source=str(teacher), precision="bf16").load(STUDENT, CPU)
    full = ViTTeacher(source=str(teacher)).load(STUDENT, CPU)
    images = torch.rand(2, 3, TEACHER.image_size, TEACHER.image_size)
    found, expected = half(images), full(images)
    assert set(found) == {"q", "k", "v"}
    for place, tokens in found.items():
        assert tokens.dtype == torch.bfloat16
        torch.testing.assert_close(tokens.float(), expected[place], rtol=0.05, atol=0.05)
