"""Device-side views: per image what torchvision does, batch or no batch."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms.v2 import functional as F

from pretrain.views import (
    STRONG_VIEW_DRAWS,
    TWO_VIEW_DRAWS,
    color_jitter,
    flip,
    strong_view,
    two_views,
    zoom,
)

OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
ORDERS = [(0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0)]


def by_torchvision(image: torch.Tensor, strength: tuple, draws: torch.Tensor) -> torch.Tensor:
    for operation in ORDERS[int(draws[3] * 6)]:
        low, high = max(0.0, 1 - strength[operation]), 1 + strength[operation]
        factor = low + (high - low) * float(draws[operation])
        image = OPERATIONS[operation](image, factor)
    return image


@pytest.mark.parametrize("strength", [(0.4, 0.4, 0.4), (0.0, 0.8, 0.1), (1.5, 0.0, 3.0)])
def test_jitter_equals_torchvision_per_image(strength: tuple[float, float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(24, 3, 9, 9, generator=generator)
    draws = torch.rand(24, 4, generator=generator)
    draws[:, 3] = (torch.arange(24) % 6 + 0.5) / 6  # every order, four times
    jittered = color_jitter(images, strength, draws)
    expected = torch.stack(
        [by_torchvision(i, strength, d) for i, d in zip(images, draws, strict=True)]
    )
    assert torch.allclose(jittered, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(jittered, images, atol=1e-2)


def test_the_six_orders_are_all_different() -> None:
    assert sorted(ORDERS) == sorted(itertools.permutations(range(3)))
    images = torch.rand(1, 3, 8, 8).expand(6, 3, 8, 8)
    draws = torch.full((6, 4), 0.9)
    draws[:, 3] = (torch.arange(6) + 0.5) / 6
    jittered = color_jitter(images, (0.8, 0.8, 0.8), draws)
    for one, other in itertools.combinations(jittered, 2):
        assert not torch.equal(one, other)


@settings(max_examples=30, deadline=None)
@given(draw=st.floats(0, 1, exclude_max=True, width=32))
def test_any_draw_gives_an_image(draw: float) -> None:
    jittered = color_jitter(torch.rand(1, 3, 4, 4), (0.4, 0.4, 0.4), torch.full((1, 4), draw))
    assert jittered.isfinite().all()
    assert jittered.min() >= 0
    assert jittered.max() <= 1


def test_a_sample_looks_the_same_in_any_batch() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    draws = torch.rand(5, TWO_VIEW_DRAWS)
    together = two_views(images, draws, (0.4, 0.4, 0.4))
    for i in range(5):
        alone = two_views(images[i : i + 1], draws[i : i + 1], (0.4, 0.4, 0.4))
        for view, single in zip(together, alone, strict=True):
            assert torch.allclose(view[i], single[0], atol=1e-6)


def test_flip_follows_the_draw() -> None:
    images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    flipped = flip(images, torch.tensor([0.49, 0.5]))
    assert flipped.dtype == torch.uint8
    assert torch.equal(flipped[0], images[0].flip(-1))
    assert torch.equal(flipped[1], images[1])


def test_views_share_the_flip_and_only_the_student_is_jittered() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    draws = torch.rand(4, TWO_VIEW_DRAWS)
    draws[:, 0] = torch.tensor([0.1, 0.9, 0.2, 0.8])
    student, teacher = two_views(images, draws, (0.4, 0.4, 0.4))
    assert torch.equal(teacher, flip(images, draws[:, 0]) / 255)
    assert not torch.allclose(student, teacher, atol=1e-2)
    still, _ = two_views(images, draws, (0.0, 0.0, 0.0))
    assert torch.allclose(still, teacher, atol=1e-5)


def test_no_data_dependent_python() -> None:
    """The meta device has no data: any look at a value fails."""
    images = torch.empty(2, 3, 8, 8, dtype=torch.uint8, device="meta")
    draws = torch.empty(2, TWO_VIEW_DRAWS, device="meta")
    student, teacher = two_views(images, draws, (0.4, 0.4, 0.4))
    assert student.shape == teacher.shape == (2, 3, 8, 8)
    assert student.dtype == teacher.dtype == torch.float32


def test_zoom_is_a_crop_brought_back_to_full_size() -> None:
    """Torch's own affine grid says the same, and half precision around it changes nothing."""
    images = torch.rand(3, 3, 32, 32)
    draws = torch.tensor([[0.0, 0.0, 0.0], [0.5, 1.0, 0.25], [1.0, 0.3, 0.9]])
    found = zoom(images, 0.5, draws)
    for image, (a, b, c), view in zip(images, draws.tolist(), found, strict=True):
        side = 0.5 + 0.5 * a
        x, y = ((1 - side) * (2 * d - 1) for d in (b, c))
        place = torch.tensor([[[side, 0, x], [0, side, y]]])
        grid = nn.functional.affine_grid(place, [1, 3, 32, 32], align_corners=False)
        expected = nn.functional.grid_sample(
            image[None], grid, padding_mode="border", align_corners=False
        )
        torch.testing.assert_close(view[None], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], images[2], atol=1e-5, rtol=1e-5)  # the whole image
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(zoom(images, 0.5, draws), found)


def test_zoom_at_an_even_place_is_the_pixels_themselves() -> None:
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    left = zoom(ramp, 0.5, torch.tensor([[0.0, 0.0, 0.0]]))
    assert left[0, 0, 0].min() == 0
    torch.testing.assert_close(left[0, 0, 0, 1:7], torch.arange(1, 7) / 2 - 0.25)
    right = zoom(ramp, 0.5, torch.tensor([[0.0, 1.0, 0.0]]))
    assert right[0, 0, 0].max() == 7


def test_strong_view_greys_and_flips_by_its_own_draws() -> None:
    images = torch.rand(2, 3, 16, 16)
    draws = torch.full((2, STRONG_VIEW_DRAWS), 0.9)
    draws[:, 0] = 1.0  # no zoom
    draws[0, 3], draws[1, -1] = 0.1, 0.1  # the first is flipped, the second grey
    still = {"least_side": 0.5, "jitter": (0.0, 0.0, 0.0), "grey": 0.5}
    view = strong_view(images, draws, **still)  # type: ignore[arg-type]
    torch.testing.assert_close(view[0], images[0].flip(-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(view[1, 0], view[1, 2])
    assert not torch.equal(view[0, 0], view[0, 2])
