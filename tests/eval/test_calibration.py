"""Calibration errors and AURRA, against the published procedure written out step by step."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.calibration import aurra, rms_calibration_error, rms_calibration_error_as_published


def step_by_step(confidence: np.ndarray, correct: np.ndarray, size: int, *, last: bool) -> float:
    """Sort, cut into bins, the last taking the rest; the published loop leaves that one out."""
    pairs = sorted(zip(confidence.tolist(), correct.tolist(), strict=True), key=lambda p: p[0])
    bins = [pairs[i * size : (i + 1) * size] for i in range(len(pairs) // size)]
    bins[-1] += pairs[len(bins) * size :]
    total = 0.0
    for chosen in bins if last else bins[:-1]:
        sure = math.fsum(p[0] for p in chosen) / len(chosen)
        right = sum(p[1] for p in chosen) / len(chosen)
        total += len(chosen) / len(pairs) * (sure - right) ** 2
    return 100 * math.sqrt(total)


@given(seed=st.integers(0, 2**31), count=st.integers(14, 90), size=st.integers(1, 7))
def test_both_forms_are_their_procedures(seed: int, count: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(count, np.float32), rng.random(count) < 0.6
    right = rms_calibration_error(confidence, correct, bin_size=size)
    published = rms_calibration_error_as_published(confidence, correct, bin_size=size)
    assert right == pytest.approx(step_by_step(confidence, correct, size, last=True))
    assert published == pytest.approx(step_by_step(confidence, correct, size, last=False))
    assert published is not None
    assert published <= right


def test_by_hand() -> None:
    confidence = np.array([0.9, 0.1, 0.5, 0.3, 0.7])  # bins of two: 0.1 0.3 | 0.5 0.7 0.9
    correct = np.array([False, False, True, False, True])
    right = rms_calibration_error(confidence, correct, bin_size=2)
    published = rms_calibration_error_as_published(confidence, correct, bin_size=2)
    assert right == pytest.approx(100 * math.sqrt(2 / 5 * 0.2**2 + 3 / 5 * (0.7 - 2 / 3) ** 2))
    assert published == pytest.approx(100 * math.sqrt(2 / 5 * 0.2**2))
    assert aurra(confidence, correct) == pytest.approx(
        100 * (0 + 1 / 2 + 2 / 3 + 2 / 4 + 2 / 5) / 5
    )


@pytest.mark.parametrize("count", [1, 99, 100, 199])
def test_fewer_than_two_bins(count: int) -> None:
    confidence, correct = np.full(count, 0.75), np.ones(count, bool)
    assert rms_calibration_error(confidence, correct, bin_size=100) == pytest.approx(25)
    assert rms_calibration_error_as_published(confidence, correct, bin_size=100) is None


def test_a_network_as_sure_as_it_is_right() -> None:
    confidence, correct = np.full(200, 0.5), np.arange(200) % 2 == 0
    assert rms_calibration_error(confidence, correct, bin_size=100) == pytest.approx(0)
    assert aurra(np.linspace(0.5, 1, 10), np.ones(10, bool)) == pytest.approx(100)


def test_aurra_rewards_being_sure_where_right() -> None:
    correct = np.arange(100) >= 50
    assert aurra(np.linspace(0, 1, 100), correct) > 80
    assert aurra(np.linspace(1, 0, 100), correct) < 20
