"""Tensor files that came from anywhere: they load, or they are refused at once."""

import contextlib
import json
import math
import struct
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from zoo.errors import IntegrityError
from zoo.tensors import as_fp32, read_shapes, read_tensors, require_finite, require_match

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "good.safetensors", metadata={"format": "pt"})
    return tmp_path / "good.safetensors"


def framed(header: bytes | dict, data: bytes = b"\0" * 4) -> bytes:
    """A file of this header and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_good_file_is_read(good: Path) -> None:
    assert read_shapes(good) == {"a.weight": (2, 3), "b": (4,)}
    found = read_tensors(good)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in found)
    assert read_tensors(good, ["b"]).keys() == {"b"}


def test_a_name_that_is_not_there(good: Path) -> None:
    with pytest.raises(IntegrityError, match="nothere"):
        read_tensors(good, ["nothere"])


def entry(**changes: object) -> dict:
    return {"a": {**ONE, **changes}}


TWICE = json.dumps({"a": ONE, "b": ONE}).replace('"b"', '"a"').encode()
BOMBS = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "length 0": struct.pack("<Q", 0),
    "length 1": struct.pack("<Q", 1) + b"{",
    "length over the file": struct.pack("<Q", 900_000) + b"{}",
    "length 2^40": struct.pack("<Q", 2**40) + b"{}",
    "length 2^64-1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "length over the limit": framed(b" " * 1_000_001),
    "not JSON": framed(b"<html>404</html>"),
    "a list": framed(b"[1, 2]"),
    "a number": framed(b"12"),
    "null": framed(b"null"),
    "not UTF-8": framed(b'{"\xff\xfe": 1}'),
    "deep": framed(b"[" * 400_000),
    "deep object": framed(b'{"a":' * 100_000),
    "a long number": framed(b'{"a":' + b"9" * 500_000 + b"}"),
    "a name twice": framed(TWICE),
    "a key of an entry twice": framed(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    ),
    "overlap": framed({**entry(), "b": ONE}),
    "hole": framed({**entry(), "b": {**ONE, "data_offsets": [8, 12]}}, b"\0" * 12),
    "trailing bytes": framed(entry(), b"\0" * 5),
    "missing bytes": framed(entry(), b"\0" * 3),
    "offsets reversed": framed(entry(data_offsets=[4, 0])),
    "offsets negative": framed(entry(data_offsets=[-4, 0])),
    "offsets of another size": framed(entry(shape=[2])),
    "offsets missing": framed({"a": {"dtype": "F32", "shape": [1]}}),
    "empty with a big side": framed(entry(shape=[0, 10**9], data_offsets=[0, 0]), b""),
    "empty with a huge side": framed(entry(shape=[0, 10**12], data_offsets=[0, 0]), b""),
    "overflow": framed(entry(shape=[2**32, 2**32])),
    "negative side": framed(entry(shape=[-1, -1])),
    "fraction of a side": framed(entry(shape=[1.5])),
    "shape a number": framed(entry(shape=1)),
    "shape text": framed(entry(shape="1")),
    "unknown type": framed(entry(dtype="F33")),
    "type a list": framed(entry(dtype=["F32"])),
    "entry a text": framed({"a": "F32"}),
    "entry null": framed({"a": None}),
    "metadata a number": framed({**entry(), "__metadata__": 3}),
    "too many": framed(
        {f"t{i}": {**ONE, "shape": [0], "data_offsets": [0, 0]} for i in range(15_000)}
    ),
    **{
        f"named {name!r}": framed({name: ONE})
        for name in ("", "../a", "a/b", "a b", "a\n", "a\0", "ä", "__class__\u202e", "a;rm")
    },
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused_at_once(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(IntegrityError) as caught:
        read_tensors(path)
    assert time.process_time() - start < 1
    assert str(path) in caught.value.where
    assert caught.value.fix


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(IntegrityError) as caught:
            read_shapes(path)
        assert str(path) in caught.value.where


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.integers(0, 40),
)
def test_damage_loads_or_is_refused(good: Path, edits: list, cut: int) -> None:
    damaged = bytearray(good.read_bytes())
    for place, value in edits:
        damaged[int(place * len(damaged))] = value
    path = good.with_name("damaged.safetensors")
    path.write_bytes(damaged[: len(damaged) - cut])
    try:
        found = read_tensors(path)
    except IntegrityError:
        return
    assert not cut
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == read_shapes(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_as_a_header_loads_or_is_refused(tmp_path: Path, header: object) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(framed(json.dumps(header).encode()))
    with contextlib.suppress(IntegrityError):
        read_tensors(path)


def test_what_does_not_match_is_listed() -> None:
    expected = {"a": (1,), "b": (2, 2), "c": (3,)}
    require_match(Path("w"), dict(expected), expected)
    with pytest.raises(IntegrityError, match="1 of 3 tensors match") as caught:
        require_match(Path("w"), {"a": (1,), "b": (4,), "d": (1,)}, expected)
    where = caught.value.where
    assert "missing (1): c" in where
    assert "unexpected (1): d" in where
    assert "another shape (1): b is (4,), the network's is (2, 2)" in where


def test_no_matching_name_is_an_error() -> None:
    expected = {f"blocks.{i}": (1,) for i in range(20)}
    prefixed = {f"module.{name}": shape for name, shape in expected.items()}
    with pytest.raises(IntegrityError, match="0 of 20 tensors match") as caught:
        require_match(Path("w"), prefixed, expected)
    assert "and 14 more" in caught.value.where
    with pytest.raises(IntegrityError, match="0 of 20"):
        require_match(Path("w"), {}, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_named(value: float, dtype: torch.dtype) -> None:
    bad = torch.zeros(3, 5, dtype=dtype)
    bad[1, 4] = value
    good = {"fine": torch.ones(2), "empty": torch.ones(0), "whole": torch.ones(2, dtype=torch.int)}
    require_finite(Path("w"), good)
    with pytest.raises(IntegrityError, match="1 of 4 tensors hold NaN or infinity") as caught:
        require_finite(Path("w"), {**good, "bad.one": bad})
    assert "bad.one" in caught.value.where
    assert "fine" not in caught.value.where


def test_half_precision_becomes_fp32_and_integers_are_refused() -> None:
    single = torch.ones(2)
    found = as_fp32(Path("w"), {"half": torch.ones(2, dtype=torch.float16), "single": single})
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert found["single"].data_ptr() == single.data_ptr()
    with pytest.raises(IntegrityError, match="no floating-point") as caught:
        as_fp32(Path("w"), {"int8.weight": torch.ones(2, dtype=torch.int8)})
    assert "int8.weight" in caught.value.where
