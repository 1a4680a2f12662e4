"""Saved predictions: what goes in comes out, and what was changed is refused."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from resultfiles import result

from eval.predictions import load_predictions, read_saved, save_predictions
from eval.protocols import PROTOCOLS
from eval.scoring import Predictions
from zoo.errors import DataError, DiskError, IntegrityError

FIELDS = ("samples", "labels", "top5", "confidence")
SHARED = examples(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def some(count: int = 6, *, sets: bool = False, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    top5 = np.stack([rng.permutation(1000)[:5] for _ in range(count)]).astype(np.int16)
    labels = rng.integers(0, 1000, (count, 3 if sets else 1)).astype(np.int16)
    if sets:
        labels[0] = -1
        labels[1, 1:] = -1
    return Predictions(
        protocol="in1k-real@1" if sets else "in1k-val@1",
        samples=torch.arange(count) * 3,
        labels=torch.from_numpy(labels),
        top5=torch.from_numpy(top5),
        confidence=torch.from_numpy(rng.random(count, np.float32)),
    )


def same(a: Predictions, b: Predictions) -> bool:
    types = [getattr(a, field).dtype == getattr(b, field).dtype for field in FIELDS]
    equal = [torch.equal(getattr(a, field), getattr(b, field)) for field in FIELDS]
    return a.protocol == b.protocol and all(types) and all(equal)


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    count, width = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    numbers = st.lists(st.integers(0, 2**31 - 1), min_size=count, max_size=count, unique=True).map(
        sorted
    )
    classes = st.integers(0, 999)
    row = st.lists(classes, max_size=width).map(lambda r: [*r, *[-1] * (width - len(r))])
    five = st.lists(classes, min_size=5, max_size=5)
    sure = st.floats(0, 1, width=32)

    def each(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    return Predictions(
        protocol=draw(st.sampled_from(["in1k-val@1", "in1k-real@1", "knn@7"])),
        samples=torch.tensor(draw(numbers), dtype=torch.int64),
        labels=torch.tensor(each(row), dtype=torch.int16).reshape(count, width),
        top5=torch.tensor(each(five), dtype=torch.int16).reshape(count, 5),
        confidence=torch.tensor(each(sure), dtype=torch.float32),
    )


@examples(SHARED, max_examples=40)
@given(
    saved=predictions(),
    names=st.one_of(st.none(), st.lists(st.text(max_size=8), min_size=12, max_size=12)),
    order=st.randoms(use_true_random=False),
)
def test_what_goes_in_comes_out(
    tmp_path: Path, saved: Predictions, names: list[str] | None, order: Any
) -> None:
    file = tmp_path / "a.parquet"
    places = list(range(len(saved)))
    order.shuffle(places)
    mixed = replace(saved, **{field: getattr(saved, field)[places] for field in FIELDS})
    given_names = None if names is None else [names[place] for place in places]
    save_predictions(file, mixed, names=given_names)
    read = read_saved(file)
    assert same(read.predictions, saved)
    written = [n.encode(errors="backslashreplace").decode() for n in (names or [])[: len(saved)]]
    assert list(read.names) == written


def test_the_evidence_stands_in_the_file_for_any_reader(tmp_path: Path) -> None:
    file, mine = tmp_path / "a.parquet", result(transform={"image_size": 224, "mean": (0.5, 0.4)})
    save_predictions(file, some(3), names=["a.jpg", "b.jpg", "c.jpg"], result=mine)
    header = read_saved(file).header
    assert (header.model, header.model_digest) == ("tinymim-vit-s", mine.model_digest)
    assert header.data_fingerprint == mine.data_fingerprint
    assert header.transform == {"image_size": 224, "mean": [0.5, 0.4]}
    assert header.protocol_digest == PROTOCOLS["in1k-val@1"].digest
    table = pq.read_table(file)
    kinds = [str(table.schema.field(name).type) for name in table.column_names]
    assert table.column_names == ["index", "label", "top5", "confidence", "name"]
    assert kinds[:2] == ["int32", "int16"]
    assert table.schema.field("top5").type == pa.list_(pa.int16(), 5)
    assert kinds[3:] == ["float", "string"]
    assert table["index"].to_pylist() == [0, 3, 6]
    assert table["top5"].to_pylist() == some(3).top5.tolist()
    stated = json.loads(table.schema.metadata[b"tinyzoo.predictions"])
    assert (stated["format"], stated["protocol"]) == (1, "in1k-val@1")


def test_label_sets_are_lists_without_filler(tmp_path: Path) -> None:
    save_predictions(tmp_path / "a.parquet", some(3, sets=True))
    found = pq.read_table(tmp_path / "a.parquet")["labels"].to_pylist()
    assert [len(labels) for labels in found] == [0, 1, 3]
    assert found[2] == some(3, sets=True).labels[2].tolist()


def test_classes_of_ones_own_may_be_few_or_many(tmp_path: Path) -> None:
    file, five = tmp_path / "a.parquet", torch.tensor([[1, 0, -1, -1, -1]] * 2).short()
    few = replace(some(2), top5=five, labels=torch.tensor([[0], [1]]).short())
    save_predictions(file, few, classes=["ant", "bee"])
    assert same(load_predictions(file), few)
    assert read_saved(file).header.classes == ("ant", "bee")
    with pytest.raises(IntegrityError, match="none of the 1 classes"):
        save_predictions(file, few, classes=["ant"])
    many = replace(few, labels=torch.tensor([[0], [20_840]]).short())
    save_predictions(file, many, classes=[f"c{n}" for n in range(20_841)])
    assert same(load_predictions(file), many)


def test_an_image_without_its_one_label_is_null(tmp_path: Path) -> None:
    labels = torch.tensor([[4], [-1]], dtype=torch.int16)
    save_predictions(tmp_path / "a.parquet", replace(some(2), labels=labels))
    assert pq.read_table(tmp_path / "a.parquet")["label"].to_pylist() == [4, None]
    assert load_predictions(tmp_path / "a.parquet").scored.tolist() == [True, False]


def test_a_validation_set_takes_less_than_a_megabyte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 50_000
    names = [f"n{i // 50:08}/ILSVRC2012_val_{j + 1:08}.JPEG" for i, j in
             enumerate(rng.permutation(count))]  # fmt: skip
    whole = Predictions(
        protocol="in1k-val@1",
        samples=torch.arange(count),
        labels=torch.arange(1000).repeat_interleave(50)[:, None].short(),
        top5=torch.from_numpy(rng.integers(0, 1000, (count, 5)).astype(np.int16)),
        confidence=torch.from_numpy(rng.random(count, np.float32)),
    )
    file = tmp_path / "a.parquet"
    save_predictions(file, whole, names=names)
    assert file.stat().st_size < 10**6
    assert same(load_predictions(file), whole)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"samples": torch.tensor([1, 1])}, "more than once"),
        ({"samples": torch.tensor([-1, 1])}, "ascending"),
        ({"labels": torch.tensor([[1000], [1]]).short()}, "a label"),
        ({"labels": torch.tensor([[-2], [1]]).short()}, "a label"),
        ({"labels": torch.tensor([[-1, 2], [1, 1]]).short()}, "a label"),
        ({"top5": torch.tensor([[0, 1, 2, 3, 1000]] * 2).short()}, "predicted class"),
        ({"top5": torch.tensor([[-1, -1, -1, -1, -1]] * 2).short()}, "predicted class"),
        ({"top5": torch.tensor([[0, 1, -1, 3, 4]] * 2).short()}, "predicted class"),
        ({"confidence": torch.tensor([0.5, 1.5])}, "confidence"),
        ({"confidence": torch.tensor([0.5, torch.nan])}, "confidence"),
    ],
)
def test_values_that_cannot_be_are_not_written(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(IntegrityError, match=what):
        save_predictions(tmp_path / "a.parquet", replace(some(2), **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("good") / "a.parquet"
    names = [f"{i}.jpg" for i in range(40)]
    save_predictions(file, some(40), names=names, result=result())
    return file.read_bytes()


@examples(SHARED, max_examples=150)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_changes_nothing(
    tmp_path: Path, good: bytes, place: int, bit: int
) -> None:
    bad = bytearray(good)
    bad[place % len(bad)] ^= 1 << bit
    file = tmp_path / "a.parquet"
    file.write_bytes(good)
    before = read_saved(file)
    file.write_bytes(bad)
    with contextlib.suppress(IntegrityError):
        read = read_saved(file)
        assert same(read.predictions, before.predictions)
        assert (read.names, read.header) == (before.names, before.header)


@pytest.mark.parametrize("length", [0, 3, 4, 100, -1, -9])
def test_a_torn_file_is_refused(tmp_path: Path, good: bytes, length: int) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(good[:length])
    with pytest.raises(IntegrityError, match="not a file of predictions") as refused:
        load_predictions(file)
    assert refused.value.where == str(file)
    assert len(str(refused.value).splitlines()) == 3


def test_a_missing_file_is_another_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file of predictions"):
        load_predictions(tmp_path / "a.parquet")


def rewritten(file: Path, change: Any) -> None:
    """The table of a file through ``change``, written by pyarrow as anybody would."""
    table = pq.read_table(file)
    pq.write_table(change(table), file)


def with_header(table: pa.Table, **changes: Any) -> pa.Table:
    stated = json.loads(table.schema.metadata[b"tinyzoo.predictions"]) | changes
    return table.replace_schema_metadata({b"tinyzoo.predictions": json.dumps(stated)})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.replace_schema_metadata(None), "metadata is not tinyzoo's"),
        (lambda t: with_header(t, format=2), "format"),
        (lambda t: with_header(t, more=1), "more"),
        (lambda t: with_header(t, label_columns=0), "label_columns"),
        (lambda t: with_header(t, label_columns=2), "its columns are"),
        (lambda t: with_header(t, protocol="in1k-val@2"), "sha256"),
        (lambda t: with_header(t, model_digest="ef" * 32), "sha256"),
        (lambda t: t.drop_columns(["confidence"]), "its columns are"),
        (lambda t: t.append_column("more", pa.array([1] * len(t))), "its columns are"),
        (lambda t: t.set_column(0, "index", t["index"].cast(pa.int64())), "its columns are"),
        (lambda t: t.slice(1), "sha256"),
        (lambda t: t.take(list(range(len(t)))[::-1]), "ascending"),
        (lambda t: pa.concat_tables([t, t]), "ascending"),
        (lambda t: t.set_column(0, "index", nulls(pa.int32(), t)), "missing"),
        (lambda t: t.set_column(1, "label", nulls(pa.int16(), t)), "sha256"),
        (lambda t: t.set_column(2, "top5", nulls(pa.list_(pa.int16(), 5), t)), "missing"),
        (lambda t: t.set_column(2, "top5", fives([None] * 5, t)), "missing"),
        (lambda t: t.set_column(2, "top5", fives([0, 1, 2, 3, 1000], t)), "predicted class"),
    ],
)
def test_a_file_that_others_rewrote_is_refused(
    tmp_path: Path, good: bytes, change: Any, what: str
) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(good)
    rewritten(file, change)
    with pytest.raises(IntegrityError, match=what):
        load_predictions(file)


def nulls(kind: pa.DataType, table: pa.Table) -> pa.Array:
    return pa.nulls(len(table), kind)


def fives(row: list[int | None], table: pa.Table) -> pa.Array:
    return pa.array([row] * len(table), pa.list_(pa.int16(), 5))


def test_the_same_content_written_by_another_tool_is_read(tmp_path: Path, good: bytes) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(good)
    before = read_saved(file)
    rewritten(file, lambda table: table)
    assert same(read_saved(file).predictions, before.predictions)


def test_more_rows_than_can_be_meant_are_not_unpacked(
    tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import eval.predictions as module

    file = tmp_path / "a.parquet"
    file.write_bytes(good)
    monkeypatch.setattr(module, "MOST_ROWS", 39)
    with pytest.raises(IntegrityError, match="40 rows; at most 39"):
        load_predictions(file)
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    with pytest.raises(IntegrityError, match="over 1,000 bytes"):
        load_predictions(file)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    save_predictions(file, some(4))
    rng = np.random.default_rng(0)
    names = [rng.bytes(512).hex() for _ in range(20_000)]
    big = some(1)
    many = {field: getattr(big, field).repeat_interleave(20_000, 0) for field in FIELDS}
    whole = replace(big, **{**many, "samples": torch.arange(20_000)})
    with pytest.raises(DiskError):
        save_predictions(file, whole, names=names)
    assert same(load_predictions(file), some(4))
    assert [f.name for f in tmp_path.iterdir()] == ["a.parquet"]
