"""What is measured of features and heads, beside the same counted one by one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eval.live_probe import NEIGHBOURS, TEMPERATURE, probe
from pretrain.observe import attention_distance, rankme


@given(
    rank=st.integers(1, 8),
    rows=st.integers(8, 40),
    seed=st.integers(0, 99),
    size=st.floats(0.01, 50),
)
def test_rankme_counts_directions(rank: int, rows: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64)).Q
        for n in (rows, 12)
    )
    even = size * left @ right.T
    assert rankme(even) == pytest.approx(rank, rel=1e-3)
    uneven = left * torch.arange(1, rank + 1) @ right.T
    assert 1 <= rankme(uneven) <= rank + 1e-3
    shares = torch.arange(1, rank + 1, dtype=torch.float64)
    shares /= shares.sum()
    expected = torch.exp(-(shares * shares.log()).sum()).item()
    assert rankme(uneven) == pytest.approx(expected, rel=1e-3)


def test_rankme_of_collapsed_features() -> None:
    assert rankme(torch.ones(9, 4)) == pytest.approx(1, abs=1e-4)


@given(seed=st.integers(0, 99), heads=st.sampled_from([1, 2, 3]), grid=st.integers(2, 5))
def test_attention_distance_one_by_one(seed: int, heads: int, grid: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = 1 + grid**2
    q, k = (3 * torch.randn(2, tokens, 6, generator=generator) for _ in range(2))
    found = attention_distance(q, k, heads=heads, patch=7)
    channels = 6 // heads
    for head in range(heads):
        part = slice(head * channels, (head + 1) * channels)
        total = 0.0
        for image in range(2):
            for i in range(grid**2):
                logits = k[image, 1:, part] @ q[image, 1 + i, part] * channels**-0.5
                away = [
                    7 * np.hypot(i // grid - j // grid, i % grid - j % grid) for j in range(grid**2)
                ]
                total += float(logits.softmax(0) @ torch.tensor(away, dtype=torch.float32))
        assert found[head].item() == pytest.approx(total / (2 * grid**2), rel=1e-4)


@given(seed=st.integers(0, 99), images=st.integers(2, 30))
def test_the_probe_leaves_each_image_out(seed: int, images: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, 5, generator=generator)
    labels = torch.randint(0, 3, (images,), generator=generator)
    units = F.normalize(features, dim=1)
    right = 0
    for i in range(images):
        others = [j for j in range(images) if j != i]
        near = sorted(others, key=lambda j: -(units[i] @ units[j]).item())[:NEIGHBOURS]
        votes = torch.zeros(3)
        for j in near:
            votes[labels[j]] += (units[i] @ units[j] / TEMPERATURE).exp()
        right += int(votes.argmax() == labels[i])
    found = probe(features, labels)
    share = right / images
    assert found["probe@1"] == pytest.approx(100 * share)
    error = 100 * (share * (1 - share) / images) ** 0.5
    assert found["probe@1_error"] == pytest.approx(error)


def test_the_probe_of_images_that_are_all_the_same() -> None:
    """None votes for itself, though others are as near."""
    labels = torch.tensor([0] * 15 + [1] * 5)
    assert probe(torch.ones(20, 4), labels)["probe@1"] in {0.0, 75.0}
