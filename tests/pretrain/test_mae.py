"""MAE: what is hidden, what is compared, and that tokens come back to their places."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pretrain.masked import mask_order, masked_loss, normalise_patches, patchify
from pretrain.methods.mae import MAE, MaskedAutoencoder
from pretrain.objective import Batch
from zoo.errors import UsageError
from zoo.vit import ViTConfig

CPU = torch.device("cpu")
STUDENT = ViTConfig(width=24, depth=2, heads=3, patch=8, image_size=32)
METHOD = MAE(decoder_width=16, decoder_depth=1, decoder_heads=2)


def build(method: MAE = METHOD, student: ViTConfig = STUDENT) -> MaskedAutoencoder:
    return method.build(student, seed=0, device=CPU)


def batch_of(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
    draws = torch.rand(size, 17, generator=generator)
    return Batch(images=images, indices=torch.arange(size), draws=draws)


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.7, 4), (0.5, 8), (0.9, 1)])
def test_encoder_sees_exactly_the_visible_patches(ratio: float, visible: int) -> None:
    objective = build(replace(METHOD, mask_ratio=ratio))
    seen: list[torch.Size] = []
    objective.encoder.blocks[0].register_forward_hook(
        lambda _m, args, _o: seen.append(args[0].shape)
    )
    objective(batch_of(3))
    assert objective.visible_patches == visible == math.floor(16 * (1 - ratio) + 1e-9)
    assert seen == [(3, 1 + visible, 24)]


def test_hidden_pixels_do_not_reach_the_encoder() -> None:
    objective = build().eval()
    batch = batch_of(2)
    batch = batch._replace(draws=batch.draws.index_fill(1, torch.tensor([0]), 0.9))  # unflipped
    seen: list[torch.Tensor] = []
    objective.encoder.norm.register_forward_hook(lambda _m, _a, out: seen.append(out))
    cells = patchify(batch.images, 8)
    order = mask_order(batch.draws[:, 1:])
    hidden = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, order[:, 4:], True).unsqueeze(-1)
    for change in (~hidden & hidden, hidden, ~hidden):
        images = unpatchify(torch.where(change, 255 - cells, cells), 8)
        objective(batch._replace(images=images))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def unpatchify(patches: torch.Tensor, patch: int) -> torch.Tensor:
    """The inverse of ``patchify``, patch by patch."""
    size, count, _ = patches.shape
    grid = math.isqrt(count)
    images = torch.empty(size, 3, grid * patch, grid * patch, dtype=patches.dtype)
    for number in range(count):
        y, x = divmod(number, grid)
        cell = patches[:, number].view(size, patch, patch, 3).permute(0, 3, 1, 2)
        images[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch] = cell
    return images


def test_patches_are_in_row_order_and_complete() -> None:
    images = batch_of(2).images
    patches = patchify(images, 8)
    assert patches.shape == (2, 16, 192)
    assert torch.equal(patches[0, 1].view(8, 8, 3)[0, 0], images[0, :, 0, 8])
    assert torch.equal(patches[0, 4].view(8, 8, 3)[2, 5], images[0, :, 8 + 2, 5])
    assert torch.equal(unpatchify(patches, 8), images)


def test_normalised_patches_have_mean_0_and_variance_1() -> None:
    patches = normalise_patches(torch.randn(2, 16, 192) * 7 + 3)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 16))
    assert normalise_patches(torch.full((1, 1, 192), 0.5)).isfinite().all()


def test_only_masked_patches_count() -> None:
    guess = torch.randn(2, 16, 6, requires_grad=True)
    target = torch.randn(2, 16, 6)
    masked = torch.tensor([[0, 5, 7], [1, 2, 15]])
    loss = masked_loss(guess, target, masked)
    loss.backward()
    errors = [(guess[b, p] - target[b, p]).square().mean() for b in (0, 1) for p in masked[b]]
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    assert guess.grad is not None
    touched = {(b, p) for b in (0, 1) for p in range(16) if guess.grad[b, p].any()}
    assert touched == {(b, int(p)) for b in (0, 1) for p in masked[b]}


@given(st.integers(0, 2**32), st.integers(1, 64))
def test_mask_is_a_permutation_made_of_the_draws_alone(seed: int, patches: int) -> None:
    draws = torch.rand(3, patches, generator=torch.Generator().manual_seed(seed))
    order = mask_order(draws)
    assert torch.equal(order, mask_order(draws.clone()))
    assert all(sorted(row) == list(range(patches)) for row in order.tolist())
    assert torch.equal(mask_order(draws[1:2])[0], order[1])  # whatever else is in the batch


def test_equal_draws_still_hide_the_same_number() -> None:
    assert mask_order(torch.zeros(1, 16)).tolist() == [list(range(16))]


def test_loss_does_not_depend_on_torchs_generator() -> None:
    objective, batch = build(), batch_of(2)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(objective(batch)["total"].item())
    assert losses[0] == losses[1]


def test_decoder_puts_tokens_back_in_place() -> None:
    decoder: Any = build().decoder
    decoder.enter = decoder.blocks = decoder.norm = decoder.leave = nn.Identity()
    decoder.positions = torch.zeros(1)
    decoder.mask_token = nn.Parameter(torch.full((1, 1, 1), -1.0))
    order = torch.tensor([[2, 0, 3, 1], [1, 3, 2, 0]])
    visible = torch.tensor([[[9.0], [2.0], [0.0]], [[9.0], [1.0], [3.0]]])  # each its own number
    assert decoder(visible, order)[..., 0].tolist() == [[0, -1, 2, -1], [-1, 1, -1, 3]]


def test_gradient_reaches_every_trained_parameter() -> None:
    objective = build()
    objective(batch_of(4))["total"].backward()
    for name, parameter in objective.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == parameter.requires_grad, name
    assert not objective.encoder.get_parameter("pos_embed").requires_grad
    assert set(objective.export().weights) == set(objective.encoder.state_dict())
    assert objective.export().last_trained_block == 2


@pytest.mark.parametrize(("width", "heads"), [(16, 3), (18, 3), (10, 5)])
def test_bad_decoder_sizes_are_refused(width: int, heads: int) -> None:
    with pytest.raises(UsageError, match=f"width {width}") as caught:
        build(replace(METHOD, decoder_width=width, decoder_heads=heads))
    assert "method.decoder_width" in caught.value.where


def test_a_few_steps_learn_something() -> None:
    objective, batch = build(), batch_of(8)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective(batch)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9  # about the variance of the normalised target
    assert losses[-1] < 0.98 * losses[0]
