"""A convolution of a resized map, done on the small one."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.segmentation.upernet import convolve_resized


@settings(max_examples=60, deadline=None)
@given(
    small=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.sampled_from([1, 3, 5]),
    batch=st.integers(1, 3),
    align_corners=st.booleans(),
    channels_last=st.booleans(),
)
def test_it_is_resizing_and_then_convolving(
    small: tuple[int, int],
    size: tuple[int, int],
    kernel: int,
    batch: int,
    align_corners: bool,
    channels_last: bool,
) -> None:
    generator = torch.Generator().manual_seed(kernel)
    low = torch.randn(batch, 4, *small, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 4, kernel, kernel, generator=generator, dtype=torch.float64)
    if channels_last:
        low = low.contiguous(memory_format=torch.channels_last)
    resized = F.interpolate(low, size, mode="bilinear", align_corners=align_corners)
    expected = F.conv2d(resized, weight, padding=kernel // 2)
    found = convolve_resized(low, weight, size, align_corners=align_corners)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
