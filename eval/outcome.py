"""From what each image was taken for to a result: the value, its error, and what stands beside."""

from dataclasses import asdict
from typing import Any

import numpy as np

from eval.classify import Scored
from eval.corruptions import (
    ALEXNET_ERRORS,
    EXTRA_TYPES,
    SEVERITIES,
    TYPES,
    mce,
    normalised_errors,
    standard_error,
    unnormalised_mean_error,
)
from eval.finetuned import FINETUNED, published_as, recipe_of
from eval.layouts import EvalSet
from eval.layouts.expected import OWN
from eval.layouts.listing import val_numbers
from eval.results import Result
from eval.scoring import Predictions, summarise
from eval.transforms import CARD
from pretrain.distributed import World
from pretrain.export import code_version, environment

_SPLITS = ("train", "val", "validation", "test")

OF_SOME = "mean-error-of-some-images"
"""Where not all of ImageNet-C is there: neither of its two scores exists."""


def result_of(
    scored: Scored, images: EvalSet, *, transform: str, dtype: str, world: World
) -> Result:
    """The result of one model by one protocol.  transform: as asked for, by its family's name.

    Raises DataError where no image has a label.
    """
    protocol = scored.protocol
    as_it_stands = transform == CARD or protocol.transform == "whole"
    if protocol.parts:
        metric, value, error, details = _corrupted(scored.predictions, images)
        count = sum(g.stop - g.start for g in images.groups if g.type in TYPES)
    else:
        names = (scored.model.labels or images.classes) if protocol.subset == "own" else None
        summary = summarise(scored.predictions, protocol, names=names)
        metric, value, error = "top-1", summary.top1.percent, summary.top1.bootstrap_error
        count, details = summary.top1.of, summary.as_dict()
    return Result(
        protocol=protocol.id,
        protocol_digest=protocol.digest,
        model=scored.model.name,
        model_digest=scored.model.digest,
        metric=metric,
        value=value,
        standard_error=error,
        samples=count,
        transform=asdict(scored.preprocess),
        settings={
            **({} if as_it_stands else {"transform": transform}),
            **(recipe_of(scored.model) if protocol.name == FINETUNED else {}),
        },
        data=_own_name(images) if images.benchmark == OWN else images.name,
        data_fingerprint=images.fingerprint,
        complete=images.complete,
        dtype=dtype,
        seconds=round(scored.seconds, 2),
        ranks=world.size,
        code_version=code_version(),
        environment=environment(world.device),
        details={
            **details,
            **(published_as(scored.model) if protocol.name == FINETUNED else {}),
        },
    )


def _own_name(images: EvalSet) -> str:
    """The folder's name; of ``val`` alone nobody knows whose."""
    place = images.listing.place
    return f"{place.parent.name} {place.name}" if place.name in _SPLITS else place.name


def _corrupted(found: Predictions, images: EvalSet) -> tuple[str, float, float, dict[str, Any]]:
    """ImageNet-C's metric, value, standard error and details."""
    wrong = ~found.correct1.numpy()
    errors: dict[str, dict[int, float]] = {}
    for group in images.groups:
        part = wrong[group.start : group.stop]
        errors.setdefault(group.type, {})[group.severity] = 100 * float(part.mean())
    counted = [g for g in images.groups if g.type in TYPES]
    details: dict[str, Any] = {
        "errors": {k: {str(s): e for s, e in v.items()} for k, v in errors.items()}
    }
    if not images.complete:
        weights = np.array([100 / max(len(counted), 1) * (g.type in TYPES) for g in images.groups])
        value = float(np.mean([errors[g.type][g.severity] for g in counted]))
        return OF_SOME, value, _error(wrong, images, weights), details
    parts = len(TYPES) * len(SEVERITIES)
    plain = np.array([100 / parts * (g.type in TYPES) for g in images.groups])
    normal = np.array(
        [p * 100 / ALEXNET_ERRORS[g.type] for p, g in zip(plain, images.groups, strict=True)]
    )
    relative = normalised_errors({k: v for k, v in errors.items() if len(v) == len(SEVERITIES)})
    details |= {
        "mean-error-unnormalised": {
            "percent": unnormalised_mean_error(errors),
            "standard_error": _error(wrong, images, plain),
        },
        "relative_to_alexnet": {kind: relative[kind] for kind in TYPES},
        "extra_types": {kind: relative[kind] for kind in EXTRA_TYPES if kind in relative},
    }
    return "mce-alexnet-normalised", mce(errors), _error(wrong, images, normal), details


def _error(wrong: np.ndarray, images: EvalSet, weights: np.ndarray) -> float:
    sizes = [group.stop - group.start for group in images.groups]
    parts = np.repeat(np.arange(len(sizes)), sizes)
    numbers = val_numbers(images.listing)
    if not numbers.all():  # renamed files: those of one name below class folders are one image
        keys = ["/".join(images.where(i).split("/")[-2:]) for i in range(len(images))]
        numbers = np.unique(np.array(keys), return_inverse=True)[1]
    return standard_error(wrong, parts, numbers, weights)
