"""The pass over a set of images that scores every model given, by every protocol of the set.

Each image is decoded once.  Ranks take whole shards, each image lies in one shard, and a batch
never spans two: neither ranks nor a restart can change what an image is taken for.

B images of a batch · N images of the set · S side of a network's input · C classes of a head
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.classes import columns, real_labels_of
from eval.corruptions import TYPES
from eval.crops import crops_of
from eval.layouts import EvalSet
from eval.protocols import Protocol
from eval.scoring import Predictions, concatenate, predict
from eval.shards import PARTIAL, SHARD, Shards
from pretrain.distributed import World
from pretrain.export import code_version
from pretrain.signals import StopSignals
from zoo.errors import DataError, PreemptedError
from zoo.folder import Classifier
from zoo.images import Preprocess

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of the network up to its head; the head and all after it are float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a pass runs; nothing here but ``dtype`` may move a score."""

    dtype: str
    """One of ``DTYPES``."""
    batch: int
    """Images that go through a network at once."""
    workers: int
    """Processes that decode, on each rank."""
    store: Path
    """Where results go; what is not finished is kept below it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Way:
    """One model's way through a set: its transform, its protocols, its shards."""

    model: Classifier
    preprocess: Preprocess
    protocols: tuple[Protocol, ...]
    labels: dict[str, Tensor]
    """(N,) or (N, K) by protocol, as ``predict`` takes them."""
    shards: Shards


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scored:
    """What one model took each image for, by one protocol."""

    model: Classifier
    preprocess: Preprocess
    protocol: Protocol
    predictions: Predictions
    seconds: float
    """Wall clock of the pass, over all its starts; models of one pass share it."""


def open_ways(
    models: Sequence[tuple[Classifier, Preprocess]],
    protocols: Sequence[Protocol],
    images: EvalSet,
    settings: Settings,
    device: torch.device,
) -> list[Way]:
    """Every model's way.  Raises DataError for labels that a protocol or a model does not have."""
    ways = []
    for model, preprocess in models:
        labels = {p.id: labels_of(images, p, model) for p in protocols}
        facts = [
            model.digest,
            asdict(preprocess),
            [p.digest for p in protocols],
            images.fingerprint,
            hashlib.sha256(images.labels.tobytes()).hexdigest(),
            settings.dtype,
            settings.batch,
            SHARD,
            code_version(),
            device.type,
        ]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        ways.append(
            Way(
                model=model,
                preprocess=preprocess,
                protocols=tuple(protocols),
                labels=labels,
                shards=Shards(folder=settings.store / PARTIAL / key),
            )
        )
    return ways


def labels_of(images: EvalSet, protocol: Protocol, model: Classifier) -> Tensor:
    """What is right for each image: (N,) class numbers, or (N, K) sets of them.  Raises DataError.

    A user's own folders are numbered as the model's classes of the same names are.
    """
    if protocol.labels == "sets":
        return real_labels_of([images.basename(i) for i in range(len(images))])
    labels = torch.from_numpy(images.labels).long()
    if protocol.subset != "own":
        return labels
    names = model.labels or images.classes
    if not set(images.classes) <= set(names):
        names = _without_shared_parent(names)
    unknown = sorted(set(images.classes) - set(names))
    if unknown or len(names) != model.classes:
        what = f"class folders that the model has no class for: {', '.join(unknown[:10])}"
        if not model.labels:
            what = f"{len(images.classes)} class folders for a head of {model.classes} classes"
        raise DataError(
            what,
            where=f"{images.listing.place}; {model.name}: {', '.join(model.labels[:10])}",
            fix="name the folders as the model's classes, or fine-tune it on these (zoo finetune)",
        )
    return torch.tensor([names.index(name) for name in images.classes])[labels]


def _without_shared_parent(names: tuple[str, ...]) -> tuple[str, ...]:
    """``animals/ant``, ``animals/bee`` as ``ant``, ``bee``: a set is read below that folder too."""
    parents = {name.rpartition("/")[0] for name in names}
    return tuple(name.rpartition("/")[2] for name in names) if len(parents) == 1 else names


def score(
    ways: Sequence[Way],
    images: EvalSet,
    settings: Settings,
    world: World,
    *,
    write: Callable[[Scored], None],
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Score every way, in one pass over the images; rank 0 writes, and then lets go of the shards.

    Finished shards of an interrupted pass are taken as they are.  advance: is told how many images
    are done on this rank.  Raises DataError with the images that cannot be read, IntegrityError for
    logits that are not finite, PreemptedError after a signal, UsageError where another evaluation
    does the same, DiskError.
    """
    with ExitStack() as stack:
        if world.is_main:
            for way in ways:
                stack.enter_context(way.shards.hold())
        world.barrier()
        asked = {p.id: asked_for(p, images) for p in ways[0].protocols}
        plan = _plan(asked)
        mine = {number: plan[number] for number in list(plan)[world.rank :: world.size]}
        _walk(ways, images, mine, asked, settings, world.device, advance)
        world.barrier()
        if world.is_main:
            for scored in _collect(ways, plan, world.size):
                write(scored)
            for way in ways:
                way.shards.remove()


def _plan(asked: dict[str, Tensor]) -> dict[int, np.ndarray]:
    """The images of each shard that some protocol asks for."""
    wanted = torch.stack(list(asked.values())).any(0)
    numbers = wanted.nonzero().flatten().numpy()
    cuts = np.searchsorted(numbers, range(SHARD, len(wanted), SHARD))
    return {n: found for n, found in enumerate(np.split(numbers, cuts)) if len(found)}


def asked_for(protocol: Protocol, images: EvalSet) -> Tensor:
    """(N,) bool: whether a protocol scores the image: one of 200 classes leaves the others out."""
    if protocol.subset in ("own", "all"):
        return torch.ones(len(images), dtype=torch.bool)
    return torch.isin(torch.from_numpy(images.labels), columns(protocol.subset))


def can_score(protocol: Protocol, images: EvalSet) -> bool:
    """Whether there is an image that the protocol scores: a partial set may hold none."""
    if protocol.parts:
        return any(group.type in TYPES for group in images.groups)
    asked = asked_for(protocol, images)
    if protocol.labels == "sets":
        numbers = asked.nonzero().flatten().tolist()
        return bool((real_labels_of([images.basename(i) for i in numbers]) >= 0).any())
    return bool(asked.any())


def _walk(
    ways: Sequence[Way],
    images: EvalSet,
    plan: dict[int, np.ndarray],
    asked: dict[str, Tensor],
    settings: Settings,
    device: torch.device,
    advance: Callable[[int], None],
) -> None:
    due = {n: [way for way in ways if way.shards.load(n) is None] for n in plan}
    advance(sum(len(plan[n]) for n, missing in due.items() if not missing))
    batches = [
        (n, part)
        for n, missing in due.items()
        if missing
        for part in np.split(plan[n], range(settings.batch, len(plan[n]), settings.batch))
    ]
    transforms = list(dict.fromkeys(way.preprocess for way in ways))
    requests = [part for _, part in batches]
    # Closed by hand: an exception would keep it, and the workers, which heed no signal, alive.
    crops = crops_of(images, requests, transforms, workers=settings.workers)
    began, parts = time.perf_counter(), {way.shards.folder: [] for way in ways}
    with closing(crops), StopSignals() as signals:
        for (number, samples), views in zip(batches, crops, strict=True):
            inputs = {
                transform: transform.normalise(view.to(device, non_blocking=True))
                for transform, view in zip(transforms, views, strict=True)
            }
            for way in due[number]:
                logits = logits_of(way.model, inputs[way.preprocess], settings.dtype)
                parts[way.shards.folder].append(_predict(way, logits, samples, asked, images))
            if samples[-1] == plan[number][-1]:
                for way in due[number]:
                    _keep(way, number, parts[way.shards.folder], time.perf_counter() - began)
                    parts[way.shards.folder] = []
                began = time.perf_counter()
            advance(len(samples))
            if signals.received:
                raise PreemptedError(
                    f"stopped by a signal; finished stretches of {SHARD:,} images are kept",
                    where=str(settings.store / PARTIAL),
                    fix="run the same command again to continue",
                )


@torch.inference_mode()
def logits_of(model: Classifier, inputs: Tensor, dtype: str) -> Tensor:
    """(B, C) float32 of normalised images (B, 3, S, S); the head never runs in half precision."""
    kind = DTYPES[dtype]
    with torch.autocast(inputs.device.type, dtype=kind, enabled=kind != torch.float32):
        features = model.net.forward_features(inputs)  # type: ignore[operator]
    return model.net.forward_head(features.float())  # type: ignore[operator]


def _predict(
    way: Way, logits: Tensor, samples: np.ndarray, asked: dict[str, Tensor], images: EvalSet
) -> list[Predictions]:
    """What a batch is taken for, by each protocol."""
    numbers = torch.from_numpy(samples)
    found = []
    for protocol in way.protocols:
        here = asked[protocol.id][numbers]
        chosen = numbers[here]
        found.append(
            predict(
                logits[here.to(logits.device)],
                way.labels[protocol.id][chosen],
                protocol,
                samples=chosen,
                name_of=images.where,
            )
        )
    return found


def _keep(way: Way, number: int, parts: list[list[Predictions]], seconds: float) -> None:
    tensors = {}
    for protocol, found in zip(way.protocols, zip(*parts, strict=True), strict=True):
        whole = concatenate(found)
        for name in ("samples", "top5", "confidence"):
            tensors[f"{protocol.id}.{name}"] = getattr(whole, name).contiguous()
    way.shards.save(number, tensors, seconds)


def _collect(ways: Sequence[Way], plan: dict[int, np.ndarray], ranks: int) -> list[Scored]:
    """Every way's predictions by every protocol, from the shards on disk."""
    scored = []
    for way in ways:
        kept = [way.shards.load(number) for number in plan]
        assert all(kept), "every shard was there a moment ago"
        seconds = sum(found[1] for found in kept if found) / ranks
        for protocol in way.protocols:
            parts = [_restore(way, protocol, found[0]) for found in kept if found]
            scored.append(
                Scored(
                    model=way.model,
                    preprocess=way.preprocess,
                    protocol=protocol,
                    predictions=concatenate(parts),
                    seconds=seconds,
                )
            )
    return scored


def _restore(way: Way, protocol: Protocol, tensors: dict[str, Tensor]) -> Predictions:
    samples, top5, confidence = (
        tensors[f"{protocol.id}.{name}"] for name in ("samples", "top5", "confidence")
    )
    labels = way.labels[protocol.id][samples]
    return Predictions(
        protocol=protocol.id,
        samples=samples,
        labels=(labels[:, None] if labels.ndim == 1 else labels).short(),
        top5=top5,
        confidence=confidence,
    )
