"""What TinyMIM's targets compute, train and ship, one by one; masked input; stochastic depth."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import TEACHER, make_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pretrain.distillation import RELATIONS, Feature, Reading, Relation, make_target, places, read
from pretrain.masked import mask_order
from pretrain.methods.tinymim import Distillation, Reconstruction, TinyMIM
from pretrain.objective import Batch
from pretrain.teachers.vit import ViTTeacher
from pretrain.views import TWO_VIEW_DRAWS, two_views
from zoo.card import Card
from zoo.errors import UsageError
from zoo.folder import save_model
from zoo.images import normalise
from zoo.vit import Tap, ViTConfig, build_vit, embed, taps

CPU = torch.device("cpu")
STUDENT = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)
FEATURES: tuple[Feature, ...] = get_args(Feature)
NAMES = (*get_args(Relation), *FEATURES, "class_token")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "teacher")


def built(teacher: Path, *, block: int | None = None, **method: Any) -> Distillation:
    recipe = TinyMIM(teacher=ViTTeacher(source=str(teacher), block=block), **method)
    return recipe.build(STUDENT, seed=0, device=CPU).train()


def batch_of(objective: Distillation, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator),
        indices=torch.arange(size),
        draws=torch.rand(size, objective.draws, generator=generator),
    )


def reading(width: int, seed: int, tokens: int = 5) -> Reading:
    generator = torch.Generator().manual_seed(seed)
    return {
        place: torch.randn(2, tokens, width, generator=generator, dtype=torch.float64)
        for place in frozenset().union(*map(places, NAMES))
    }


def target(name: str, width: int = 12, teacher_width: int = 18, *, softmax: bool = True) -> Any:
    return make_target(
        name,  # type: ignore[arg-type]
        width=width,
        teacher_width=teacher_width,
        relation_heads=3,
        softmax=softmax,
        generator=torch.Generator().manual_seed(0),
    ).double()


def relation(tokens: Reading, pair: str, head: int, heads: int = 3) -> Tensor:
    """One head's (B, N, N) products, from the definition."""
    a, b = (tokens[kind].chunk(heads, dim=-1)[head] for kind in pair)
    return torch.einsum("bid,bjd->bij", a, b) / a.shape[-1] ** 0.5


def smooth_l1(difference: Tensor) -> Tensor:
    size = difference.abs()
    return torch.where(size <= 2, 0.25 * size**2, size - 1).mean()  # β = 2


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_are_compared_by_kl_or_as_they_are(name: str) -> None:
    theirs, ours = reading(18, 0), reading(12, 1)
    pairs = [(relation(theirs, name, h), relation(ours, name, h)) for h in range(3)]
    kl = [(t.softmax(-1) * (t.softmax(-1) / s.softmax(-1)).log()).sum(-1).mean() for t, s in pairs]
    found = target(name)(theirs, ours)
    torch.testing.assert_close(found, torch.stack(kl).mean())
    plain = target(name, softmax=False)(theirs, ours)
    expected = torch.stack([smooth_l1(t - s) for t, s in pairs]).mean()
    torch.testing.assert_close(plain, expected)


def whitened(tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_whitened_projected_and_compared_by_smooth_l1(name: str) -> None:
    theirs, ours = reading(18, 0), reading(12, 1)
    piece = target(name)
    guess = ours[name] @ piece.project.weight.T + piece.project.bias
    torch.testing.assert_close(piece(theirs, ours), smooth_l1(guess - whitened(theirs[name])))
    # Far apart, the loss is linear: the teacher's tokens are whitened, so only ours can be far.
    far = {place: 1e3 * tokens for place, tokens in ours.items()}
    assert piece(theirs, far).item() == pytest.approx(
        1e3 * (guess - piece.project.bias).abs().mean().item(), rel=0.05
    )


def test_class_tokens_are_compared_as_distributions_over_the_teachers_channels() -> None:
    theirs, ours = reading(18, 0), reading(12, 1)
    piece = target("class_token")
    t = whitened(theirs["block"][:, 0]).softmax(-1)
    s = (ours["block"][:, 0] @ piece.project.weight.T + piece.project.bias).softmax(-1)
    torch.testing.assert_close(piece(theirs, ours), (t * (t / s).log()).sum(-1).mean())
    # Of the other tokens nothing counts.
    others = {place: torch.cat([x[:, :1], x[:, 1:] * 7], dim=1) for place, x in ours.items()}
    assert torch.equal(piece(theirs, others), piece(theirs, ours))


@given(seed=st.integers(0, 99), name=st.sampled_from(NAMES))
def test_every_loss_is_finite_and_never_negative(seed: int, name: str) -> None:
    theirs = {place: 100 * tokens for place, tokens in reading(18, seed).items()}
    loss = target(name)(theirs, reading(12, seed + 1))
    assert loss.ndim == 0
    assert loss.isfinite()
    assert loss >= -1e-9


@pytest.mark.parametrize("name", NAMES)
def test_what_a_target_trains_is_what_is_not_declared_fresh(
    name: str, teacher: Path, tmp_path: Path
) -> None:
    objective = built(teacher, targets=(name,))
    losses = objective(batch_of(objective))
    assert losses["total"].item() == pytest.approx(losses[name].item())
    losses["total"].backward()
    trained = {n for n, p in objective.named_parameters() if p.requires_grad}
    reached = {n for n, p in objective.named_parameters() if p.grad is not None}
    assert trained == reached  # else DDP would wait for gradients that never come
    made = objective.export()
    kept = {n.removeprefix("student.") for n in trained if n.startswith("student.")}
    assert kept | set(made.fresh) | {"pos_embed"} == set(made.weights)
    assert kept.isdisjoint(made.fresh)
    card = Card(name="s", method="tinymim", heads=3, last_trained_block=made.last_trained_block)
    save_model(tmp_path / "s", STUDENT, made.weights, card)
    net = timm.create_model(f"local-dir:{tmp_path / 's'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    # What training read of the student is what its features stand on: no random branch is added.
    last = "block" if name in {"ffn", "block", "output", "class_token"} else "attention_residual"
    at = Tap(3, last) if made.last_trained_block == 3 else Tap(2, "block")
    with torch.no_grad():
        expected = taps(objective.student.eval(), images, [at])[at]
        found = net.forward_features(images)  # type: ignore[operator]
        torch.testing.assert_close(found, net.norm(expected), rtol=0, atol=1e-5)  # type: ignore[operator]


def test_relations_alone_leave_the_export_as_it_was(teacher: Path) -> None:
    made = built(teacher).export()
    assert made.last_trained_block == 2
    assert made.facts["relation_heads"] == 6
    assert made.facts["teacher"]["relation_heads"] == 6
    features = built(teacher, targets=("block",)).export()
    assert "relation_heads" not in features.facts
    assert features.facts["teacher"]["relation_heads"] is None
    assert features.fresh == ("norm.weight", "norm.bias")


def test_targets_add_up(teacher: Path) -> None:
    objective = built(teacher, targets=("qq", "kk", "vv", "class_token", "ffn"))
    losses = objective(batch_of(objective))
    assert list(losses) == ["total", "qq", "kk", "vv", "class_token", "ffn"]
    parts = sum(loss.item() for name, loss in losses.items() if name != "total")
    assert losses["total"].item() == pytest.approx(parts, rel=1e-6)


def test_output_is_the_last_blocks_whichever_is_read(tmp_path: Path) -> None:
    deep = make_model(tmp_path / "deep", replace(TEACHER, depth=4))
    objective = built(deep, block=2, targets=("block", "output"))
    images = torch.rand(2, 3, 32, 32)
    found = objective.read_teacher(images)
    assert set(found) == {"block", "output"}
    assert not torch.allclose(found["block"], found["output"], atol=1e-3)
    assert len(objective.teacher.net.blocks) == 4  # type: ignore[arg-type]
    # Without it the rest of the teacher is not even loaded.
    assert len(built(deep, block=2).teacher.net.blocks) == 2  # type: ignore[arg-type]


def test_half_precision_reaches_no_loss(tmp_path: Path) -> None:
    """bf16 weights of the teacher, bf16 products of the student: losses are fp32 all the same."""
    source = str(make_model(tmp_path / "teacher"))
    method = TinyMIM(teacher=ViTTeacher(source=source, precision="bf16"), targets=NAMES)
    objective = method.build(STUDENT, seed=0, device=CPU).eval()
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(batch_of(objective))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    exact = built(tmp_path / "teacher", targets=NAMES).eval()
    for name, loss in exact(batch_of(exact)).items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=0.1), name


# Masked input.


def test_both_networks_see_the_visible_patches_alone(teacher: Path) -> None:
    objective = built(teacher, mask_ratio=0.75)
    assert objective.visible_patches == 4
    # Without jitter, whose contrast is relative to the mean of the whole image.
    still = built(teacher, mask_ratio=0.75, jitter=(0.0, 0.0, 0.0), drop_path=0.0)
    batch = batch_of(still)
    batch = batch._replace(draws=batch.draws.clamp(min=0.5).sort(dim=1).values)  # not flipped
    # The draws ascend, so the first four of sixteen patches are visible: the top row.
    lower = torch.arange(32)[:, None] >= 8
    hidden = batch._replace(images=torch.where(lower, 255 - batch.images, batch.images))
    seen = batch._replace(images=torch.where(lower, batch.images, 255 - batch.images))
    loss = still(batch)["total"]
    assert torch.equal(still(hidden)["total"], loss)
    assert not torch.equal(still(seen)["total"], loss)


def test_a_full_teacher_gives_rows_and_columns_of_its_relations(teacher: Path) -> None:
    objective = built(teacher, mask_ratio=0.75, full_teacher=True)
    images = torch.rand(2, 3, 32, 32)
    visible = torch.tensor([[3, 0, 7, 9], [15, 2, 1, 8]])
    some, full = objective.read_teacher(images, visible), objective.teacher(images)
    for sample, patches in enumerate(visible):
        rows = torch.cat([torch.zeros(1, dtype=torch.int64), patches + 1])
        for place, tokens in some.items():
            assert torch.equal(tokens[sample], full[place][sample, rows])
    # Another thing than a teacher that sees no more than the student.
    blind = built(teacher, mask_ratio=0.75).read_teacher(images, visible)
    assert not torch.allclose(blind["q"], some["q"], atol=1e-4)


def flops(objective: Distillation) -> tuple[int, int]:
    """(teacher's, student's) forward FLOPs of one image, patch embedding left out."""
    images = torch.rand(1, 3, 32, 32)
    visible = torch.arange(objective.visible_patches)[None]
    counts = []
    for network in (objective.read_teacher, objective.read_student):
        with FlopCounterMode(display=False) as counter:
            network(images, visible)
        by_part = counter.get_flop_counts()["Global"]
        counts.append(sum(n for op, n in by_part.items() if "convolution" not in str(op)))
    return counts[0], counts[1]


def expected_flops(config: ViTConfig, tokens: int, blocks: int) -> int:
    """Whole blocks, then one qkv projection."""
    block = 24 * tokens * config.width**2 + 4 * tokens**2 * config.width
    return blocks * block + 6 * tokens * config.width**2


def test_masked_input_costs_visible_tokens_only(teacher: Path) -> None:
    masked = flops(built(teacher, mask_ratio=0.75))
    assert masked == (expected_flops(TEACHER, 5, 1), expected_flops(STUDENT, 5, 2))
    full = flops(built(teacher, mask_ratio=0.75, full_teacher=True))
    assert full == (expected_flops(TEACHER, 17, 1), masked[1])


def test_the_hidden_patches_of_the_students_view_are_reconstructed(teacher: Path) -> None:
    small = Reconstruction(
        weight=0.5, decoder_width=16, decoder_depth=1, decoder_heads=2, normalise_pixels=False
    )
    objective = built(teacher, mask_ratio=0.75, reconstruction=small, drop_path=0.0)
    batch = batch_of(objective)
    view, _ = two_views(batch.images, batch.draws, objective.method.jitter)
    images, order = normalise(view), mask_order(batch.draws[:, TWO_VIEW_DRAWS:])
    assert objective.decoder
    tokens = objective.read_student(images, order[:, :4])["output"]
    guess = objective.decoder(objective.student.norm(tokens), order)
    expected = []
    for image, patches, hidden in zip(images, guess, order[:, 4:].tolist(), strict=True):
        for patch in hidden:
            y, x = 8 * (patch // 4), 8 * (patch % 4)
            pixels = image[:, y : y + 8, x : x + 8].permute(1, 2, 0).flatten()
            expected.append((patches[patch] - pixels).square().mean())
    assert len(expected) == 4 * 12
    found = objective(batch)["reconstruction"]
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_reconstruction_is_added_by_its_weight_and_trains_everything(teacher: Path) -> None:
    small = Reconstruction(weight=0.5, decoder_width=16, decoder_depth=1, decoder_heads=2)
    objective = built(teacher, mask_ratio=0.75, reconstruction=small)
    losses = objective(batch_of(objective))
    parts = losses["qk"] + losses["vv"] + 0.5 * losses["reconstruction"]
    assert losses["total"].item() == pytest.approx(parts.item(), rel=1e-6)
    assert 0.5 < losses["reconstruction"].item() < 3  # pixels normalised patch by patch
    losses["total"].backward()
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    made = objective.export()
    assert made.fresh == ()
    assert made.last_trained_block == 3
    assert not [name for name in made.weights if "decoder" in name]


# Stochastic depth.


def test_the_teacher_drops_paths_only_where_the_recipe_says_so(teacher: Path) -> None:
    images = torch.rand(8, 3, 32, 32)
    still = ViTTeacher(source=str(teacher)).load(STUDENT, CPU).train()
    assert torch.equal(still(images)["q"], still(images)["q"])
    dropping = ViTTeacher(source=str(teacher), drop_path=0.5).load(STUDENT, CPU)
    assert not dropping.net.training
    torch.manual_seed(1)
    first, second = dropping(images)["q"], dropping(images)["q"]
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(dropping(images)["q"], first)
    dropping.train(False)
    assert torch.equal(dropping(images)["q"], still(images)["q"])


def test_reading_a_network_is_reading_its_taps() -> None:
    vit = build_vit(STUDENT, seed=0).eval()
    images = torch.randn(2, 3, 32, 32)
    found = read(vit, images, ["q", "block", "output"], block=1)
    assert torch.equal(found["block"], vit.blocks[0](embed(vit, images)))
    assert torch.equal(found["q"], taps(vit, images, [Tap(1, "q")])[Tap(1, "q")])


# What does not fit.


@pytest.mark.parametrize(
    ("method", "what", "where", "fix"),
    [
        ({"targets": ()}, "nothing to learn", "method.targets", "method.targets=[qk,vv]"),
        ({"targets": ("qk", "qk")}, "named twice", "qk, qk", "each target once"),
        ({"targets": ("q",), "softmax": False}, "no relation", "method.softmax", "such as qk"),
        ({"mask_ratio": 0.99}, "no visible patch of 16", "method.mask_ratio", "lower"),
        ({"full_teacher": True}, "without a mask", "method.full_teacher", "mask_ratio=0.75"),
        (
            {"reconstruction": Reconstruction(weight=1.0)},
            "without a mask",
            "method.reconstruction.weight",
            "mask_ratio=0.75",
        ),
        (
            {"mask_ratio": 0.5, "reconstruction": Reconstruction(weight=1.0, decoder_heads=7)},
            "7 heads",
            "method.reconstruction.decoder_width",
            "multiple",
        ),
    ],
)
def test_senseless_choices_are_refused_before_the_teacher_is_fetched(
    method: dict[str, Any], what: str, where: str, fix: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        built(tmp_path / "no teacher here", **method)
    error = caught.value
    assert what in error.what
    assert where in error.where
    assert fix in error.fix


def test_widths_need_common_heads_for_relations_alone(tmp_path: Path) -> None:
    odd = make_model(tmp_path / "odd", replace(TEACHER, width=44, heads=11))
    with pytest.raises(UsageError, match="11 relation heads do not divide both widths"):
        built(odd)
    assert (
        built(odd, targets=("q", "class_token"))(batch_of(built(odd, targets=("q",))))["total"] > 0
    )


def test_a_branch_that_was_never_trained_teaches_nothing(teacher: Path, tmp_path: Path) -> None:
    made = built(teacher).export()
    card = Card(name="s", method="tinymim", heads=3, last_trained_block=2, relation_heads=6)
    student = tmp_path / "s"
    save_model(student, STUDENT, made.weights, card)
    with pytest.raises(UsageError, match="the ffn of block 3 of this teacher was never") as caught:
        built(student, targets=("ffn",))
    assert "method.teacher.block=2" in caught.value.fix
    assert built(student, targets=("ffn",), block=2).teacher.record.block == 2


def test_after_attention_alone_the_mlp_teaches_nothing(teacher: Path, tmp_path: Path) -> None:
    made = built(teacher, targets=("attention",)).export()
    facts: dict[str, Any] = {"last_trained_block": 3, "fresh_parameters": [*made.fresh]}
    card = Card(name="s", method="tinymim", heads=3, **facts)
    student = tmp_path / "s"
    save_model(student, STUDENT, made.weights, card)
    with pytest.raises(UsageError, match="the ffn of block 3 of this teacher was never"):
        built(student, targets=("attention", "ffn"))
    assert built(student, targets=("attention",)).teacher.record.block == 3


def test_the_output_is_recorded_as_what_leaves_the_last_block(teacher: Path) -> None:
    assert built(teacher, block=1, targets=("output",)).teacher.record.block == TEACHER.depth
    assert built(teacher, block=1, targets=("output", "q")).teacher.record.block == 1
