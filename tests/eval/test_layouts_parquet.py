"""Parquet files in the Hub's form: equal to folders, labels checked, bytes to our own decoder."""

import contextlib
import multiprocessing
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evalsets import (
    SMALL,
    SYNSETS,
    THREE,
    WORDS,
    flat_files,
    parquet_rows,
    picture,
    plain_files,
    val_files,
    val_pairs,
    write_parquet,
    write_tree,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.layouts import EvalSet, open_eval_set
from eval.layouts.shards import choose_shards
from zoo.errors import DataError, IntegrityError, UsageError, ZooError
from zoo.images import decode

LABELS = {synset: SYNSETS.index(synset) for synset in THREE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> EvalSet:
    root = write_tree(tmp_path_factory.mktemp("set") / "val", val_files())
    return open_eval_set(root, "in1k-val", due=SMALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Parquet file of three images, as bytes."""
    rows = parquet_rows(plain_files(("ant",), 3), {"ant": 0})
    return write_parquet(tmp_path_factory.mktemp("set") / "a.parquet", rows).read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def rows_of(files: dict[str, bytes], label_of: dict[str, Any] | None = None) -> list[dict]:
    rows = parquet_rows(files, label_of or LABELS)
    random.Random(0).shuffle(rows)
    return rows


def assert_equal(found: EvalSet, folder: EvalSet) -> None:
    assert found.fingerprint == folder.fingerprint
    assert np.array_equal(found.labels, folder.labels)
    assert (found.name, found.groups, found.classes) == (folder.name, folder.groups, folder.classes)
    for i in range(len(folder)):
        assert found.where(i) == folder.where(i)
        assert found.basename(i) == folder.basename(i)
        assert np.array_equal(found.read(i), folder.read(i))


def write_hub(place: Path, rows: list[dict], names: list[str]) -> Path:
    """Two shards of a validation split, and a training split that is not to be read."""
    for i, part in enumerate((rows[::2], rows[1::2])):
        write_parquet(place / f"data/validation-0000{i}-of-00002.parquet", part, names=names)
    (place / "data/train-00000-of-00001.parquet").write_bytes(b"never opened")
    (place / "README.md").write_text("a card")
    return place


@pytest.mark.parametrize("names", [WORDS, list(SYNSETS), []], ids=["words", "synsets", "numbers"])
def test_shards_equal_the_folder(tmp_path: Path, folder: EvalSet, names: list[str]) -> None:
    place = write_hub(tmp_path / "im[agenet]*", rows_of(val_files()), names)
    found = open_eval_set(place, "in1k-val", due=SMALL)
    assert found.complete
    assert_equal(found, folder)
    assert_equal(open_eval_set(place / "data", "in1k-val", due=SMALL), folder)


def test_one_file_whose_labels_are_synsets(tmp_path: Path, folder: EvalSet) -> None:
    rows = rows_of(val_files(), {synset: synset for synset in THREE})
    file = write_parquet(tmp_path / "val.parquet", rows)
    assert_equal(open_eval_set(file, "in1k-val", due=SMALL), folder)


def test_plain_bytes_have_no_names(tmp_path: Path, folder: EvalSet) -> None:
    rows = [{"image": r["image"]["bytes"], "label": r["label"]} for r in rows_of(val_files())]
    found = open_eval_set(write_parquet(tmp_path / "val.parquet", rows), "in1k-val", due=SMALL)
    assert [found.where(i) for i in (0, 29)] == ["00000000", "00000029"]
    assert all(np.array_equal(found.read(i), decode(rows[i]["image"], "")) for i in range(30))
    assert sorted(found.labels) == sorted(folder.labels)


def test_base_names_are_those_of_the_flat_folder(tmp_path: Path) -> None:
    """As the Hub has ImageNet: ILSVRC2012_val_00000293.JPEG, and the class in the label."""
    flat = write_tree(tmp_path / "flat", flat_files())
    lines = "".join(f"{name}.JPEG {synset}\n" for name, synset in val_pairs())
    (flat / "val.txt").write_text(lines)
    rows = rows_of(val_files())
    for row in rows:
        row["image"]["path"] = row["image"]["path"].rpartition("/")[2]
    file = write_parquet(tmp_path / "val.parquet", rows, names=WORDS)
    found = open_eval_set(file, "in1k-val", due=SMALL)
    assert_equal(found, open_eval_set(flat, "in1k-val", due=SMALL))
    assert found.basename(0).startswith("ILSVRC2012_val_")


def test_a_users_own_set_equals_its_class_folders(tmp_path: Path) -> None:
    files = plain_files(("ant", "bee", "cow"), 3)
    tree = open_eval_set(write_tree(tmp_path / "tree", files), "own")
    rows = rows_of(files, {"cow": 0, "ant": 1, "bee": 2})
    for row in rows:  # base names, the same in each class
        row["image"]["path"] = row["image"]["path"].rpartition("/")[2]
    write_parquet(tmp_path / "hub/test-00000-of-00001.parquet", rows, names=["cow", "ant", "bee"])
    (tmp_path / "hub/train-00000-of-00001.parquet").write_bytes(b"never opened")
    assert_equal(open_eval_set(tmp_path / "hub", "own"), tree)


def test_numeric_names_of_imagenetv2_are_numbers(tmp_path: Path) -> None:
    names = sorted(map(str, range(1000)))  # as a folder of them is read: 0, 1, 10, 100 …
    rows = rows_of(val_files(), {s: names.index(str(n)) for s, n in LABELS.items()})
    for i, row in enumerate(rows):
        row["image"]["path"] = f"{i}.jpeg"
    file = write_parquet(tmp_path / "test.parquet", rows, names=names)
    found = open_eval_set(file, "in1k-v2", due=SMALL)
    order = [int(found.where(i).removesuffix(".jpeg")) for i in range(30)]
    assert [int(names[rows[k]["label"]]) for k in order] == found.labels.tolist()


# To and in workers


def first_pixels(found: EvalSet, i: int) -> bytes:
    return found.read(i).tobytes()


def test_it_goes_to_workers_and_is_no_more_than_arrays(tmp_path: Path, folder: EvalSet) -> None:
    file = write_parquet(tmp_path / "val.parquet", rows_of(val_files()), names=WORDS)
    found = open_eval_set(file, "in1k-val", due=SMALL)
    parcel = pickle.dumps(found)
    assert len(parcel) < 200_000  # most of it a thousand names; the images stay on disk
    assert not any(data in parcel for data in val_files().values())
    assert_equal(pickle.loads(parcel), folder)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pixels = pool.starmap(first_pixels, [(found, i) for i in range(6)])
    assert pixels == [folder.read(i).tobytes() for i in range(6)]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    files = plain_files(("ant", "bee"), 3)
    rows = rows_of(files, {"ant": 0, "bee": 1})
    file = write_parquet(tmp_path / "val.parquet", rows, names=["ant", "bee"])
    before = open_eval_set(file, "own")
    write_parquet(file, rows[:-1], names=["ant", "bee"])
    after = open_eval_set(file, "own")
    assert (len(before), len(after)) == (6, 5)


def test_an_image_that_cannot_be_decoded_is_named_when_read(tmp_path: Path) -> None:
    rows = rows_of(val_files())
    rows[7]["image"]["bytes"] = b"no image"
    name = rows[7]["image"]["path"]
    file = write_parquet(tmp_path / "val.parquet", rows)
    found = open_eval_set(file, "in1k-val", due=SMALL)
    at = next(i for i in range(30) if found.where(i) == name)
    with pytest.raises(DataError, match="not a readable image") as caught:
        found.read(at)
    assert caught.value.where == f"{file}: {name} (row 7)"


# Labels that are none


def refused(place: Path, rows: list[dict], names: list[str], benchmark: str = "in1k-val") -> Any:
    file = write_parquet(place / "val.parquet", rows, names=names)
    with pytest.raises(DataError) as caught:
        open_eval_set(file, benchmark, due=SMALL)
    assert str(file) in caught.value.where
    return caught.value


@pytest.mark.parametrize("label", [-1, 1000, 2**40])
@pytest.mark.parametrize("names", [WORDS, list(SYNSETS), []], ids=["words", "synsets", "numbers"])
def test_a_label_out_of_range(tmp_path: Path, label: int, names: list[str]) -> None:
    rows = rows_of(val_files())
    rows[3]["label"] = label
    error = refused(tmp_path, rows, names)
    assert str(label) in error.what


def test_no_label(tmp_path: Path) -> None:
    rows = rows_of(val_files())
    rows[3]["label"] = None
    assert "1 of 30 rows have no label" in refused(tmp_path, rows, WORDS).what


def test_missing_classes_and_images(tmp_path: Path) -> None:
    error = refused(tmp_path, rows_of(val_files(THREE[:2])), WORDS)
    assert f"missing: {THREE[2]}" in error.where
    file = write_parquet(tmp_path / "v.parquet", rows_of(val_files(THREE[:2])), names=WORDS)
    found = open_eval_set(file, "in1k-val", due=SMALL, partial=True)
    assert found.name == "in1k-val (partial: 20 of 30 images, 2 of 3 classes)"
    assert "fewer than 10" in refused(tmp_path, rows_of(val_files())[:-1], WORDS).where


@pytest.mark.parametrize("names", ["reversed", "shifted", "sorted"])
def test_words_in_another_order_are_refused(tmp_path: Path, names: str) -> None:
    orders = {"reversed": WORDS[::-1], "shifted": WORDS[1:] + WORDS[:1], "sorted": sorted(WORDS)}
    error = refused(tmp_path, rows_of(val_files()), orders[names])
    assert "permuted" in error.what
    assert "tench" in error.where


def test_words_may_be_spelt_otherwise(tmp_path: Path, folder: EvalSet) -> None:
    first = [f"{w.split(',')[0].replace(' ', '_').upper()}, {i}" for i, w in enumerate(WORDS)]
    file = write_parquet(tmp_path / "val.parquet", rows_of(val_files()), names=first)
    assert_equal(open_eval_set(file, "in1k-val", due=SMALL), folder)


def test_two_hundred_words_say_no_order(tmp_path: Path) -> None:
    error = refused(tmp_path, rows_of(val_files()), WORDS[:200], "in1k-r")
    assert "200 names of classes in words" in error.what


def test_permuted_labels_are_found_by_the_reassessed_ones(tmp_path: Path) -> None:
    rows = rows_of(val_files())
    for row in rows:
        row["image"]["path"] = row["image"]["path"].rpartition("/")[2]
        row["label"] = {0: 2, 2: 10, 10: 0}[row["label"]]
    assert "permuted" in refused(tmp_path, rows, WORDS).what


def test_an_own_class_without_an_image(tmp_path: Path) -> None:
    rows = rows_of(plain_files(("ant", "bee"), 2), {"ant": 0, "bee": 2})
    error = refused(tmp_path, rows, ["ant", "cow", "bee"], "own")
    assert error.what == "classes without an image: cow"


def test_no_severity(tmp_path: Path) -> None:
    assert "severity" in refused(tmp_path, rows_of(val_files()), WORDS, "in1k-c").what


# Files that are none


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    rows = [{"img": r["image"], "fine_label": 0} for r in rows_of(val_files())]
    error = refused(tmp_path, rows, [])
    assert error.what == "no column image and no column label: there are img, fine_label"
    assert "holds int64" in refused(tmp_path, [{"image": 3, "label": 0}], []).what
    odd = [{"image": {"bytes": b"", "path": ""}, "label": 0.5}]
    assert "label holds double" in refused(tmp_path, odd, []).what
    assert "string" in refused(tmp_path, [{"image": "/etc/passwd", "label": 0}], []).what


def test_a_name_alone_is_no_image_and_never_opened(tmp_path: Path) -> None:
    path = write_tree(tmp_path, {"secret.jpg": picture(0)}) / "secret.jpg"
    rows = rows_of(val_files())
    rows[2]["image"] = {"bytes": None, "path": str(path)}
    assert "1 of 30 rows hold no image" in refused(tmp_path, rows, WORDS).what


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "a\\b.jpg", "", "./", "a\0.jpg"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    rows = rows_of(val_files())
    rows[2]["image"]["path"] = name
    with pytest.raises(IntegrityError, match="leads out"):
        open_eval_set(write_parquet(tmp_path / "val.parquet", rows), "in1k-val", due=SMALL)


def test_the_same_name_twice(tmp_path: Path) -> None:
    rows = rows_of(val_files())
    rows[2]["image"]["path"] = rows[3]["image"]["path"]
    rows[2]["label"] = rows[3]["label"]
    assert "same name" in refused(tmp_path, rows, WORDS).what


@pytest.mark.parametrize(
    "metadata",
    [
        "nonsense",
        [],
        {"info": []},
        {"info": {"features": {"image": {"_type": "Nothing"}, "label": {"_type": "ClassLabel"}}}},
        {"info": {"features": {"image": {"_type": "Image"}, "label": 3}}},
        {"info": {"features": {"label": {"_type": "Image"}, "image": {"_type": "ClassLabel"}}}},
    ],
)
def test_metadata_that_is_none(tmp_path: Path, metadata: object) -> None:
    file = write_parquet(tmp_path / "val.parquet", rows_of(val_files()), metadata=metadata)
    try:
        assert open_eval_set(file, "in1k-val", due=SMALL).complete
    except DataError as error:
        assert str(file) in error.where  # noqa: PT017


@pytest.mark.parametrize("part", [0, 0.3, 0.6, 0.99, 1])
def test_a_cut_file(tmp_path: Path, whole: bytes, part: float) -> None:
    file = tmp_path / "val.parquet"
    names = whole if part < 1 else whole.replace(b"label", b"\xffabel")  # and one of no text
    file.write_bytes(names[: int(part * len(names))])
    with pytest.raises(DataError, match="not a whole Parquet file") as caught:
        open_eval_set(file, "own")
    assert caught.value.where == str(file)


@settings(max_examples=40, deadline=None)  # each is a Parquet file
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_damaged_file_is_an_error_or_three_images(
    scratch: Path, whole: bytes, at: int, byte: int
) -> None:
    content = bytearray(whole)
    content[at % len(content)] = byte
    file = scratch / f"{at % len(content)}-{byte}.parquet"
    file.write_bytes(content)
    try:
        found = open_eval_set(file, "own")
    except ZooError as error:
        assert error.code in (3, 4)  # noqa: PT017
        return
    finally:
        file.unlink()
    assert len(found) <= 3
    for i in range(len(found)):
        with contextlib.suppress(DataError):
            assert found.read(i).ndim == 3


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.layouts.parquet.find_spec", lambda name: None)
    file = write_parquet(tmp_path / "val.parquet", rows_of(val_files()))
    for data in (file, tmp_path, Path("hf:org/name")):
        with pytest.raises(UsageError, match="not installed") as caught:
            open_eval_set(data, "in1k-val", due=SMALL)
        assert caught.value.fix == "pip install 'tinyzoo[datasets]'"


# Which files


VAL = ["data/validation-00000-of-00002.parquet", "data/validation-00001-of-00002-0a1b.parquet"]
TRAIN = ["data/train-00000-of-00001.parquet"]
TEST = ["data/test-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    ("names", "split", "benchmark", "chosen"),
    [
        ([*TRAIN, *VAL, *TEST], "", "in1k-val", VAL),
        ([*TRAIN, *VAL, *TEST], "test", "in1k-val", TEST),
        ([*TRAIN, *TEST], "", "own", TEST),
        (TEST, "", "in1k-val", TEST),
        (TRAIN, "", "in1k-sketch", TRAIN),
        (TRAIN, "train", "own", TRAIN),
        (["a.parquet", "b.parquet"], "", "own", ["a.parquet", "b.parquet"]),
        (["x/test/0.parquet", "y/test/0.parquet"], "y/test", "own", ["y/test/0.parquet"]),
    ],
)
def test_the_split_that_is_meant(
    names: list[str], split: str, benchmark: str, chosen: list[str]
) -> None:
    assert choose_shards(names[::-1], split, benchmark, "here") == chosen


@pytest.mark.parametrize(
    ("names", "split", "benchmark", "hint"),
    [
        (TRAIN, "", "own", "there are data/train"),
        (TRAIN, "", "in1k-val", "there are data/train"),
        ([*TRAIN, *TEST], "", "in1k-v2", "there are data/test, data/train"),
        (VAL, "test", "own", "there are data/validation"),
        (VAL, "valid", "own", "there are data/validation"),
        (["x/test/0.parquet", "y/test/0.parquet"], "", "own", "x/test/0, y/test/0"),
    ],
)
def test_which_split_is_asked(names: list[str], split: str, benchmark: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_shards(names, split, benchmark, "here")
    assert hint in caught.value.where


def test_missing_shards_are_named() -> None:
    with pytest.raises(DataError, match="missing") as caught:
        choose_shards(VAL[1:], "", "in1k-val", "here")
    assert "data/validation-00000-of-00002.parquet" in caught.value.where
    with pytest.raises(DataError, match="several sets"):
        choose_shards([*VAL, "data/val-00000-of-00001.parquet"], "", "own", "here")
