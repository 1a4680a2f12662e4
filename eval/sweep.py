"""Many linear heads on one pass of kept features, and an honest choice among them.

H heads · P poolings · B samples of a step · D width of the features that are kept · C classes
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.backbone import Pooled
from eval.features import Features
from eval.nearest import full_precision
from eval.probe_protocols import SweepRules, batch_for
from pretrain.distributed import World
from zoo.errors import DivergedError, UsageError

FETCH_STEPS = 64
"""Steps whose samples are read together: each shard is then opened once for all of them."""
SCORE_BLOCK = 1024
INIT_STD = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPlan:
    """One head."""

    pooling: Pooled
    lr: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadScore:
    """How many samples a head gets right."""

    plan: HeadPlan
    finite: bool
    """Whether its weights are numbers; else it counts nothing right."""
    held_out: int
    """Of the training images on which no head was trained."""
    val: int
    val_top5: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long, and in what portions."""

    batch: int
    steps: int
    seed: int

    def batches(self, places: np.ndarray) -> Iterator[np.ndarray]:
        """(batch,) places for every step; each epoch in an order of its own, its rest dropped."""
        per_epoch = len(places) // self.batch
        order = places
        for step in range(self.steps):
            epoch, number = divmod(step, per_epoch)
            if number == 0:
                order = np.random.default_rng([self.seed, 1, epoch]).permutation(places)
            yield order[number * self.batch : (number + 1) * self.batch]


class Heads(nn.Module):
    """H linear classifiers side by side, each on its own part of the same features.

    All of a step is one batched product, and each head's numbers are what they would be alone.
    """

    def __init__(
        self, plans: Sequence[HeadPlan], width: int, classes: int, *, holds: Pooled, seed: int
    ) -> None:
        """holds: what the D of the features are."""
        super().__init__()
        self.plans = tuple(plans)
        masks = torch.stack([_part_of(plan.pooling, holds, width) for plan in plans])
        generator = torch.Generator().manual_seed(seed)
        start = INIT_STD * torch.randn(width, classes, generator=generator)
        self.register_buffer("masks", masks)
        self.weight = nn.Parameter(start * masks.unsqueeze(2))
        self.bias = nn.Parameter(torch.zeros(len(plans), 1, classes))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to logits (H, B, C)."""
        inputs = features.unsqueeze(0) * self.get_buffer("masks").unsqueeze(1)
        return torch.baddbmm(self.bias, inputs, self.weight)

    @property
    def finite(self) -> list[bool]:
        good = torch.isfinite(self.weight).all(2).all(1) & torch.isfinite(self.bias).all(2)[:, 0]
        return good.tolist()


def _part_of(pooling: Pooled, holds: Pooled, width: int) -> Tensor:
    """(D,) of ones where a head may look, and zeros."""
    parts = holds.split("+")
    seen = torch.tensor([float(part in pooling.split("+")) for part in parts])
    return seen.repeat_interleave(width // len(parts))


def plans_of(rules: SweepRules, holds: Pooled) -> list[HeadPlan]:
    """Every learning rate for every pooling that the features hold."""
    parts = set(holds.split("+"))
    poolings = [p for p in rules.poolings if set(p.split("+")) <= parts]
    return [
        HeadPlan(pooling=pooling, lr=lr)  # type: ignore[arg-type]  # of the rules
        for pooling in poolings
        for lr in rules.lrs
    ]


def schedule_of(rules: SweepRules, samples: int) -> Schedule:
    """For this many samples to train on."""
    batch = batch_for(samples, rules.most_batch)
    steps = min(rules.most_steps, rules.most_epochs * (samples // batch))
    return Schedule(batch=batch, steps=steps, seed=rules.seed)


def hold_out(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places to train on and the tenth to choose by, each ascending.  Raises UsageError."""
    tenth = samples // 10
    if not tenth:
        raise UsageError(
            f"a tenth of {samples} training images is none",
            where="linear-sweep",
            fix="give more training images",
        )
    order = np.random.default_rng([seed, 0]).permutation(samples)
    return np.sort(order[tenth:]), np.sort(order[:tenth])


def train_heads(
    heads: Heads,
    features: Features,
    labels: Tensor,
    places: np.ndarray,
    schedule: Schedule,
    device: torch.device,
) -> None:
    """SGD on these places of the features (N, D) with labels (N,), all heads in each step.

    A loss times a constant moves its head as a learning rate times that constant does: so one
    optimizer serves all learning rates.
    """
    scale = torch.tensor([plan.lr for plan in heads.plans], device=device)
    optimizer = torch.optim.SGD(heads.to(device).parameters(), lr=1.0, momentum=0.9)
    step, batches = 0, schedule.batches(places)
    with full_precision(device):
        while wanted := [b for _, b in zip(range(FETCH_STEPS), batches, strict=False)]:
            together = features.take(np.concatenate(wanted)).split(schedule.batch)
            for samples, here in zip(together, wanted, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
                logits = heads(samples.to(device).float())
                truth = labels[here].to(device).expand(len(heads.plans), -1)
                losses = F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="none")
                (losses.view(len(heads.plans), -1).mean(1) * scale).sum().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1


@torch.no_grad()
def count_right(
    heads: Heads, features: Features, labels: Tensor, places: np.ndarray, device: torch.device
) -> Tensor:
    """(H, 2) int64: at these places, how often the first and any of the first five is right."""
    counts = torch.zeros(len(heads.plans), 2, dtype=torch.int64)
    with full_precision(device):
        for start in range(0, len(places), SCORE_BLOCK):
            here = places[start : start + SCORE_BLOCK]
            logits = heads(features.take(here).to(device).float()).cpu()
            order = logits.sort(dim=2, descending=True, stable=True).indices[..., :5]
            hits = order == labels[here].view(1, -1, 1)
            counts += torch.stack([hits[..., 0].sum(1), hits.any(2).sum(1)], dim=1)
    return counts


def run_sweep(
    rules: SweepRules,
    holds: Pooled,
    train: Features,
    train_labels: Tensor,
    val: Features,
    val_labels: Tensor,
    *,
    classes: int,
    world: World,
) -> tuple[list[HeadScore], Schedule]:
    """Every head's score, in the order of ``plans_of``, on every rank.

    Rank r trains the heads of learning rates r, r + size, …: no head knows of the others.
    """
    plans = plans_of(rules, holds)
    fit, choose = hold_out(len(train), rules.seed)
    schedule = schedule_of(rules, len(fit))
    mine = [p for p in plans if rules.lrs.index(p.lr) % world.size == world.rank]
    scores: list[HeadScore] = []
    if mine:
        heads = Heads(mine, train.width, classes, holds=holds, seed=rules.seed)
        train_heads(heads, train, train_labels, fit, schedule, world.device)
        asked = [(train, train_labels, choose), (val, val_labels, np.arange(len(val)))]
        held, seen = (count_right(heads, f, t, places, world.device) for f, t, places in asked)
        scores = [
            HeadScore(
                plan=plan,
                finite=finite,
                held_out=int(h[0]) if finite else 0,
                val=int(v[0]) if finite else 0,
                val_top5=int(v[1]) if finite else 0,
            )
            for plan, finite, h, v in zip(mine, heads.finite, held, seen, strict=True)
        ]
    found = {score.plan: score for part in world.gather(scores) for score in part}
    return [found[plan] for plan in plans], schedule


def choose_head(scores: Sequence[HeadScore], *, by_val: bool = False) -> HeadScore:
    """The best on held-out training images, of equals the first; raises DivergedError for none.

    by_val: the best on the validation images, which papers report and which flatters.
    """
    good = [score for score in scores if score.finite]
    if not good:
        raise DivergedError(
            "no head of the sweep has finite weights",
            where=f"{len(scores)} heads",
            fix="look at the features: zoo eval MODEL knn",
        )
    return max(good, key=lambda score: score.val if by_val else score.held_out)


def details_of(scores: Sequence[HeadScore], *, held_out: int, val: int) -> dict[str, Any]:
    """What a result says beside its value; in percent."""

    def row(score: HeadScore) -> dict[str, Any]:
        return {
            "pooling": score.plan.pooling,
            "lr": score.plan.lr,
            "held-out top-1": 100 * score.held_out / held_out,
            "val top-1": 100 * score.val / val,
            "finite": score.finite,
        }

    chosen, flattered = choose_head(scores), choose_head(scores, by_val=True)
    rates = [score.plan.lr for score in scores]
    return {
        "top-5": 100 * chosen.val_top5 / val,
        "chosen on held-out training images": row(chosen),
        "chosen on the validation images, as papers do": row(flattered),
        "best at the least or the greatest learning rate": chosen.plan.lr
        in (min(rates), max(rates)),
        "heads": [row(score) for score in scores],
    }
