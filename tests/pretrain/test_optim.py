"""Schedule, groups, average: each against its formula."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.checkpoint import TrainState, load_checkpoint, save_checkpoint
from pretrain.distributed import World
from pretrain.loop import FiniteGuard
from pretrain.methods.mae import MAE
from pretrain.optim import Optim, WeightAverage, build_optimizer, set_lr
from zoo.vit import ViTConfig

STUDENT = ViTConfig(width=24, depth=2, heads=3, patch=8, image_size=32)
CPU = torch.device("cpu")


def objective() -> Any:
    method = MAE(decoder_width=16, decoder_depth=1, decoder_heads=2)
    return method.build(STUDENT, seed=0, device=CPU)


def test_schedule_warms_up_from_zero_and_falls_by_half_a_cosine() -> None:
    optim = Optim(lr_per_256=1.5e-4, min_lr=1e-6)
    peak = 1.5e-4 * 4096 / 256
    rates = [optim.lr_at(s, steps=110, warmup_steps=10, global_batch=4096) for s in range(111)]
    assert rates[0] == 0
    assert rates[1:11] == pytest.approx([peak * s / 10 for s in range(1, 11)])
    assert rates[60] == pytest.approx((peak + 1e-6) / 2)
    assert rates[35] == pytest.approx(1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[110] == pytest.approx(1e-6)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_schedule_without_warm_up_begins_at_the_peak() -> None:
    optim = Optim(lr_per_256=1e-3)
    rates = [optim.lr_at(s, steps=4, warmup_steps=0, global_batch=512) for s in range(4)]
    assert rates[0] == pytest.approx(2e-3)
    assert rates[2] == pytest.approx(1e-3)


def test_warm_up_longer_than_the_run_never_divides_by_zero() -> None:
    optim = Optim(lr_per_256=1e-3)
    rates = [optim.lr_at(s, steps=3, warmup_steps=5, global_batch=256) for s in range(3)]
    assert rates == pytest.approx([0, 2e-4, 4e-4])


def test_biases_and_norms_are_not_decayed_and_the_class_token_is() -> None:
    module = objective()
    optimizer = build_optimizer(module, Optim(weight_decay=0.05))
    decay = {
        name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]
    }
    assert decay["encoder.cls_token"] == decay["encoder.patch_embed.proj.weight"] == 0.05
    assert decay["decoder.mask_token"] == decay["encoder.blocks.0.attn.qkv.weight"] == 0.05
    assert decay["encoder.blocks.0.attn.qkv.bias"] == decay["encoder.patch_embed.proj.bias"] == 0
    assert decay["encoder.blocks.1.norm1.weight"] == decay["encoder.norm.bias"] == 0
    assert set(decay) == {n for n, p in module.named_parameters() if p.requires_grad}
    assert "encoder.pos_embed" not in decay


def test_adamw_is_fused_and_follows_its_own_formula() -> None:
    module = nn.Module()
    module.w = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    module.param_groups = objective().param_groups.__func__.__get__(module)
    optimizer = build_optimizer(module, Optim(weight_decay=0.1, betas=(0.9, 0.95)))  # type: ignore[arg-type]
    assert optimizer.defaults["fused"]
    set_lr(optimizer, 0.01)
    module.w.grad = torch.tensor([[0.5, 0.25]])
    optimizer.step()
    # The first step of Adam goes by the sign of the gradient; the decay is decoupled.
    expected = torch.tensor([[1.0, -2.0]]) * (1 - 0.01 * 0.1) - 0.01
    torch.testing.assert_close(module.w.detach(), expected)


def test_lr_scale_multiplies_the_schedule() -> None:
    optimizer = build_optimizer(objective(), Optim())
    optimizer.param_groups[1]["lr_scale"] = 0.5
    set_lr(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]


def test_average_equals_its_formula_and_freezes() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = WeightAverage({"w": parameter}, 0.9)
    expected = parameter.detach().clone()
    good, bad = torch.zeros(()), torch.ones(())
    for value in (3.0, -1.0, 5.0):
        with torch.no_grad():
            parameter.fill_(value)
        average.update(good)
        expected = 0.9 * expected + 0.1 * value
        torch.testing.assert_close(average.averages["w"], expected)
    with torch.no_grad():
        parameter.fill_(100.0)
    average.update(bad)
    torch.testing.assert_close(average.averages["w"], expected)


def test_guard_holds_weights_and_step_counts_from_the_first_bad_step_on() -> None:
    module = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    guard = FiniteGuard(World(device=CPU), optimizer)
    kept = None
    for step, value in enumerate([1.0, 2.0, math.nan, 1.0]):
        optimizer.zero_grad()
        loss = module(torch.full((1, 2), value)).sum()
        loss.backward()
        guard.check({"total": loss.detach()}, torch.tensor(1.0), step)
        optimizer.step()
        if step == 1:
            kept = module.weight.detach().clone()
    assert guard.bad.item() == 1
    assert guard.bad_step.item() == 2
    assert kept is not None
    assert torch.equal(module.weight, kept)
    assert optimizer.state[module.weight]["step"].item() == 2


def test_state_survives_saving(tmp_path: Any) -> None:
    def new() -> TrainState:
        module = objective()
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        optimizer = build_optimizer(module, Optim())
        return TrainState(objective=module, optimizer=optimizer, average=WeightAverage(named, 0.9))

    state, other = new(), new()
    for parameter in state.objective.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    set_lr(state.optimizer, 0.1)
    state.optimizer.step()
    assert state.average
    state.average.update(torch.zeros(()))
    state = replace(state, step=7, notes={"a": 0.1 + 0.2})
    load_checkpoint(save_checkpoint(tmp_path, state, keep=2), other)
    assert (other.step, other.notes) == (7, {"a": 0.1 + 0.2})
    for file, tensors in state.tensors().items():
        loaded = other.tensors()[file]
        assert tensors.keys() == loaded.keys()
        assert all(torch.equal(tensors[name], loaded[name]) for name in tensors)
        assert all(tensors[n].data_ptr() != loaded[n].data_ptr() for n in tensors)
