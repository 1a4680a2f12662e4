"""The sweep: heads that do not know of each other, and the honest choice among them."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eval.features import Features
from eval.probe_protocols import PROBE_PROTOCOLS, SweepRules
from eval.sweep import (
    HeadPlan,
    Heads,
    HeadScore,
    Schedule,
    choose_head,
    count_right,
    details_of,
    hold_out,
    plans_of,
    run_sweep,
    schedule_of,
    train_heads,
)
from pretrain.distributed import World
from zoo.errors import DivergedError, UsageError

CPU = torch.device("cpu")
RULES = cast(SweepRules, PROBE_PROTOCOLS["linear-sweep@1"])
SHORT = Schedule(batch=16, steps=40, seed=0)


def made(folder: Path, samples: int, seed: int = 0) -> tuple[Features, torch.Tensor]:
    """Features of width 12 in shards of 30, of which the first half leans to the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, samples)
    array = rng.standard_normal((samples, 12), np.float32)
    array[np.arange(samples), labels] += 1.5
    shards = []
    for number, start in enumerate(range(0, samples, 30)):
        shards.append(folder / f"{seed}-{number}.npy")
        np.save(shards[-1], array[start : start + 30])
    features = Features(shards=tuple(shards), count=samples, width=12, dtype="float32", rows=30)
    return features, torch.from_numpy(labels)


def trained(plans: list[HeadPlan], features: Features, labels: torch.Tensor) -> Heads:
    heads = Heads(plans, 12, 3, holds="cls+mean", seed=0)
    train_heads(heads, features, labels, np.arange(len(features)), SHORT, CPU)
    return heads


def test_heads_together_are_each_head_alone(tmp_path: Path) -> None:
    features, labels = made(tmp_path, 100)
    plans = plans_of(RULES, "cls+mean")
    assert len(plans) == 39
    together = trained(plans, features, labels)
    for number, plan in enumerate(plans):
        alone = trained([plan], features, labels)
        assert (alone.weight[0] - together.weight[number]).abs().max() < 1e-5
        assert (alone.bias[0] - together.bias[number]).abs().max() < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_a_head_is_a_plain_linear_layer_trained_by_sgd(tmp_path: Path, pooling: Any) -> None:
    features, labels = made(tmp_path, 100)
    plan = HeadPlan(pooling=pooling, lr=0.05)
    heads = trained([plan], features, labels)
    part = {"cls": slice(0, 6), "mean": slice(6, 12), "cls+mean": slice(0, 12)}[pooling]
    start = Heads([plan], 12, 3, holds="cls+mean", seed=0)
    layer = nn.Linear(part.stop - part.start, 3)
    with torch.no_grad():
        layer.weight.copy_(start.weight[0, part].T)
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0, momentum=0.9)
    everything = features.take(np.arange(100))
    for step, here in enumerate(SHORT.batches(np.arange(100))):
        peak = 0.05
        optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / 40))
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(everything[here, part]), labels[here]).backward()
        optimizer.step()
    torch.testing.assert_close(heads.weight[0, part].T, layer.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(heads.bias[0, 0], layer.bias, atol=1e-6, rtol=1e-5)
    unseen = torch.ones(12, dtype=torch.bool)
    unseen[part] = False
    assert not heads.weight[0, unseen].any()


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(10, 300), batch=st.integers(1, 10), steps=st.integers(1, 80))
def test_every_epoch_sees_each_sample_at_most_once(samples: int, batch: int, steps: int) -> None:
    places = np.arange(1000, 1000 + samples)
    batches = list(Schedule(batch=batch, steps=steps, seed=3).batches(places))
    assert len(batches) == steps
    per_epoch = samples // batch
    for start in range(0, steps, per_epoch):
        seen = np.concatenate(batches[start : start + per_epoch])
        assert len(np.unique(seen)) == len(seen)
        assert set(seen) <= set(places)
    again = list(Schedule(batch=batch, steps=steps, seed=3).batches(places))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@given(samples=st.integers(10, 5000), seed=st.integers(0, 9))
def test_a_tenth_is_held_out_and_never_trained_on(samples: int, seed: int) -> None:
    fit, choose = hold_out(samples, seed)
    assert len(choose) == samples // 10
    assert np.array_equal(np.sort(np.concatenate([fit, choose])), np.arange(samples))


def test_lengths_by_the_number_of_images() -> None:
    assert schedule_of(RULES, 1_281_167 * 9 // 10) == Schedule(batch=1024, steps=12_500, seed=0)
    assert schedule_of(RULES, 8523) == Schedule(batch=128, steps=6600, seed=0)
    with pytest.raises(UsageError, match="a tenth of 9 training images is none"):
        hold_out(9, 0)


def test_a_network_without_a_class_token_has_the_mean_alone() -> None:
    assert {plan.pooling for plan in plans_of(RULES, "mean")} == {"mean"}
    assert len(plans_of(RULES, "mean")) == 13


def score(held_out: int, val: int, lr: float, *, finite: bool = True) -> HeadScore:
    plan = HeadPlan(pooling="cls", lr=lr)
    return HeadScore(plan=plan, finite=finite, held_out=held_out, val=val, val_top5=val)


def test_the_choice_never_looks_at_the_validation_images() -> None:
    scores = [score(7, 10, 0.1), score(8, 5, 0.2), score(8, 50, 0.3), score(6, 60, 0.4)]
    assert choose_head(scores).plan.lr == 0.2  # of equals the first
    assert choose_head(scores, by_val=True).plan.lr == 0.4
    found = details_of(scores, held_out=10, val=100)
    assert found["chosen on held-out training images"]["val top-1"] == 5
    assert found["chosen on the validation images, as papers do"]["val top-1"] == 60
    assert not found["best at the least or the greatest learning rate"]


def test_a_head_that_diverged_is_never_chosen(tmp_path: Path) -> None:
    features, labels = made(tmp_path, 100)
    wild = [HeadPlan(pooling="cls", lr=lr) for lr in (0.05, torch.inf)]
    heads = trained(wild, features, labels)
    assert heads.finite == [True, False]
    sane = trained(wild[:1], features, labels)
    assert (sane.weight[0] - heads.weight[0]).abs().max() < 1e-5  # it harms no other
    assert choose_head([score(9, 9, 0.1, finite=False), score(1, 1, 0.2)]).plan.lr == 0.2
    with pytest.raises(DivergedError):
        choose_head([score(9, 9, 0.1, finite=False)])


def test_what_is_right_is_counted_by_hand(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.eye(8, dtype=np.float32))
    features = Features(shards=(tmp_path / "f.npy",), count=8, width=8, dtype="float32", rows=2048)
    heads = Heads([HeadPlan(pooling="cls", lr=0.1)], 8, 8, holds="cls", seed=0)
    with torch.no_grad():
        heads.weight[0] = torch.eye(8)
    labels = torch.tensor([0, 1, 2, 0, 0, 7, 1, 6])  # of a tie behind the first, the lower class
    counts = count_right(heads, features, labels, np.arange(8), CPU)
    assert counts.tolist() == [[3, 6]]


def test_the_whole_sweep_learns_and_repeats(tmp_path: Path) -> None:
    train, labels = made(tmp_path, 110)
    val, truth = made(tmp_path, 200, seed=1)
    arguments: Any = {"classes": 3, "world": World(device=CPU)}
    one, schedule = run_sweep(RULES, "cls+mean", train, labels, val, truth, **arguments)
    again, _ = run_sweep(RULES, "cls+mean", train, labels, val, truth, **arguments)
    assert one == again
    assert schedule == Schedule(batch=32, steps=300, seed=0)
    assert choose_head(one).val > 140  # chance is 67
