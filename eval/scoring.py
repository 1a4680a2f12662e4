"""From logits to scores: what each image was taken for, and what that amounts to.

Counts stay integers until the last division, and images are put in the order of their numbers:
neither batches nor ranks can change a score.

B images of a batch · N images · C columns of the logits · K labels of an image, filled up with -1
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.calibration import aurra, rms_calibration_error, rms_calibration_error_as_published
from eval.classes import CLASSES, columns, synsets
from eval.protocols import Metric, Protocol
from zoo.errors import DataError, IntegrityError

TOP = 5
RESAMPLES, SEED = 1000, 0
"""Of the bootstrap."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """What each image was taken for; on the CPU.

    Classes are numbers among ImageNet's 1000, or among the model's own.
    """

    protocol: str
    """Name and version."""
    samples: Tensor
    """(N,) int64: the number of each image in its data set."""
    labels: Tensor
    """(N, K) int16: what is right, filled up with -1; all -1 where nothing is, and none is scored.
    """
    top5: Tensor
    """(N, 5) int16, the surest first; of equal logits the class of the lowest number.  Filled up
    with -1 where a head has fewer classes."""
    confidence: Tensor
    """(N,) float32: the greatest softmax value over the protocol's columns."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def scored(self) -> Tensor:
        """(N,) bool: whether the image has a label."""
        return (self.labels >= 0).any(1)

    @property
    def correct1(self) -> Tensor:
        """(N,) bool: whether the surest class is right."""
        return _any_right(self.top5[:, :1], self.labels)

    @property
    def correct5(self) -> Tensor:
        """(N,) bool: whether one of the five surest is right."""
        return _any_right(self.top5, self.labels)


def require_head(outputs: int, protocol: Protocol) -> None:
    """Raise DataError unless a head of so many outputs can be scored by the protocol.

    outputs: 0 of a network without head.  To be asked before the first forward pass.
    """
    if outputs == CLASSES or (outputs and protocol.subset == "own"):
        return
    if outputs == 0:
        what = "the model has no classification head"
        family = "" if protocol.subset == "own" else "in1k-"
        fix = (
            "fine-tune it (zoo finetune), or score its frozen features by a probe "
            f"({family}knn, {family}linear)"
        )
    elif outputs == protocol.classes:
        what = f"the head has {outputs:,} classes"
        fix = (
            f"give a model with all {CLASSES:,} classes of ImageNet-1k: {protocol.id} itself "
            f"selects its {protocol.classes}"
        )
    else:
        from timm.data.imagenet_info import infer_imagenet_subset  # slow, for a word in an error

        known = infer_imagenet_subset({"num_classes": outputs})
        what = f"the head has {outputs:,} classes" + (f", those of {known}" if known else "")
        fix = (
            "fine-tune the model on ImageNet-1k (zoo finetune), or give it a linear probe "
            "(in1k-linear)"
        )
    raise DataError(what, where=f"{protocol.id} scores {_asked_of(protocol)}", fix=fix)


def _asked_of(protocol: Protocol) -> str:
    if protocol.subset == "own":
        return "the classes of the model's own head"
    return f"the {CLASSES:,} classes of ImageNet-1k"


def predict(
    logits: Tensor,
    labels: Tensor,
    protocol: Protocol,
    *,
    samples: Tensor,
    name_of: Callable[[int], str] = "image {}".format,
) -> Predictions:
    """What a batch's images are taken for.

    logits: (B, 1000) float32, or (B, C) of the model's own classes.  labels: (B,) class numbers
    among these, or (B, K) sets of them filled up with -1.  samples: (B,) the images' numbers in
    the data set; name_of tells the name of one in errors.  Raises DataError for a head of another
    size and for a label that the protocol does not have, IntegrityError for logits that are not
    finite.
    """
    require_head(logits.shape[1], protocol)
    assert logits.dtype == torch.float32, "half precision makes ties: cast before the head"
    finite = logits.isfinite().all(1)
    if not finite.all():
        bad = samples.to(finite.device)[~finite]
        raise IntegrityError(
            f"{len(bad)} of {len(samples)} images of a batch have logits that are not finite",
            where=f"first: {name_of(int(bad[0]))}",
            fix="check the weights (zoo verify), or evaluate in float32",
        )
    subset = protocol.subset
    valid = torch.arange(logits.shape[1]) if subset == "own" else columns(subset)
    sets = _label_sets(labels, protocol, valid, samples, name_of)
    numbers = valid.to(logits.device)
    selected = logits[:, numbers]
    confidence = selected.softmax(1).amax(1)
    return Predictions(
        protocol=protocol.id,
        samples=samples.cpu().long(),
        labels=sets.short(),
        top5=_five(numbers[_surest(selected, min(TOP, len(numbers)))].cpu().short()),
        confidence=confidence.cpu(),
    )


def concatenate(parts: Iterable[Predictions]) -> Predictions:
    """All parts' predictions in the order of the images' numbers.

    Raises IntegrityError where an image is there twice.
    """
    found = list(parts)
    assert len({part.protocol for part in found}) == 1, "one protocol at a time"
    most = max(part.labels.shape[1] for part in found)
    samples, order = torch.cat([part.samples for part in found]).sort()
    twice = samples[1:][samples[1:] == samples[:-1]]
    if len(twice):
        raise IntegrityError(
            f"{len(twice)} images were scored more than once",
            where=f"first: image {int(twice[0])}",
            fix="evaluate again: every image counts once, whatever the number of processes",
        )
    padded = [F.pad(part.labels, (0, most - part.labels.shape[1]), value=-1) for part in found]
    return Predictions(
        protocol=found[0].protocol,
        samples=samples,
        labels=torch.cat(padded)[order],
        top5=torch.cat([part.top5 for part in found])[order],
        confidence=torch.cat([part.confidence for part in found])[order],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """A share of images, and how far it would move with other images of the same kind."""

    correct: int
    of: int
    bootstrap_error: float
    """Standard error in percent, by resampling the images."""

    @property
    def percent(self) -> float:
        return 100 * self.correct / self.of

    @property
    def binomial_error(self) -> float:
        """Standard error in percent, in closed form."""
        share = self.correct / self.of
        return 100 * (share * (1 - share) / self.of) ** 0.5

    def as_dict(self) -> dict[str, float]:
        return {
            "percent": self.percent,
            "correct": self.correct,
            "of": self.of,
            "standard_error": self.bootstrap_error,
            "standard_error_binomial": self.binomial_error,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Summary:
    """The scores of one set of images."""

    protocol: str
    protocol_digest: str
    images: int
    """All of them; those without a label are not scored."""
    top1: Accuracy
    top5: Accuracy
    rms_calibration: float
    rms_calibration_as_published: float | None
    aurra: float
    class_images: Tensor
    """(C,) int64: the images of each class; of label sets, those whose set holds it."""
    class_correct: Tensor
    """(C,) int64: how many of these the surest class was right for."""
    names: tuple[str, ...]
    """What the C classes are called: synsets, or the model's own names."""

    def values(self) -> dict[Metric, float | None]:
        """The headline figures, in percent."""
        return {
            "top-1": self.top1.percent,
            "top-5": self.top5.percent,
            "rms-calibration": self.rms_calibration,
            "rms-calibration-as-published": self.rms_calibration_as_published,
            "aurra": self.aurra,
        }

    def per_class(self) -> dict[str, float]:
        """Top-1 accuracy in percent by class, of the classes that have images."""
        there = self.class_images.nonzero().flatten().tolist()
        return {
            self.names[c]: 100 * int(self.class_correct[c]) / int(self.class_images[c])
            for c in there
        }

    def as_dict(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "protocol_digest": self.protocol_digest,
            "images": self.images,
            **self.values(),
            "top-1": self.top1.as_dict(),
            "top-5": self.top5.as_dict(),
            "per_class": self.per_class(),
        }


def summarise(
    predictions: Predictions, protocol: Protocol, *, names: Sequence[str] | None = None
) -> Summary:
    """The scores of all predictions.  names: of the model's own classes.

    Raises DataError where no image has a label.
    """
    names = synsets() if names is None else names
    assert predictions.protocol == protocol.id, "scored by the protocol that predicted"
    ordered = concatenate([predictions])
    scored = ordered.scored
    total = int(scored.sum())
    if total == 0:
        raise DataError("no image has a label", where=protocol.id, fix="give images of its classes")
    labels, first, five = (x[scored] for x in (ordered.labels, ordered.correct1, ordered.correct5))
    correct1, correct5 = int(first.sum()), int(five.sum())
    error1, error5 = _bootstrap(correct1, correct5, total)
    sure, right = ordered.confidence[scored].numpy(), first.numpy()
    size = protocol.calibration_bin
    return Summary(
        protocol=protocol.id,
        protocol_digest=protocol.digest,
        images=len(ordered),
        top1=Accuracy(correct=correct1, of=total, bootstrap_error=error1),
        top5=Accuracy(correct=correct5, of=total, bootstrap_error=error5),
        rms_calibration=rms_calibration_error(sure, right, bin_size=size),
        rms_calibration_as_published=rms_calibration_error_as_published(sure, right, bin_size=size),
        aurra=aurra(sure, right),
        class_images=_count(labels, len(names)),
        class_correct=_count(labels[first], len(names)),
        names=tuple(names),
    )


def _bootstrap(correct1: int, correct5: int, total: int) -> tuple[float, float]:
    """Standard errors in percent of top-1 and top-5.

    A resample of images matters only by how many of them are right at once, right among five, or
    wrong.  These three counts are multinomial: drawn as such, without resampling any image.
    """
    rng = np.random.default_rng(SEED)
    shares = np.array([correct1, correct5 - correct1, total - correct5]) / total
    counts = rng.multinomial(total, shares, size=RESAMPLES)
    at1, at5 = 100 * counts[:, 0] / total, 100 * counts[:, :2].sum(1) / total
    return float(np.std(at1, ddof=1)), float(np.std(at5, ddof=1))


def _five(classes: Tensor) -> Tensor:
    return F.pad(classes, (0, TOP - classes.shape[1]), value=-1)  # a head of two has no five


def _surest(logits: Tensor, count: int) -> Tensor:
    """(B, count) columns of the greatest logits.

    argmax promises the first of equals on every device; topk promises nothing.
    """
    rest = logits.clone()
    found = []
    for _ in range(count):
        found.append(rest.argmax(1, keepdim=True))
        rest.scatter_(1, found[-1], -torch.inf)
    return torch.cat(found, 1)


def _label_sets(
    labels: Tensor,
    protocol: Protocol,
    valid: Tensor,
    samples: Tensor,
    name_of: Callable[[int], str],
) -> Tensor:
    """(B, K) on the CPU, checked: folder numbers of a 200-way set are not class numbers."""
    sets = (labels[:, None] if labels.ndim == 1 else labels).cpu()
    known = torch.isin(sets, valid)
    if protocol.labels == "sets":
        known |= sets == -1
    if not known.all():
        row, column = (int(i) for i in (~known).nonzero()[0])
        raise DataError(
            f"a label is {int(sets[row, column])}, no class of {protocol.id}",
            where=name_of(int(samples[row])),
            fix=f"number the classes from 0 to {int(valid.max())}, in the order of their names",
        )
    return sets


def _any_right(guesses: Tensor, labels: Tensor) -> Tensor:
    return (guesses[:, :, None] == labels[:, None, :]).any((1, 2))


def _count(labels: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels[labels >= 0].long(), minlength=classes)
