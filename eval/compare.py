"""Two models on the same images: what flipped, and whether that is more than chance."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eval.protocols import PROTOCOLS
from eval.scoring import RESAMPLES, SEED, Predictions, concatenate
from zoo.errors import DataError, UsageError

FEW = 25
"""Flips below which McNemar's test is exact."""

Test = Literal["exact binomial", "chi-square with continuity correction"]


@dataclass(frozen=True, kw_only=True, slots=True)
class McNemar:
    """McNemar's test of whether as many images were won as lost."""

    p: float
    """Two-sided."""
    test: Test
    chi_square: float | None
    """With one degree of freedom; None of the exact test."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Comparison:
    """The second model against the first, top-1."""

    protocol: str
    images: int
    """Scored ones."""
    both_right: int
    both_wrong: int
    won: Tensor
    """(W,) int64: the images that the second alone is right on, ascending."""
    lost: Tensor
    """(L,) int64: those that the first alone is right on."""
    changed: int
    """Images taken for another class, right or wrong."""
    bootstrap_error: float
    """Standard error in percent of the difference, by resampling images for both at once."""
    mcnemar: McNemar

    @property
    def difference(self) -> float:
        """Top-1 of the second minus top-1 of the first, in points."""
        return 100 * (len(self.won) - len(self.lost)) / self.images

    @property
    def paired_error(self) -> float:
        """Standard error in points of the difference, in closed form."""
        flips, net = len(self.won) + len(self.lost), len(self.won) - len(self.lost)
        return 100 * math.sqrt(max(flips - net**2 / self.images, 0)) / self.images

    def as_dict(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "images": self.images,
            "both_right": self.both_right,
            "both_wrong": self.both_wrong,
            "won": self.won.tolist(),
            "lost": self.lost.tolist(),
            "changed": self.changed,
            "difference": self.difference,
            "standard_error": self.bootstrap_error,
            "standard_error_paired": self.paired_error,
            "p": self.mcnemar.p,
            "test": self.mcnemar.test,
            "chi_square": self.mcnemar.chi_square,
        }


def compare(first: Predictions, second: Predictions) -> Comparison:
    """What the second model does differently.

    Raises UsageError where the two were scored by different protocols, or by one of several parts
    with the same images (ImageNet-C); DataError where not on the
    same images with the same labels, or where none has a label.
    """
    if first.protocol != second.protocol:
        raise UsageError(
            "these predictions were scored by different protocols",
            where=f"{first.protocol} and {second.protocol}",
            fix="compare two models on one benchmark, of one version",
        )
    known = PROTOCOLS.get(first.protocol)
    if known and known.parts:
        raise UsageError(
            "the files of one image are no independent samples, which McNemar's test wants",
            where=first.protocol,
            fix="compare the scores and their standard errors (zoo results)",
        )
    a, b = concatenate([first]), concatenate([second])
    if not torch.equal(a.samples, b.samples) or not torch.equal(a.labels, b.labels):
        raise DataError(
            "these predictions are not of the same images with the same labels",
            where=f"{len(a):,} images and {len(b):,}",
            fix="evaluate both models on the same data",
        )
    scored = a.scored
    images = int(scored.sum())
    if images == 0:
        raise DataError("no image has a label", where=a.protocol, fix="evaluate on its classes")
    right_a, right_b = a.correct1, b.correct1
    won, lost = (a.samples[scored & x] for x in (right_b & ~right_a, right_a & ~right_b))
    return Comparison(
        protocol=a.protocol,
        images=images,
        both_right=int((scored & right_a & right_b).sum()),
        both_wrong=int((scored & ~right_a & ~right_b).sum()),
        won=won,
        lost=lost,
        changed=int((scored & (a.top5[:, 0] != b.top5[:, 0])).sum()),
        bootstrap_error=_bootstrap(len(won), len(lost), images),
        mcnemar=mcnemar(len(won), len(lost)),
    )


def mcnemar(won: int, lost: int) -> McNemar:
    """The test from the two counts of flips: exact below 25 of them, else chi-square.

    Source: McNemar 1947, with Edwards' continuity correction of 1948.
    """
    flips = won + lost
    if flips < FEW:
        tail = sum(math.comb(flips, k) for k in range(min(won, lost) + 1))
        return McNemar(p=min(1.0, 2 * tail / 2**flips), test="exact binomial", chi_square=None)
    chi_square = max(abs(won - lost) - 1, 0) ** 2 / flips
    return McNemar(
        p=math.erfc(math.sqrt(chi_square / 2)),
        test="chi-square with continuity correction",
        chi_square=chi_square,
    )


def _bootstrap(won: int, lost: int, images: int) -> float:
    """Standard error in points; the counts of a resample of image pairs are multinomial."""
    rng = np.random.default_rng(SEED)
    shares = np.array([won, lost, images - won - lost]) / images
    counts = rng.multinomial(images, shares, size=RESAMPLES)
    return 100 * float(np.std((counts[:, 0] - counts[:, 1]) / images, ddof=1))
