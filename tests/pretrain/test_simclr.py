"""SimCLR: what resembles what, and that only the trained stage moves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import CONVNET
from runs import TINY, last_words, words, zoo
from safetensors.torch import load_file

from pretrain.methods.simclr import Contrast, SimCLR, contrastive_loss
from pretrain.objective import Batch
from pretrain.teachers.tokens import open_tokens
from zoo.errors import UsageError
from zoo.folder import load_convnet

CPU = torch.device("cpu")
METHOD = SimCLR(projection_width=8, stride=16)


def build(method: SimCLR = METHOD) -> Contrast:
    return method.build(CONVNET, seed=0, device=CPU)


def batch_of(size: int, objective: Contrast) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, 64, 64), dtype=torch.uint8, generator=generator)
    draws = torch.rand(size, objective.draws, generator=generator)
    return Batch(images=images, indices=torch.arange(size), draws=draws)


def slow_loss(one: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. 1, view by view."""
    views = [*one, *other]
    size = len(one)
    losses = []
    for i, view in enumerate(views):
        similar = [F.cosine_similarity(view, v, dim=0) / temperature for v in views]
        others = torch.stack([s for k, s in enumerate(similar) if k != i])
        losses.append(others.logsumexp(0) - similar[(i + size) % (2 * size)])
    return torch.stack(losses).mean()


def test_loss_is_the_papers() -> None:
    one, other = torch.randn(2, 5, 8)
    loss, _ = contrastive_loss(one, other, 0.3)
    torch.testing.assert_close(loss, slow_loss(one, other, 0.3))


def test_twins_that_agree_cost_nothing_and_are_found() -> None:
    one = torch.eye(6)
    loss, agreement = contrastive_loss(one, one, 0.01)
    assert loss < 1e-6
    assert agreement == 1
    _, agreement = contrastive_loss(one, one.roll(1, 0), 0.01)
    assert agreement == 0


def test_two_views_of_one_image_differ_and_need_no_generator() -> None:
    objective = build()
    batch = batch_of(4, objective)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(objective(batch)["total"].item())
    assert losses[0] == losses[1]
    still = build(replace(METHOD, least_side=1.0, jitter=(0.0, 0.0, 0.0), grey=0.0))
    same = batch._replace(draws=torch.full_like(batch.draws, 0.9))
    assert still(same)["agreement"] == 1
    assert objective(batch)["agreement"] < 1


def test_what_lies_beyond_the_stage_stays_and_the_rest_learns() -> None:
    objective = build()
    before = {n: p.clone() for n, p in objective.trunk.net.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(12):
        loss = objective(batch_of(8, objective))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = dict(objective.trunk.net.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    fresh = set(objective.export().fresh)
    assert fresh == {name for name in before if name.startswith("layer4.")}
    assert moved == set(before) - fresh


def test_half_precision_does_not_reach_the_loss() -> None:
    one, other = torch.randn(2, 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = contrastive_loss(one, other, 0.1)
    assert half == contrastive_loss(one, other, 0.1)[0]


def test_one_image_has_nothing_to_contrast_with() -> None:
    objective = build()
    with pytest.raises(UsageError, match="two images"):
        objective(batch_of(1, objective))


def test_averaged_weights_are_refused_with_running_statistics(photos: Path, tmp_path: Path) -> None:
    settings = {key: value for key, value in TINY.items() if not key.startswith("student")}
    settings |= {"student.image_size": "32", "training.optim.ema_decay": "0.9"}
    assert zoo(words("demo-convnet", photos, tmp_path / "run", settings)) == 2
    assert "running statistics" in last_words(tmp_path / "run")["error"]


def test_divergence_saves_the_running_statistics_of_the_last_good_step(
    photos: Path, tmp_path: Path
) -> None:
    """They move in the forward pass, also in that of the steps that nobody takes."""
    tiny = {key: value for key, value in TINY.items() if not key.startswith("student")}
    tiny |= {"student.image_size": "32", "training.warmup_steps": "2"}
    tiny |= {"training.optim.lr_per_256": "1e30", "training.log_every_steps": "7"}
    tiny |= {"training.save_every_steps": "100"}
    assert zoo(words("demo-convnet", photos, tmp_path / "run", tiny)) == 7
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    step = int(saved.name.removeprefix("step-"))
    tensors = load_file(saved / "model.safetensors")
    assert all(torch.isfinite(t).all() for name, t in tensors.items() if "running" in name)
    # Two micro-batches a step.
    assert tensors["trunk.net.bn1.num_batches_tracked"] == 2 * step


def test_a_stride_that_it_has_not_is_refused() -> None:
    with pytest.raises(UsageError, match="no stage of stride 7"):
        build(replace(METHOD, stride=7))


def test_a_run_ends_in_a_convnet_that_teaches(photos: Path, tmp_path: Path) -> None:
    """The verb, the card's stage, and the running statistics in the export."""
    out = tmp_path / "run"
    settings = {key: value for key, value in TINY.items() if not key.startswith("student")}
    settings |= {"student.channels": "[8,12,16,20]", "student.image_size": "32"}
    assert zoo(words("demo-convnet", photos, out, settings)) == 0, last_words(out)
    model = load_convnet(out / "export")
    assert (model.stage.stride, model.stage.channels) == (16, 16)
    assert model.card is not None
    assert (model.card.heads, model.card.method, model.card.stride) == (None, "simclr", 16)
    assert "convolutional network" in (out / "export" / "README.md").read_text()
    # 14 steps of two micro-batches each.
    assert model.net.get_buffer("bn1.num_batches_tracked") == 28
    teacher = open_tokens(str(out / "export"), image_size=48)
    assert teacher(torch.rand(2, 3, 48, 48)).shape == (2, 9, 16)
