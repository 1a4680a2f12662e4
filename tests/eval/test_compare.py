"""What flipped between two models, and McNemar's test against hand-computed values."""

import json
import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.classes import label_sets
from eval.compare import FEW, compare, mcnemar
from eval.protocols import find_protocol
from eval.scoring import Predictions, predict
from zoo.errors import DataError, UsageError

VAL, REAL = find_protocol("in1k-val"), find_protocol("in1k-real")


def taken_for(classes: list[int], labels: list[int]) -> Predictions:
    samples = torch.arange(len(labels))
    return predict(torch.eye(1000)[classes], torch.tensor(labels), VAL, samples=samples)


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (6, 6, 1.0),
        (5, 1, 2 * (1 + 6) / 2**6),
        (1, 5, 2 * (1 + 6) / 2**6),
        (10, 0, 2 / 2**10),
        (18, 6, 2 * (1 + 24 + 276 + 2024 + 10626 + 42504 + 134596) / 2**24),
    ],
)
def test_few_flips_are_tested_exactly(won: int, lost: int, p: float) -> None:
    found = mcnemar(won, lost)
    assert found.p == pytest.approx(p)
    assert found.test == "exact binomial"
    assert found.chi_square is None


@pytest.mark.parametrize(
    ("won", "lost", "chi_square"),
    [
        (121, 59, 3721 / 180),
        (30, 15, 196 / 45),
        (20, 20, 0.0),
        (13, 12, 0.0),
        (4000, 4400, 18.9525),
    ],
)
def test_many_flips_by_chi_square(won: int, lost: int, chi_square: float) -> None:
    found = mcnemar(won, lost)
    assert found.chi_square == pytest.approx(chi_square, rel=1e-4)
    assert found.test == "chi-square with continuity correction"
    assert found.p == pytest.approx(2 * NormalDist().cdf(-math.sqrt(chi_square)), rel=1e-3)


@given(won=st.integers(0, 200), lost=st.integers(0, 200))
def test_the_test_does_not_care_who_is_first(won: int, lost: int) -> None:
    assert mcnemar(won, lost) == mcnemar(lost, won)
    assert 0 < mcnemar(won, lost).p <= 1
    if won + lost < FEW and won > lost:
        assert mcnemar(won + 1, lost).p < mcnemar(won, lost).p or won + lost == FEW - 1


def test_what_flipped() -> None:
    labels = [1, 1, 1, 2, 2, 2]
    first = taken_for([1, 1, 5, 2, 6, 7], labels)
    second = taken_for([1, 9, 1, 2, 6, 8], labels)
    found = compare(first, second)
    assert found.images == 6
    assert (found.both_right, found.both_wrong) == (2, 2)
    assert (found.won.tolist(), found.lost.tolist()) == ([2], [1])
    assert found.changed == 3
    assert found.difference == 0
    assert found.mcnemar.p == 1
    assert json.loads(json.dumps(found.as_dict()))["won"] == [2]


def test_the_second_model_is_better_by_what_it_won() -> None:
    labels = [0] * 2000
    first = taken_for([0] * 1000 + [1] * 1000, labels)
    second = taken_for([0] * 950 + [1] * 50 + [0] * 150 + [1] * 850, labels)
    there, back = compare(first, second), compare(second, first)
    assert there.difference == -back.difference == 5
    assert torch.equal(there.won, back.lost)
    assert there.paired_error == pytest.approx(100 * math.sqrt(200 - 100**2 / 2000) / 2000)
    assert there.bootstrap_error == pytest.approx(there.paired_error, rel=0.09)
    assert there.mcnemar.chi_square == pytest.approx(99**2 / 200)


def test_order_does_not_matter_and_the_unlabelled_do_not_count() -> None:
    labels = label_sets([[1, 2], [], [3], [4]])
    logits = torch.eye(1000)
    first = predict(logits[[1, 1, 3, 9]], labels, REAL, samples=torch.arange(4))
    order = [2, 0, 3, 1]
    second = predict(logits[[3, 2, 4, 7]], labels[order], REAL, samples=torch.tensor(order))
    found = compare(first, second)
    assert found.images == 3
    assert (found.both_right, found.both_wrong) == (2, 0)
    assert found.won.tolist() == [3]
    assert found.changed == 2


def test_a_model_against_itself() -> None:
    found = compare(*[taken_for([1, 2, 3], [1, 2, 4])] * 2)
    assert found.difference == found.bootstrap_error == found.paired_error == found.changed == 0
    assert found.mcnemar.p == 1


def test_only_the_same_images_of_one_protocol_compare() -> None:
    first = taken_for([1, 2], [1, 2])
    with pytest.raises(UsageError, match="different protocols") as protocols:
        compare(first, replace(first, protocol="in1k-val@2"))
    assert protocols.value.where == "in1k-val@1 and in1k-val@2"
    with pytest.raises(DataError, match="not of the same images"):
        compare(first, taken_for([1], [1]))
    with pytest.raises(DataError, match="not of the same images"):
        compare(first, taken_for([1, 2], [1, 3]))
    nothing = predict(torch.zeros(1, 1000), torch.tensor([[-1]]), REAL, samples=torch.tensor([0]))
    with pytest.raises(DataError, match="no image has a label"):
        compare(nothing, nothing)
