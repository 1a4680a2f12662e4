"""Nearest neighbours block by block: against one full matrix, ties and all."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.nearest import full_precision, nearest, vote


def whole(bank: torch.Tensor, queries: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Places by one matrix of all similarities, sorted by them and then by place."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    order = similarity.sort(dim=1, descending=True, stable=True).indices
    return order[:, :neighbours]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 70),
    block=st.integers(1, 80),
    query_block=st.integers(1, 20),
    neighbours=st.integers(1, 70),
)
def test_blocks_do_not_matter(
    seed: int, samples: int, block: int, query_block: int, neighbours: int
) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers on few axes: half of the similarities are ties, and all are exact.
    bank = torch.from_numpy(rng.integers(-1, 2, (samples, 4))).float()
    queries = torch.from_numpy(np.eye(4)[rng.integers(0, 4, 11)]).float()
    k = min(neighbours, samples)
    similarity, places = nearest(bank.split(block), queries, k, block=query_block)
    assert torch.equal(places, whole(bank, queries, k))
    full = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    assert torch.equal(similarity, full.gather(1, places))


def test_of_equal_ones_the_first_counts_across_blocks() -> None:
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
    similarity, places = nearest(bank.split(2), torch.tensor([[1.0, 0.0]]), 5)
    assert places.tolist() == [[1, 2, 4, 0, 3]]
    assert similarity.tolist() == [[1, 1, 1, 0, -1]]


def test_votes_by_hand() -> None:
    similarity = torch.tensor([[0.7, 0.63, 0.56, 0.0]])
    labels = torch.tensor([[2, 0, 0, 1]])
    e = float(np.exp(-1))
    assert e + e * e < 1  # so two neighbours of class 0 do not outvote one of class 2
    for k, answer in [(1, [2, -1, -1, -1, -1]), (3, [2, 0, -1, -1, -1]), (4, [2, 0, 1, -1, -1])]:
        found, _ = vote(similarity, labels, neighbours=k, temperature=0.07, classes=6)
        assert found.tolist() == [answer]


def test_equal_votes_go_to_the_lower_class_and_two_classes_give_no_five() -> None:
    found, share = vote(
        torch.ones(1, 2), torch.tensor([[1, 0]]), neighbours=2, temperature=0.07, classes=2
    )
    assert found.tolist() == [[0, 1, -1, -1, -1]]
    assert share.tolist() == [0.5]


def test_products_are_in_full_precision_whatever_is_set() -> None:
    bank, queries = torch.randn(40, 64), torch.randn(7, 64)
    expected = nearest([bank], queries, 5)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nearest([bank], queries, 5)
            with full_precision(torch.device("cpu")):
                assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("neighbours", [1, 6])
def test_what_is_near_is_found_in_any_order_of_the_bank(neighbours: int) -> None:
    rng = np.random.default_rng(3)
    bank = torch.from_numpy(rng.standard_normal((50, 8))).float()
    order = torch.from_numpy(rng.permutation(50))
    _, places = nearest(bank.split(7), bank[:9], neighbours)
    _, moved = nearest(bank[order].split(16), bank[:9], neighbours)
    assert torch.equal(order[moved], places)
