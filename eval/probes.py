"""``zoo eval`` of frozen features: kNN, a linear probe, a sweep of linear heads.

Q validation images · C classes
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.backbone import Backbone, Pooled, Pooling, open_backbone, require_pooling
from eval.classes import synsets
from eval.features import Features, cached_features, default_cache
from eval.layouts import EvalSet
from eval.linear import linear_recipe, settings_of, top_classes, train_head
from eval.nearest import BANK_BLOCK, QUERY_BLOCK, nearest, vote
from eval.predictions import save_with_predictions
from eval.probe import KNN, accuracy, require_neighbours
from eval.probe_data import ProbeData, class_of_column, open_probe_data
from eval.probe_protocols import (
    PROBE_PROTOCOLS,
    KNNRules,
    LinearRules,
    SweepRules,
    find_probe,
)
from eval.results import Result
from eval.scoring import TOP, Predictions
from eval.sweep import choose_head, details_of, hold_out, run_sweep
from eval.transforms import CARD, of_family
from pretrain.distributed import World, start_world
from pretrain.export import code_version, environment
from zoo.folder import read_preprocess
from zoo.hub import locate

PROBES: tuple[str, ...] = tuple(rules.name for rules in PROBE_PROTOCOLS.values())
"""The names of the protocols of frozen features."""

QUERIES_TOGETHER = 16
"""Blocks of queries for which the bank is read once."""
_PATIENCE_SECONDS = 3600
"""How long a rank waits for another, which may have a slower disk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """One evaluation."""

    source: str
    backbone: Backbone
    data: ProbeData
    pooling: Pooling | None
    """None: all that the network has."""
    workers: int
    cache: Path
    world: World

    def features(self, pooled: Pooled, *, of: str) -> Features:
        images = getattr(self.data, of)
        return cached_features(
            self.backbone,
            images,
            images.fingerprint,
            pooled,
            cache=self.cache,
            world=self.world,
            workers=self.workers,
        )

    @property
    def val_labels(self) -> Tensor:
        return torch.from_numpy(self.data.val.labels)

    @property
    def train_labels(self) -> Tensor:
        return torch.from_numpy(self.data.train.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Score:
    value: float
    standard_error: float
    settings: dict[str, Any]
    details: dict[str, Any]
    predictions: Predictions | None = None
    """None of the sweep, which counts what each of many heads has right."""


_Votes = tuple[Tensor, Tensor]
"""What ``vote`` gives: (q, 5) classes, and (q,) the share of votes of the first."""


def evaluate_probe(
    model: str,
    benchmark: str,
    data: Path,
    *,
    pooling: str = "cls",
    partial: bool = False,
    transform: str = CARD,
    workers: int = 2,
    device: str = "auto",
    dtype: str = "float32",
    cache: Path | None = None,
    out: Path | None = None,
) -> Result:
    """Score the frozen features of a model (folder, Hub or timm name).

    Under torchrun the ranks share the work, and each returns the whole result.

    benchmark: one of ``PROBES``.  pooling: ``cls`` or ``mean``; the sweep tries all.  transform:
    ``card``, or a family of ``eval.transforms``.  dtype: of the network's forward pass and of the
    features that are kept.  cache: where features and half-trained heads are kept; the user's cache
    folder if None.  out: folder of the result file.

    Raises UsageError, DataError, IntegrityError, DiskError, and what a run raises.
    """
    rules = find_probe(benchmark)
    started = time.perf_counter()
    with start_world(device, timeout_seconds=_PATIENCE_SECONDS) as world:
        other = None
        if transform != CARD:
            other = of_family(read_preprocess(locate(model)), transform)
        backbone = open_backbone(model, device=world.device, transform=other, dtype=dtype)
        sweeps = isinstance(rules, SweepRules)
        job = _Job(
            source=model,
            backbone=backbone,
            data=open_probe_data(data, imagenet=rules.data == "imagenet-1k", partial=partial),
            pooling=None if sweeps else require_pooling(backbone, pooling),
            workers=workers,
            cache=cache or default_cache(),
            world=world,
        )
        score = _score(rules, job)
        if transform != CARD:
            score.settings["transform"] = transform
        result = _result(rules, job, score, seconds=time.perf_counter() - started)
        if out is not None and world.is_main:
            result = _write(result, score.predictions, job.data.val, out)
        world.barrier()
    return result


def _write(result: Result, found: Predictions | None, val: EvalSet, out: Path) -> Result:
    """Write the predictions, where there are any, and the result that names their file."""
    if found is not None:
        own = () if val.classes == synsets() else val.classes
        names = [val.where(i) for i in found.samples.tolist()]
        return save_with_predictions(out, result, found, names=names, classes=own)
    result.save(out)
    return result


def _predictions(protocol: str, classes: Tensor, sure: Tensor, labels: Tensor) -> Predictions:
    """classes: (Q, up to 5).  sure: (Q,), of the first.  labels: (Q,)."""
    return Predictions(
        protocol=protocol,
        samples=torch.arange(len(labels)),
        labels=labels[:, None].short(),
        top5=F.pad(classes, (0, TOP - classes.shape[1]), value=-1).short(),
        confidence=sure.float().clamp(max=1),
    )


def _score(rules: KNNRules | LinearRules | SweepRules, job: _Job) -> _Score:
    if isinstance(rules, KNNRules):
        return _score_knn(rules, job)
    if isinstance(rules, LinearRules):
        return _score_linear(rules, job)
    return _score_sweep(rules, job)


def _score_knn(rules: KNNRules, job: _Job) -> _Score:
    assert job.pooling is not None
    require_neighbours(rules.neighbours, len(job.data.train))
    train, val = (job.features(job.pooling, of=part) for part in ("train", "val"))
    counts = [k for k in rules.also if k <= len(train)]
    votes = _gathered(job, dict(_vote_all(rules, job, train, val, counts)), len(val))
    labels = job.val_labels
    classes, share = votes[rules.neighbours]
    value, error = accuracy(classes[:, 0], labels)
    first = {str(k): accuracy(found[:, 0], labels)[0] for k, (found, _) in votes.items()}
    five = {str(k): _top5(found, labels) for k, (found, _) in votes.items()}
    knn = KNN(neighbours=rules.neighbours, temperature=rules.temperature, pooling=job.pooling)
    return _Score(
        value=value,
        standard_error=error,
        settings=asdict(knn),
        details={
            "top-5": five[str(rules.neighbours)],
            "top-1 by neighbours": first,
            "top-5 by neighbours": five,
        },
        predictions=_predictions(rules.id, classes, share, labels),
    )


def _vote_all(
    rules: KNNRules, job: _Job, train: Features, val: Features, counts: list[int]
) -> Iterator[tuple[tuple[int, int], dict[int, _Votes]]]:
    """This rank's queries: their range, and by number of neighbours what ``vote`` says of them."""
    world, labels = job.world, job.train_labels
    blocks = range(world.rank, -(-len(val) // QUERY_BLOCK), world.size)
    for first in range(0, len(blocks), QUERIES_TOGETHER):
        ranges = [
            (number * QUERY_BLOCK, min((number + 1) * QUERY_BLOCK, len(val)))
            for number in blocks[first : first + QUERIES_TOGETHER]
        ]
        queries = val.take(np.concatenate([np.arange(*r) for r in ranges])).to(world.device)
        bank = (samples.to(world.device) for samples in train.blocks(BANK_BLOCK))
        # One pass for the most neighbours serves the fewer.
        found = nearest(bank, queries, max(counts))
        sizes = [stop - start for start, stop in ranges]
        parts = zip(ranges, *(tensor.cpu().split(sizes) for tensor in found), strict=True)
        for place, similarity, nearby in parts:
            yield (
                place,
                {
                    k: vote(
                        similarity,
                        labels[nearby],
                        neighbours=k,
                        temperature=rules.temperature,
                        classes=job.data.classes,
                    )
                    for k in counts
                },
            )


def _gathered(
    job: _Job, mine: dict[tuple[int, int], dict[int, _Votes]], count: int
) -> dict[int, _Votes]:
    """All ranks' answers by number of neighbours, every query once."""
    together = [pair for part in job.world.gather(mine) for pair in part.items()]
    ranges = sorted(place for place, _ in together)
    assert [stop for _, stop in ranges] == [start for start, _ in ranges[1:]] + [count]
    assert ranges[0][0] == 0
    ordered = [answers for _, answers in sorted(together, key=lambda pair: pair[0])]
    return {
        k: (torch.cat([a[k][0] for a in ordered]), torch.cat([a[k][1] for a in ordered]))
        for k in ordered[0]
    }


def _score_linear(rules: LinearRules, job: _Job) -> _Score:
    assert job.pooling is not None
    index = job.data.train_index()
    recipe = linear_recipe(
        rules,
        job.backbone,
        job.source,
        index,
        pooling=job.pooling,
        world=job.world,
        workers=job.workers,
    )
    # First, as they find what cannot be read before hours of training do.
    val = job.features(job.pooling, of="val")
    weights = train_head(recipe, index, job.cache, job.world)
    columns, sure = top_classes(weights, val.blocks(BANK_BLOCK))
    found = torch.from_numpy(class_of_column(job.data.train))[columns]
    labels = job.val_labels
    value, error = accuracy(found[:, 0], labels)
    return _Score(
        value=value,
        standard_error=error,
        settings=settings_of(recipe),
        details={"top-5": _top5(found, labels)},
        predictions=_predictions(rules.id, found, sure, labels),
    )


def _score_sweep(rules: SweepRules, job: _Job) -> _Score:
    holds: Pooled = "cls+mean" if job.backbone.has_cls else "mean"
    train, val = (job.features(holds, of=part) for part in ("train", "val"))
    scores, schedule = run_sweep(
        rules,
        holds,
        train,
        job.train_labels,
        val,
        job.val_labels,
        classes=job.data.classes,
        world=job.world,
    )
    share = choose_head(scores).val / len(val)
    tenth = len(hold_out(len(train), rules.seed)[1])
    return _Score(
        value=100 * share,
        standard_error=100 * float(np.sqrt(share * (1 - share) / len(val))),
        settings={"heads": len(scores), "steps": schedule.steps, "batch": schedule.batch},
        details=details_of(scores, held_out=tenth, val=len(val)),
    )


def _top5(found: Tensor, labels: Tensor) -> float:
    """In percent.  found: (Q, up to 5)."""
    return 100 * (found == labels.unsqueeze(1)).any(1).double().mean().item()


def _result(
    rules: KNNRules | LinearRules | SweepRules, job: _Job, score: _Score, *, seconds: float
) -> Result:
    return Result(
        protocol=rules.id,
        protocol_digest=rules.digest,
        model=job.backbone.name,
        model_digest=job.backbone.digest,
        metric="top-1",
        value=score.value,
        standard_error=score.standard_error,
        samples=len(job.data.val),
        transform=asdict(job.backbone.preprocess),
        settings=score.settings,
        data=job.data.name,
        data_fingerprint=job.data.fingerprint,
        dtype=job.backbone.dtype,
        seconds=round(seconds, 2),
        code_version=code_version(),
        complete=job.data.complete,
        seed=rules.seed,
        ranks=job.world.size,
        environment=environment(job.world.device),
        details=score.details,
    )
