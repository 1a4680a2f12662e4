"""LARS against its formula, step by step, and that a bad step is none."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.checkpoint import TrainState, load_checkpoint, save_checkpoint
from pretrain.distributed import World
from pretrain.lars import Lars
from pretrain.loop import FiniteGuard
from pretrain.objective import Batch
from pretrain.optim import Optim, build_optimizer, decay_matrices, set_lr

OPTIM = Optim(algorithm="lars", lr_per_256=0.1, weight_decay=0.0)


class Line(nn.Module):
    """The least objective: one linear layer."""

    draws = 0

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[3.0, -4.0]]))
            self.head.bias.copy_(torch.tensor([2.0]))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"total": self.head(batch.images).sum()}

    def param_groups(self, weight_decay: float) -> Any:
        return decay_matrices(self.named_parameters(), weight_decay)

    def export(self) -> Any:
        raise NotImplementedError


def give(module: Line, weight: list[float], bias: float) -> None:
    module.head.weight.grad = torch.tensor([weight])
    module.head.bias.grad = torch.tensor([bias])


def test_two_steps_by_hand() -> None:
    module = Line()
    optimizer = build_optimizer(module, OPTIM)
    assert isinstance(optimizer, Lars)
    set_lr(optimizer, 0.5)
    give(module, [0.6, 0.8], 0.25)  # norms: weights 5, gradient 1
    optimizer.step()
    first = torch.tensor([0.6, 0.8]) * (0.001 * 5 / 1)
    weights = torch.tensor([3.0, -4.0]) - 0.5 * first
    torch.testing.assert_close(module.head.weight[0].detach(), weights)
    # A bias is not scaled.
    torch.testing.assert_close(module.head.bias.detach(), torch.tensor([2.0 - 0.5 * 0.25]))

    give(module, [0.0, 2.0], -1.0)
    optimizer.step()
    second = torch.tensor([0.0, 2.0]) * (0.001 * weights.norm() / 2)
    weights = weights - 0.5 * (0.9 * first + second)
    torch.testing.assert_close(module.head.weight[0].detach(), weights)
    bias = 2.0 - 0.5 * 0.25 - 0.5 * (0.9 * 0.25 - 1.0)
    torch.testing.assert_close(module.head.bias.detach(), torch.tensor([bias]))


@pytest.mark.parametrize("zero", ["weights", "gradient"])
def test_where_a_norm_is_zero_the_rate_is_plain(zero: str) -> None:
    module = Line()
    optimizer = build_optimizer(module, OPTIM)
    set_lr(optimizer, 0.5)
    if zero == "weights":
        nn.init.zeros_(module.head.weight)
    give(module, [0.0, 0.0] if zero == "gradient" else [1.0, 2.0], 0.0)
    before = module.head.weight.detach().clone()
    optimizer.step()
    grad = module.head.weight.grad
    assert grad is not None
    torch.testing.assert_close(module.head.weight.detach(), before - 0.5 * grad)


@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_step_that_is_not_finite_moves_nothing(bad_step: int) -> None:
    module = Line()
    optimizer = build_optimizer(module, OPTIM)
    set_lr(optimizer, 0.5)
    guard = FiniteGuard(World(device=torch.device("cpu")), optimizer)
    kept = []
    for step in range(4):
        give(module, [math.nan if step == bad_step else 1.0, 0.5], 0.1)
        if step == bad_step:
            kept = [t.clone() for t in (*module.parameters(), *momenta(optimizer))]
        norm = nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        guard.check({"total": torch.tensor(1.0)}, norm, step)
        optimizer.step()
    assert guard.bad_step.item() == bad_step
    now = [*module.parameters(), *momenta(optimizer)]
    assert len(now) == 4
    if bad_step == 0:  # there was no momentum: it stands for zeros
        kept += [torch.zeros(1, 2), torch.zeros(1)]
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))


def momenta(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [state["momentum_buffer"] for state in optimizer.state.values()]


def test_momentum_survives_saving(tmp_path: Path) -> None:
    states = []
    for _ in range(2):
        module = Line()
        optimizer = build_optimizer(module, OPTIM)
        states.append(TrainState(objective=module, optimizer=optimizer, average=None))
    one, other = states
    set_lr(one.optimizer, 0.5)
    give(one.objective, [1.0, 2.0], 0.5)  # type: ignore[arg-type]
    one.optimizer.step()
    load_checkpoint(save_checkpoint(tmp_path, one, keep=2), other)
    for state in states:
        set_lr(state.optimizer, 0.25)
        give(state.objective, [-1.0, 1.0], 0.5)  # type: ignore[arg-type]
        state.optimizer.step()
    for name, tensor in one.objective.state_dict().items():
        assert torch.equal(tensor, other.objective.state_dict()[name])


def test_matrices_and_vectors_do_not_share_a_group() -> None:
    with pytest.raises(AssertionError, match="groups of their own"):
        Lars([{"params": list(Line().parameters())}], momentum=0.9)
