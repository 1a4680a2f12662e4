"""Targets: scaled as their names say, in fp32."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.targets import TargetNorm


def test_layernorm_gives_every_token_mean_0_and_variance_1() -> None:
    target = TargetNorm("layernorm", 64)(torch.rand(2, 5, 64) * 9 + 3)
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(-1, correction=0), torch.ones(2, 5))
    assert TargetNorm("layernorm", 4)(torch.full((1, 4), 7.0)).isfinite().all()
    assert not list(TargetNorm("layernorm", 4).parameters())


def test_none_leaves_them() -> None:
    features = torch.randn(2, 5, 8)
    assert torch.equal(TargetNorm("none", 8)(features), features)


@pytest.mark.parametrize("scale", ["layernorm", "none", "whiten"])
def test_half_precision_becomes_fp32(scale: str) -> None:
    features = torch.randn(2, 5, 8).bfloat16()
    assert TargetNorm(scale, 8)(features).dtype == torch.float32  # type: ignore[arg-type]


@given(st.integers(0, 2**32), st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_whitening_uses_the_moments_of_all_tokens_so_far(seed: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = TargetNorm("whiten", 3)
    scale, offset = torch.tensor([1.0, 20.0, 0.05]), torch.tensor([0.0, -300.0, 2.0])
    batches = [torch.randn(n, 4, 3, generator=generator) * scale + offset for n in sizes]
    target = [norm(batch) for batch in batches][-1]
    seen = torch.cat(batches).flatten(0, 1).double()
    expected = (batches[-1] - seen.mean(0)) / seen.std(0, correction=0)
    torch.testing.assert_close(target.double(), expected, atol=2e-3, rtol=2e-3)
    assert norm.count == len(seen)


def test_whitening_keeps_still_in_eval_and_travels_with_the_state() -> None:
    norm = TargetNorm("whiten", 3)
    norm(torch.randn(4, 5, 3))
    norm.eval()
    batch = torch.randn(4, 5, 3)
    assert torch.equal(norm(batch), norm(batch))
    assert norm.count == 20
    other = TargetNorm("whiten", 3)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other.eval()(batch), norm(batch))


def test_a_channel_that_never_fires_stays_zero() -> None:
    features = torch.randn(4, 5, 2) * torch.tensor([1.0, 0.0])
    target = TargetNorm("whiten", 2)(features)
    assert target[..., 1].eq(0).all()
    assert target[..., 0].ne(0).all()
