"""MAE's linear probe: its crop, its head, and a backbone that stays what it is."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_convnet
from photos import make_photos

from eval.backbone import open_backbone
from eval.linear import (
    Head,
    LinearProbe,
    ProbeCrops,
    SingleDrawCrop,
    linear_recipe,
    settings_of,
    top_classes,
)
from eval.probe_protocols import PROBE_PROTOCOLS, LinearRules
from pretrain.distributed import World
from pretrain.index import open_index
from pretrain.objective import Batch
from zoo.errors import UsageError

CPU = torch.device("cpu")
RULES = cast(LinearRules, PROBE_PROTOCOLS["linear@1"])


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_one_draw_is_always_within_the_image(height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    crop = SingleDrawCrop(image_size=8, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    pixels = np.zeros((height, width, 3), np.uint8)
    y, x, h, w = crop.box(pixels)
    assert 0 <= y <= y + h <= height
    assert 0 <= x <= x + w <= width
    assert h >= 1
    assert w >= 1
    assert crop(pixels).shape == (3, 8, 8)


def test_the_draw_is_of_area_and_ratio_and_is_clipped() -> None:
    torch.manual_seed(0)
    crop = SingleDrawCrop(image_size=8, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    square, strip = np.zeros((400, 400, 3), np.uint8), np.zeros((400, 100, 3), np.uint8)
    boxes = np.array([crop.box(square) for _ in range(4000)])
    inside = boxes[(boxes[:, 2] < 400) & (boxes[:, 3] < 400)]
    share = inside[:, 2] * inside[:, 3] / 400**2
    assert 0.08 - 0.01 < share.min() < 0.1
    assert abs(np.median(share) - 0.5) < 0.1
    ratio = np.log(inside[:, 3] / inside[:, 2])
    assert np.abs(ratio).max() < np.log(4 / 3) + 0.02
    assert abs(ratio.mean()) < 0.02
    # Nothing is drawn again: what is too wide for a strip is cut to it, and often.
    cut = np.array([crop.box(strip) for _ in range(4000)])
    assert (cut[:, 3] == 100).mean() > 0.6
    assert cut[cut[:, 3] == 100][:, 2].max() > 150


def test_a_probe_crops_so_at_the_networks_size() -> None:
    crop = ProbeCrops(source="folder:x").crop(48)
    assert isinstance(crop, SingleDrawCrop)
    assert (crop.image_size, crop.scale) == (48, (0.08, 1.0))


def test_the_norm_has_no_affine_and_the_head_begins_small() -> None:
    head = Head(64, 10, seed=3)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    assert head.norm.eps == 1e-6
    assert head.linear.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not head.linear.bias.any()
    features = 5 + 3 * torch.randn(32, 64)
    normed = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(head(features), head.linear(normed), atol=1e-5, rtol=1e-4)


def probe_on(folder: Path) -> LinearProbe:
    backbone = open_backbone(str(make_convnet(folder)), device=CPU)
    return LinearProbe(backbone, "mean", 3, seed=0)


def batch_of(count: int, draw: float = 0.9) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
        indices=torch.arange(count),
        draws=torch.full((count, 1), draw),
        labels=torch.arange(count) % 3,
    )


def test_the_backbone_never_moves(tmp_path: Path) -> None:
    """A convnet's running statistics would, in training mode."""
    probe = probe_on(tmp_path / "convnet")
    images01 = batch_of(4).images / 255
    before = probe.backbone.pool(images01, "mean")
    probe.train()
    for _ in range(3):
        probe(batch_of(8))["total"].backward()
    assert torch.equal(probe.backbone.pool(images01, "mean"), before)
    assert {name for name, _ in probe.named_parameters()} == {
        "head.linear.weight",
        "head.linear.bias",
    }
    assert probe.head.norm.running_mean is not None
    assert probe.head.norm.running_mean.any()
    assert set(probe.state_dict()) == {
        *("head.linear.weight", "head.linear.bias", "head.norm.running_mean"),
        *("head.norm.running_var", "head.norm.num_batches_tracked"),
    }


def test_the_loss_is_that_of_mirrored_images(tmp_path: Path) -> None:
    probe = probe_on(tmp_path / "convnet")
    batch = batch_of(6, draw=0.1)
    mirrored = batch._replace(images=batch.images.flip(3), draws=torch.full((6, 1), 0.9))
    assert torch.equal(probe(batch)["total"], probe(mirrored)["total"])
    pooled = probe.backbone.pool(mirrored.images / 255, "mean")
    assert batch.labels is not None
    expected = F.cross_entropy(probe.head(pooled), batch.labels)
    torch.testing.assert_close(probe(batch)["total"], expected)


def test_the_answer_is_by_running_statistics_and_ties_go_to_the_lower_class() -> None:
    head = Head(2, 4, seed=0)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        assert head.norm.running_mean is not None
        head.norm.running_mean.copy_(torch.tensor([10.0, 0.0]))
    found, sure = top_classes(head.state_dict(), [torch.tensor([[11.0, 3.0], [12.0, -1.0]])])
    assert found.tolist() == [[2, 0, 1, 3], [0, 1, 3, 2]]
    logits = torch.tensor([[1.0, 1.0, 3.0, 0.0], [2.0, 2.0, -1.0, 0.0]])
    torch.testing.assert_close(sure, logits.softmax(1).amax(1))


def recipe_for(model: Path, photos: Path, *, ranks: int = 1) -> Any:
    backbone = open_backbone(str(model), device=CPU)
    return linear_recipe(
        RULES,
        backbone,
        str(model),
        open_index(photos),
        pooling="mean",
        world=World(device=CPU, size=ranks),
        workers=0,
    )


def test_batch_and_rate_follow_the_number_of_images(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=12)
    model = make_convnet(tmp_path / "convnet")
    said = settings_of(recipe_for(model, photos, ranks=4))
    assert said == {
        "pooling": "mean",
        "epochs": 90,
        "batch": 32,
        "norm_batch": 8,
        "lr": 6.4,
    }
    with pytest.raises(UsageError, match="among 3 ranks"):
        recipe_for(model, photos, ranks=3)
    with pytest.raises(UsageError, match="among 32 ranks"):
        recipe_for(model, photos, ranks=32)
