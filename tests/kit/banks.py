"""Banks of features that the tests make for themselves, and what reading one costs."""

import functools
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval import features, nearest, probes
from eval.features import Features


def small_pieces(images: int) -> Callable[[], None]:
    """For ``runs.Run``: shards and blocks of queries of this many, as only large sets have."""
    return functools.partial(_small_pieces, images)


def _small_pieces(images: int) -> None:
    features.SHARD = images
    probes.QUERY_BLOCK = images


def made_bank(folder: Path, *, rows: int, width: int, shards: int) -> Features:
    """Random features; every shard is the same file, which costs memory as others would."""
    array = np.random.default_rng(0).standard_normal((rows, width), np.float32)
    path = folder / "shard.npy"
    np.save(path, array)
    return Features(
        shards=(path,) * shards, count=rows * shards, width=width, dtype="float32", rows=rows
    )


def peak_of_search(bank: Features, answers: Any) -> None:
    """In a process of its own: how many bytes a search adds to the most it ever had."""
    torch.set_num_threads(1)
    before = _peak()
    queries = bank.take(np.arange(64))
    _, places = nearest.nearest(bank.blocks(nearest.BANK_BLOCK), queries, 20)
    assert torch.equal(places[:, 0], torch.arange(64))
    answers.put(_peak() - before)


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
