"""Intersection over union: hand-computed, in integers, and with its uncertainty."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.segmentation.iou import count, image_miou, scores_of
from zoo.errors import DataError


def mask(*rows: str) -> np.ndarray:
    """Of digits, with a dot for pixels that do not count."""
    return np.array([[255 if c == "." else int(c) for c in row] for row in rows], dtype=np.uint8)


TRUTH, GUESS = mask("0011", "02..", "0022"), mask("0001", "0244", "3322")
"""Class 3 is guessed and nowhere labelled, 4 only guessed where nothing counts."""


def test_by_hand() -> None:
    counts = count(GUESS, TRUTH, 5)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[3, 1, 3, 0, 0], [4, 1, 3, 2, 0], [5, 2, 3, 0, 0]]
    scores = scores_of(counts[None])
    assert scores.iou[:4] == pytest.approx([50, 50, 100, 0])
    assert scores.acc[:3] == pytest.approx([60, 50, 100])
    assert np.isnan(scores.iou[4])
    assert np.isnan(scores.acc[3:]).all()
    assert scores.valid == 4
    assert scores.miou == pytest.approx(200 / 4) == image_miou(counts)
    assert scores.macc == pytest.approx(210 / 3)
    assert scores.aacc == pytest.approx(70)


def test_images_are_added_up_before_anything_is_divided() -> None:
    """Three pixels right of four, one wrong of one: not the mean of 75 and 0."""
    counts = np.stack([count(mask("0000"), mask("0001"), 2), count(mask("0"), mask("1"), 2)])
    scores = scores_of(counts)
    assert scores.aacc == pytest.approx(60)
    assert scores.iou == pytest.approx([60, 0])
    assert [image_miou(one) for one in counts] == pytest.approx([37.5, 0])


def test_as_json() -> None:
    names = ["wall", "floor", "bed", "car", "sky"]
    found = scores_of(count(GUESS, TRUTH, 5)[None]).as_dict(names)
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert {k: v for k, v in again.items() if k != "per_class"} == {
        "images": 1,
        "aAcc": pytest.approx(70),
        "mAcc": pytest.approx(70),
        "mIoU": pytest.approx(50),
        "standard_error": None,
        "valid_classes": 4,
        "classes": 5,
    }
    assert list(again["per_class"]) == names
    assert again["per_class"]["wall"] == {
        "iou": 50, "acc": 60, "pixels": 5, "pixels_guessed": 4
    }  # fmt: skip
    assert again["per_class"]["car"] == {"iou": 0, "acc": None, "pixels": 0, "pixels_guessed": 2}
    assert again["per_class"]["sky"] == {"iou": None, "acc": None, "pixels": 0, "pixels_guessed": 0}
    with pytest.raises(AssertionError):
        scores_of(count(GUESS, TRUTH, 5)[None]).as_dict(["wall"] * 5)


def test_tensors_count_like_arrays() -> None:
    guess, truth = torch.from_numpy(GUESS), torch.from_numpy(TRUTH).long()
    assert (count(guess, truth, 5) == count(GUESS, TRUTH, 5)).all()
    locked = TRUTH.copy()
    locked.flags.writeable = False  # as Pillow's are
    assert (count(guess, locked, 5) == count(GUESS, TRUTH, 5)).all()


def test_more_pixels_than_single_precision_counts() -> None:
    """2²⁴ + 1 is the first integer that float32 lacks."""
    many = 2**24 + 1
    truth = np.zeros((1, many), np.uint8)
    guess = truth.copy()
    guess[0, 0] = 1
    assert count(truth, truth, 2).tolist() == [[many, 0]] * 3
    assert count(guess, truth, 2).tolist() == [[2**24, 0], [2**24, 1], [many, 0]]
    total = scores_of(np.stack([count(guess, truth, 2)] * 3)).pixels
    assert total.tolist() == [[3 * 2**24, 0], [3 * 2**24, 3], [3 * many, 0]]


def test_a_mask_of_another_size_or_with_a_foreign_label_is_refused() -> None:
    with pytest.raises(DataError, match=r"a mask of 4 × 3 pixels; its image has 3 × 4"):
        count(GUESS, TRUTH.T, 5)
    with pytest.raises(DataError, match="label 2; there are 2 classes"):
        count(np.zeros_like(TRUTH), TRUTH, 2)
    with pytest.raises(AssertionError):
        count(GUESS, np.zeros_like(GUESS), 4)


def test_without_a_label_there_is_no_score() -> None:
    nothing = count(GUESS, np.full_like(TRUTH, 255), 5)
    assert not nothing.any()
    assert math.isnan(image_miou(nothing))
    with pytest.raises(DataError, match="no pixel of 2 masks has a label"):
        scores_of(np.stack([nothing, nothing]))
    one = count(GUESS, TRUTH, 5)
    with_it = scores_of(np.stack([one, nothing]))
    assert (with_it.miou, with_it.images) == (image_miou(one), 2)
    assert math.isnan(with_it.standard_error)


def test_the_standard_error_is_that_of_resampled_images() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, (40, 9, 9)).astype(np.uint8)
    truth[:, 0] = 255
    right = rng.random((40, 1, 1)) > rng.random((40, 9, 9))
    guess = np.where(right, truth % 255, rng.integers(0, 4, truth.shape)).astype(np.uint8)
    counts = np.stack([count(g % 4, t, 4) for g, t in zip(guess, truth, strict=True)])
    scores = scores_of(counts)
    drawn = [scores_of(counts[rng.integers(0, 40, 40)]).miou for _ in range(200)]
    assert scores.standard_error == pytest.approx(np.std(drawn), rel=0.25)
    assert scores_of(counts).standard_error == scores.standard_error
    alike = scores_of(np.stack([counts[0]] * 7))
    assert alike.standard_error == pytest.approx(0, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_bounds_and_order(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 6))
    labels = st.sampled_from([*range(classes), 255])
    pairs = data.draw(
        st.lists(
            st.lists(st.tuples(st.integers(0, classes - 1), labels), min_size=1, max_size=20),
            min_size=1,
            max_size=4,
        )
    )
    maps = [np.array(pair, np.uint8).T[:, None] for pair in pairs]
    counts = np.stack([count(guess, truth, classes) for guess, truth in maps])
    assert (counts[:, 0] <= counts[:, 1:].min(1)).all()
    assert (counts[:, 1].sum(1) == counts[:, 2].sum(1)).all()
    if not counts[:, 2].any():
        return
    scores = scores_of(counts)
    assert 0 <= scores.miou <= 100
    assert scores.miou <= scores.macc + 1e-9
    assert scores_of(counts[::-1]).miou == scores.miou
    perfect = np.repeat(counts[:, 2:], 3, axis=1)
    assert scores_of(perfect).miou == scores_of(perfect).aacc == 100
