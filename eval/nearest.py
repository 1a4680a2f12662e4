"""The nearest neighbours of each query in a bank that need not fit into memory, and their votes.

Q queries · M samples of the bank · D width · K neighbours · C classes

Similarities are made block by block, the blocks cut at fixed places: whoever does which block, and
however many share the work, the numbers are the same.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BANK_BLOCK = 8192
"""Samples of the bank that are looked at together."""
QUERY_BLOCK = 1024
"""Queries that are looked at together."""

_LOW = 0xFFFFFFFF
TOP = 5


def nearest(
    bank: Iterable[Tensor], queries: Tensor, neighbours: int, *, block: int = QUERY_BLOCK
) -> tuple[Tensor, Tensor]:
    """Cosine similarity (Q, K) float32, greatest first, and place in the bank (Q, K) int64.

    bank: its samples in order, (m, D) at a time, on the queries' device.  Exact; of equal
    similarities the first in the bank comes first.  K is at most M.
    """
    parts = F.normalize(queries.float(), dim=1).split(block)
    best = [torch.empty(len(part), 0, dtype=torch.int64, device=part.device) for part in parts]
    start = 0
    with full_precision(queries.device):
        for samples in bank:
            columns = F.normalize(samples.float(), dim=1).T
            places = torch.arange(start, start + len(samples), device=columns.device)
            for number, part in enumerate(parts):
                best[number] = _merge(best[number], part @ columns, places, neighbours)
            start += len(samples)
    found = torch.cat(best)
    return _similarity(found), _LOW - (found & _LOW)


def _merge(best: Tensor, similarity: Tensor, places: Tensor, neighbours: int) -> Tensor:
    """The keys of the best so far (q, up to K) and of later samples (q, m), best first."""
    columns = places.expand_as(similarity)
    if best.shape[1] == neighbours:
        # Only what is nearer than the last of the best can enter: an equal one comes too late.
        # Most blocks have little of that, and whole numbers sort slowly.
        entering = int((similarity > _similarity(best[:, -1:])).sum(1).max())
        if entering < neighbours:
            similarity, columns = similarity.topk(min(entering, similarity.shape[1]), dim=1)
            columns = places[columns]
    keys = torch.cat([best, _keys(similarity, columns)], dim=1)
    return keys.topk(min(neighbours, keys.shape[1]), dim=1).values


def _keys(similarity: Tensor, places: Tensor) -> Tensor:
    """int64 that sort as (similarity, earlier place): no two are equal, so no order is left open.

    The bits of a float, read as a whole number, sort as floats do where they are positive and the
    other way round where they are negative.
    """
    bits = (similarity + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_LOW - places)


def _similarity(keys: Tensor) -> Tensor:
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in fp32 itself: neither TF32 nor any autocast around it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def vote(
    similarity: Tensor, labels: Tensor, *, neighbours: int, temperature: float, classes: int
) -> tuple[Tensor, Tensor]:
    """The classes with the most votes, most first, of each query: (Q, 5) int64; -1 for none.

    And (Q,) float32: the share of all votes that the first of them has.

    similarity, labels: (Q, K) of the nearest, of which the first ``neighbours`` vote with
    exp(similarity / temperature), in fp32 and on the CPU, one by one.  Of equal votes the class of
    the lower number comes first; one without a vote is no answer.
    """
    # fp32: exp(1 / 0.07) overflows half precision.
    weights = (similarity[:, :neighbours].float().cpu() / temperature).exp()
    votes = torch.zeros(len(weights), max(classes, TOP))
    votes.scatter_add_(1, labels[:, :neighbours].cpu(), weights)
    most, order = votes.sort(dim=1, descending=True, stable=True)
    return order[:, :TOP].masked_fill(most[:, :TOP] == 0, -1), most[:, 0] / most.sum(1)
