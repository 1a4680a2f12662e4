"""Colours of classes."""

import numpy as np
import pytest

from eval.segmentation.colours import ade20k_facts, distinct_colours, lab_of

# Of the corners of sRGB under D65.
CIELAB = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
}


@pytest.mark.parametrize("colour", CIELAB)
def test_cielab(colour: tuple[int, int, int]) -> None:
    assert lab_of(np.array([colour]))[0] == pytest.approx(CIELAB[colour], abs=0.02)


def distances(colours: np.ndarray) -> np.ndarray:
    """(C,) from each colour to the nearest other, in CIELAB."""
    lab = lab_of(colours)
    apart = np.linalg.norm(lab[:, None] - lab, axis=2)
    np.fill_diagonal(apart, np.inf)
    return apart.min(axis=1)


@pytest.mark.parametrize(("count", "least"), [(3, 99), (11, 45), (20, 35), (60, 20), (254, 10)])
def test_colours_are_far_from_each_other_and_from_black_and_white(count: int, least: float) -> None:
    ends = np.array([[0, 0, 0], [255, 255, 255]])
    assert distances(np.concatenate([distinct_colours(count), ends])).min() > least


def test_more_classes_leave_the_colours_of_the_first() -> None:
    many = distinct_colours(254)
    assert (many.shape, many.dtype) == ((254, 3), np.uint8)
    assert np.array_equal(many[:11], distinct_colours(11))
    assert distinct_colours(0).shape == (0, 3)
    # The same on every machine: pictures of two of them are compared.
    assert many[:4].tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 0], [255, 68, 187]]


def test_ade20k() -> None:
    facts = ade20k_facts()
    assert facts is not None
    names, colours = facts
    assert (len(names), colours.shape, colours.dtype) == (150, (150, 3), np.uint8)
    assert (names[0], names[7], names[149]) == ("wall", "bed", "flag")
    assert colours[[0, 2]].tolist() == [[120, 120, 120], [6, 230, 230]]
