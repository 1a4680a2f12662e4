"""Masks of whole cells, and a decoder's way back to places."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pretrain.masked import CellMask, mask_order, patch_order, patches_of_cells
from zoo.errors import UsageError
from zoo.vit import ViTConfig


def vit(patch: int, image_size: int) -> ViTConfig:
    return ViTConfig(width=24, depth=1, heads=3, patch=patch, image_size=image_size)


def test_the_papers_counts() -> None:
    mask = CellMask(student=vit(16, 224), unit=32, ratio=0.6)
    assert (mask.cells, mask.masked, mask.visible, mask.visible_patches) == (49, 30, 19, 76)
    small = CellMask(student=vit(8, 96), unit=16, ratio=0.6)
    assert (small.cells, small.masked, small.visible_patches) == (36, 22, 56)


@given(st.integers(1, 14), st.floats(0.01, 0.99))
def test_the_masked_share_is_rounded_up_and_no_further(side: int, ratio: float) -> None:
    cells = side**2
    masked = math.ceil(round(cells * ratio, 6))
    assume(1 <= masked < cells)
    mask = CellMask(student=vit(4, 4 * side), unit=4, ratio=ratio)
    assert mask.masked == masked
    assert mask.masked + mask.visible == cells


def test_a_round_ratio_is_not_rounded_up_by_arithmetic() -> None:
    assert 0.55 * 100 > 55
    assert CellMask(student=vit(4, 40), unit=4, ratio=0.55).masked == 55


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4))
def test_the_mask_is_constant_inside_each_cell(seed: int, side: int, across: int) -> None:
    grid = side * across
    patches = patches_of_cells(grid, side)
    draws = torch.rand(3, across**2, generator=torch.Generator().manual_seed(seed))
    order = patch_order(draws, patches)
    assert all(sorted(row) == list(range(grid**2)) for row in order.tolist())
    for visible_cells in range(across**2):
        hidden = torch.ones(3, grid**2).scatter(1, order[:, : visible_cells * side**2], 0.0)
        cells = hidden.view(3, across, side, across, side)
        assert torch.equal(cells.amin((2, 4)), cells.amax((2, 4)))
        assert cells.amin((2, 4)).sum((1, 2)).tolist() == [across**2 - visible_cells] * 3
    assert torch.equal(patch_order(draws[1:2], patches)[0], order[1])
    assert torch.equal(mask_order(draws), draws.argsort(dim=1, stable=True))


@pytest.mark.parametrize(("patch", "size", "unit"), [(16, 224, 48), (16, 224, 24), (8, 96, 36)])
def test_cells_that_do_not_align_are_refused_with_those_that_do(
    patch: int, size: int, unit: int
) -> None:
    with pytest.raises(UsageError) as caught:
        CellMask(student=vit(patch, size), unit=unit, ratio=0.6)
    named = [int(n) for n in caught.value.fix.split("one of ")[1].split(", or")[0].split(", ")]
    assert named[0] == patch
    assert all(n % patch == 0 and size % n == 0 for n in named)
    for fitting in named:
        CellMask(student=vit(patch, size), unit=fitting, ratio=0.5)


def test_one_cell_cannot_be_half_hidden() -> None:
    with pytest.raises(UsageError, match="no visible cell of 1") as caught:
        CellMask(student=vit(8, 32), unit=32, ratio=0.5)
    assert "smaller mask_unit" in caught.value.fix
