"""Img2Vec: what is hidden, what is compared with what, and that the teacher stays as it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from models import CONVNET, make_convnet, make_model

from pretrain.masked import patch_order, patches_of_cells
from pretrain.methods.img2vec import Img2Vec, MaskedFeaturePrediction
from pretrain.objective import Batch
from pretrain.teachers.tokens import TokenTeacher
from zoo.card import Card
from zoo.convnet import empty_convnet, stage_at
from zoo.errors import UsageError
from zoo.folder import save_model
from zoo.images import normalise
from zoo.vit import ViTConfig

CPU = torch.device("cpu")
# Patches of 8 px, a teacher's cells of 16 px: 2 x 2 patches each, 3 x 3 cells.
STUDENT = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=48)


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_convnet(tmp_path_factory.mktemp("models") / "convnet")


@pytest.fixture(scope="module")
def method(convnet: Path) -> Img2Vec:
    return Img2Vec(
        teacher=TokenTeacher(source=str(convnet), stride=16),
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        head_hidden=32,
    )


def build(method: Img2Vec, student: ViTConfig = STUDENT, **changes: Any) -> MaskedFeaturePrediction:
    return replace(method, **changes).build(student, seed=0, device=CPU)


def batch_of(size: int, objective: MaskedFeaturePrediction, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    side = objective.config.image_size
    images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    draws = torch.rand(size, objective.draws, generator=generator)
    draws[:, 0] = 0.9  # unflipped
    return Batch(images=images, indices=torch.arange(size), draws=draws)


def order_of(batch: Batch, objective: MaskedFeaturePrediction) -> torch.Tensor:
    return patch_order(batch.draws[:, 1:], objective.patches_of_mask)


def hidden_of(batch: Batch, objective: MaskedFeaturePrediction) -> torch.Tensor:
    """(B, P) bool: the masked patches."""
    order = order_of(batch, objective)
    hidden = torch.ones(order.shape, dtype=torch.bool)
    return hidden.scatter(1, order[:, : objective.mask.visible_patches], False)


def repaint(images: torch.Tensor, patches: torch.Tensor, patch: int) -> torch.Tensor:
    """The images with the patches (B, P) bool inverted."""
    grid = images.shape[-1] // patch
    pixels = patches.view(-1, 1, grid, grid).float()
    return torch.where(F.interpolate(pixels, scale_factor=patch) > 0, 255 - images, images)


def timms(folder: Path | str) -> Any:
    """What timm makes of a model folder."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()


def test_encoder_sees_the_visible_patches_alone(method: Img2Vec) -> None:
    objective = build(method)
    seen: list[torch.Size] = []
    objective.encoder.blocks[0].register_forward_hook(
        lambda _m, args, _o: seen.append(args[0].shape)
    )
    objective(batch_of(3, objective))
    assert (objective.mask.cells, objective.mask.masked) == (9, 6)
    assert seen == [(3, 1 + 12, 24)]


def test_hidden_pixels_reach_the_loss_through_the_teacher_alone(method: Img2Vec) -> None:
    """With the teacher's map held fixed, hidden pixels change neither loss."""
    objective = build(method)
    batch = batch_of(2, objective)
    fixed = objective.teacher(batch.images / 255)
    objective.__dict__["teacher"] = lambda _: fixed
    hidden = hidden_of(batch, objective)
    losses = [
        objective(batch._replace(images=repaint(batch.images, change, 8)))
        for change in (hidden & ~hidden, hidden, ~hidden)
    ]
    for name in ("patch", "global"):
        assert losses[0][name] == losses[1][name]
        assert losses[0][name] != losses[2][name]


@pytest.mark.parametrize("grid", ["pool", "replicate"])
def test_patch_loss_ignores_predictions_at_visible_places(method: Img2Vec, grid: str) -> None:
    objective = build(method, grid=grid)
    batch = batch_of(2, objective)
    order, hidden = order_of(batch, objective), hidden_of(batch, objective)
    features = torch.randn(2, 9, 16)
    decoded = torch.randn(2, 36, 16)
    changed = [torch.where(m[..., None], decoded + 1, decoded) for m in (~hidden, hidden)]
    losses = [objective.patch_loss(d, order, features) for d in (decoded, *changed)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    everywhere = build(method, grid=grid, positions="all")
    losses = [everywhere.patch_loss(d, order, features) for d in (decoded, changed[0])]
    assert losses[0] != losses[1]


def slow_patch_loss(
    objective: MaskedFeaturePrediction, decoded: torch.Tensor, hidden: torch.Tensor, target: Any
) -> torch.Tensor:
    """Cell by cell, patch by patch, as the words have it."""
    replicate = objective.method.grid == "replicate"
    errors: list[list[torch.Tensor]] = [[] for _ in decoded]
    for b, k in ((b, k) for b in range(len(decoded)) for k in range(target.shape[1])):
        patches = [int(p) for p in objective.patches_of_cell[k] if hidden[b, p]]
        groups = [[p] for p in patches] if replicate else [patches] if patches else []
        for group in groups:
            guess = objective.patch_head(torch.stack([decoded[b, p] for p in group]).mean(0))
            error = (guess - target[b, k]).abs()
            beta = objective.method.beta
            near = error.square() / (2 * beta)
            errors[b].append(torch.where(error < beta, near, error - beta / 2).mean())
    return torch.stack([torch.stack(image).mean() for image in errors]).mean()


@pytest.mark.parametrize("grid", ["pool", "replicate"])
@pytest.mark.parametrize("unit", [None, 8, 48 // 2])
def test_patch_loss_is_what_it_says(method: Img2Vec, grid: str, unit: int | None) -> None:
    """Masks as large as a teacher's cell, smaller, and not aligned with it."""
    objective = build(method, grid=grid, mask_unit=unit, beta=0.7)
    batch = batch_of(3, objective)
    features = 5 * torch.randn(3, 9, 16)
    decoded = torch.randn(3, 36, 16)
    found = objective.patch_loss(decoded, order_of(batch, objective), features)
    target = F.layer_norm(features, (16,), eps=1e-6)
    expected = slow_patch_loss(objective, decoded, hidden_of(batch, objective), target)
    torch.testing.assert_close(found, expected)


def test_pooled_loss_is_below_the_replicated_one_with_a_linear_head(method: Img2Vec) -> None:
    """By convexity: a cell's mean errs no more than its patches do on average."""
    pooled = build(method, patch_head="linear")
    replicated = build(method, patch_head="linear", grid="replicate")
    batch = batch_of(4, pooled)
    features, decoded = torch.randn(4, 9, 16), torch.randn(4, 36, 16)
    order = order_of(batch, pooled)
    assert pooled.patch_loss(decoded, order, features) < replicated.patch_loss(
        decoded, order, features
    )


def test_global_target_is_the_pooled_map_and_then_scaled(method: Img2Vec) -> None:
    objective = build(method)
    features, seen = torch.rand(2, 9, 16), torch.randn(2, 13, 24)
    target = F.layer_norm(features.mean(1), (16,), eps=1e-6)
    guess = objective.global_head(seen[:, 1:].mean(1))
    expected = F.smooth_l1_loss(guess, target, beta=2)
    torch.testing.assert_close(objective.global_loss(seen, features), expected)
    moved = seen.index_fill(1, torch.tensor([0]), 7.0)  # the class token
    assert objective.global_loss(moved, features) == objective.global_loss(seen, features)


def test_total_weighs_the_parts(method: Img2Vec) -> None:
    objective = build(method)
    losses = objective(batch_of(2, objective))
    torch.testing.assert_close(losses["total"], losses["patch"] + 0.5 * losses["global"])


def test_features_are_the_mean_of_all_blocks_and_then_the_final_norm(method: Img2Vec) -> None:
    objective = build(method).eval()
    images = torch.randn(2, 3, 48, 48)
    visible = torch.arange(12).expand(2, -1)
    outputs: list[Any] = []
    for block in objective.encoder.blocks:
        block.register_forward_hook(lambda _m, _a, out: outputs.append(out))
    fused, last = objective.encode(images, visible)
    norm = objective.encoder.norm
    assert len(outputs) == 3
    torch.testing.assert_close(fused, norm((outputs[0] + outputs[1] + outputs[2]) / 3))
    torch.testing.assert_close(last, norm(outputs[2]))
    each = [F.layer_norm(x, (24,), eps=1e-6) for x in outputs]
    fused, _ = build(method, features="norm_each").encode(images, visible)
    torch.testing.assert_close(fused, norm(sum(each) / 3))
    fused, _ = build(method, features="last").encode(images, visible)
    torch.testing.assert_close(fused, norm(outputs[2]))


OFF: dict[str, Callable[[Img2Vec], Img2Vec]] = {
    "teacher": lambda m: replace(m, teacher=TokenTeacher(source="pixels")),
    "multi-block": lambda m: replace(m, features="last"),
    "norm-each": lambda m: replace(m, features="norm_each"),
    "global loss": lambda m: replace(m, global_weight=0.0),
    "global from last": lambda m: replace(m, global_features="last"),
    "mask ratio": lambda m: replace(m, mask_ratio=0.25),
    "mask unit": lambda m: replace(m, mask_unit=8),
    "decoder depth": lambda m: replace(m, decoder_depth=2),
    "replicate": lambda m: replace(m, grid="replicate"),
    "all positions": lambda m: replace(m, positions="all"),
    "raw targets": lambda m: replace(m, targets="none"),
    "whitened targets": lambda m: replace(m, targets="whiten"),
    "linear head": lambda m: replace(m, patch_head="linear"),
}


@pytest.mark.parametrize("part", OFF)
def test_each_part_is_one_override_and_every_parameter_still_learns(
    method: Img2Vec, part: str
) -> None:
    changed = OFF[part](method)
    objective = build(changed)
    losses = objective(batch_of(4, objective))
    assert losses["total"].isfinite()
    assert ("global" in losses) == bool(changed.global_weight)
    losses["total"].backward()
    for name, parameter in objective.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == parameter.requires_grad, name


def test_a_vit_teacher_is_read_one_to_one_after_its_final_norm(
    method: Img2Vec, tmp_path: Path
) -> None:
    config = ViTConfig(width=32, depth=2, heads=4, patch=8, image_size=48)
    source = str(make_model(tmp_path / "vit", config))
    objective = build(method, teacher=TokenTeacher(source=source))
    assert objective.patches_of_cell.tolist() == [[p] for p in range(36)]
    assert objective.mask.unit == 8
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        expected = timms(source).forward_features(normalise(images))[:, 1:]
    torch.testing.assert_close(objective.teacher(images), expected)
    assert objective(batch_of(2, objective))["total"].isfinite()


def test_a_convnet_teacher_is_read_after_the_stage_and_no_further(
    convnet: Path, method: Img2Vec
) -> None:
    teacher = build(method).teacher
    assert (teacher.cell, teacher.grid, teacher.width) == (16, 3, 16)
    assert not list(teacher.net.get_submodule("layer4").parameters())
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        (maps,) = timms(convnet).forward_intermediates(
            normalise(images), indices=[3], intermediates_only=True
        )
    torch.testing.assert_close(
        teacher(images), maps.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5
    )


def test_teacher_is_bit_identical_after_training(method: Img2Vec) -> None:
    objective = build(method).train()
    before = {name: t.clone() for name, t in objective.teacher.state_dict().items()}
    assert any("running_var" in name for name in before)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2, weight_decay=0.05)
    for seed in range(3):
        objective(batch_of(4, objective, seed))["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    after = objective.teacher.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any("teacher" in name for name in objective.state_dict())
    assert not any("teacher" in name for name, _ in objective.named_parameters())


def test_encoder_loads_strictly_into_timm(method: Img2Vec, tmp_path: Path) -> None:
    objective = build(method).eval()
    made = objective.export()
    card = Card(name="s", method="img2vec", heads=3, last_trained_block=made.last_trained_block)
    save_model(tmp_path / "s", STUDENT, made.weights, card)
    model = timms(tmp_path / "s")
    images = torch.randn(2, 3, 48, 48)
    every = torch.arange(36).expand(2, -1)
    with torch.no_grad():
        _, last = objective.encode(images, every)
        torch.testing.assert_close(model.forward_features(images), last)
    assert made.facts["teacher"]["stride"] == 16


def test_a_few_steps_learn_something(method: Img2Vec) -> None:
    objective = build(method)
    batch = batch_of(8, objective)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective(batch)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("ratio", [0.89, 0.95])
def test_a_mask_that_leaves_nothing_visible_is_refused(method: Img2Vec, ratio: float) -> None:
    with pytest.raises(UsageError, match="no visible cell of 9") as caught:
        build(method, mask_ratio=ratio)
    advised = float(caught.value.fix.split()[3].rstrip(","))
    assert advised == 0.8888
    assert build(method, mask_ratio=advised).mask.visible == 1
    assert build(method, mask_ratio=8 / 9).mask.visible == 1
    assert build(method, mask_ratio=0.01).mask.masked == 1


@pytest.mark.parametrize(
    ("unit", "named"), [(12, "8, 16, 24"), (40, "8, 16, 24"), (4, "8, 16, 24")]
)
def test_a_mask_unit_that_does_not_align_is_refused(method: Img2Vec, unit: int, named: str) -> None:
    with pytest.raises(UsageError, match=f"mask cells of {unit} px") as caught:
        build(method, mask_unit=unit)
    assert named in caught.value.fix


@pytest.mark.parametrize(("patch", "fit"), [(12, "student.patch=16"), (6, "student.patch=8")])
def test_patches_that_do_not_fill_a_cell_are_refused(method: Img2Vec, patch: int, fit: str) -> None:
    with pytest.raises(UsageError, match=f"whole patches of {patch} px") as caught:
        build(method, replace(STUDENT, patch=patch))
    assert fit in caught.value.fix


def test_a_vit_teacher_of_other_patches_names_the_fitting_patch(
    method: Img2Vec, tmp_path: Path
) -> None:
    config = ViTConfig(width=32, depth=1, heads=4, patch=14, image_size=28)
    teacher = TokenTeacher(source=str(make_model(tmp_path / "vit14", config)))
    student = ViTConfig(width=24, depth=1, heads=3, patch=16, image_size=224)
    with pytest.raises(UsageError, match="14 px") as caught:
        build(method, student, teacher=teacher)
    assert "student.patch=14" in caught.value.fix
    with pytest.raises(UsageError, match="do not tile an image of 48 px") as caught:
        build(method, teacher=teacher)
    assert "42 or 56" in caught.value.fix


@pytest.mark.parametrize(
    ("stride", "size", "what"),
    [
        (5, 48, "no stage of stride 5"),
        (32, 48, "cells of 32 px do not tile"),
        (16, 8, "do not tile"),
    ],
)
def test_a_stage_that_cannot_be_read_is_refused(
    method: Img2Vec, stride: int, size: int, what: str
) -> None:
    teacher = replace(method.teacher, stride=stride)
    with pytest.raises(UsageError, match=what) as caught:
        build(method, replace(STUDENT, image_size=size), teacher=teacher)
    assert "choose" in caught.value.fix


def test_a_vit_has_no_stages(method: Img2Vec, tmp_path: Path) -> None:
    source = str(make_model(tmp_path / "vit"))
    with pytest.raises(UsageError, match="no stage of stride 16"):
        build(method, teacher=TokenTeacher(source=source, stride=16))


def test_convnet_of_the_tests_has_the_stages_they_think(convnet: Path) -> None:
    net = empty_convnet(CONVNET.architecture, CONVNET.arguments)
    assert (stage_at(net, 16).channels, stage_at(net, None).channels) == (16, 20)
    assert patches_of_cells(4, 2).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
