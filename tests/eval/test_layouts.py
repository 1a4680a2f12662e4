"""Class folders as people have them: what is recognised, and what is refused with its reason."""

import multiprocessing
import os
import pickle
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from evalsets import SMALL, SYNSETS, TEN, THREE, picture, plain_files, val_files, write_tree
from faults import assert_error
from hypothesis import given
from hypothesis import strategies as st

from eval.classes import synsets_of
from eval.layouts import EvalSet, expected, open_eval_set
from eval.layouts.folders import number_label
from pretrain.index import open_index
from zoo.errors import DataError, Exit, UsageError
from zoo.images import decode

A_THREE = synsets_of("a")[:3]


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "val", val_files())


def refused(data: Path, benchmark: str = "in1k-val", **options: object) -> DataError:
    options = {"due": SMALL, **options}
    with pytest.raises(DataError) as caught:
        open_eval_set(data, benchmark, **options)  # type: ignore[arg-type]
    assert caught.value.fix
    assert str(data.name) in str(caught.value)
    return caught.value


def test_synset_folders(val: Path) -> None:
    found = open_eval_set(val, "in1k-val", due=SMALL)
    assert (found.name, found.complete, found.benchmark) == ("in1k-val", True, "in1k-val")
    assert found.classes == SYNSETS
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [0] * TEN + [2] * TEN + [10] * TEN
    assert [tuple(group) for group in found.groups] == [("clean", 0, 0, 30)]
    assert found.fingerprint == open_index(val).fingerprint
    assert [found.where(i) for i in range(len(found))] == sorted(val_files())
    for i, name in enumerate(sorted(val_files())):
        assert found.basename(i) == name.partition("/")[2]
        assert np.array_equal(found.read(i), decode(val_files()[name], name))


@pytest.mark.parametrize("top", ["", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"])
def test_the_folder_above_val_may_be_given(tmp_path: Path, top: str) -> None:
    write_tree(tmp_path / top / "val", val_files())
    write_tree(tmp_path / top / "train", plain_files(THREE))
    assert open_eval_set(tmp_path, "in1k-val", due=SMALL).complete


def test_a_folder_above_the_classes_is_no_part_of_the_names(tmp_path: Path) -> None:
    write_tree(tmp_path / "imagenet-r", plain_files(THREE))
    found = open_eval_set(tmp_path, "in1k-r", due=SMALL)
    assert found.where(0) == f"{THREE[0]}/0.jpg"
    assert found.fingerprint == open_index(tmp_path / "imagenet-r").fingerprint


def test_linked_folders_are_followed(tmp_path: Path, val: Path) -> None:
    real = write_tree(tmp_path / "store", val_files((THREE[0],))) / THREE[0]
    for file in (val / THREE[0]).iterdir():
        file.unlink()
    (val / THREE[0]).rmdir()
    (val / THREE[0]).symlink_to(real)
    (tmp_path / "link").symlink_to(val)
    assert open_eval_set(tmp_path / "link", "in1k-val", due=SMALL).complete


@pytest.mark.parametrize(
    ("benchmark", "images", "classes"),
    [
        ("in1k-val", 50_000, 1000),
        ("in1k-v2", 10_000, 1000),
        ("in1k-a", 7_500, 200),
        ("in1k-r", 30_000, 200),
        ("in1k-sketch", 50_889, 1000),
        ("in1k-c", 50_000, 1000),
    ],
)
def test_the_table(benchmark: str, images: int, classes: int) -> None:
    due = expected()[benchmark]
    assert (due.images, len(due.synsets)) == (images, classes)
    assert len(expected()) == 6
    assert set(due.synsets) <= set(SYNSETS)
    assert list(due.synsets) == sorted(set(due.synsets))
    if due.per_class:
        assert due.per_class * classes == images


def test_labels_of_a_and_r_are_among_all_classes(tmp_path: Path) -> None:
    due = replace(SMALL, synsets=A_THREE, per_class=None)
    found = open_eval_set(write_tree(tmp_path, plain_files(A_THREE)), "in1k-a", due=due)
    assert sorted(set(found.labels.tolist())) == [6, 11, 13]
    assert found.classes == SYNSETS


# ImageNetV2


@pytest.mark.parametrize("form", ["{}", "{:03}"])
def test_numeric_folders_are_numbers(tmp_path: Path, form: str) -> None:
    folders = tuple(form.format(n) for n in (0, 2, 10))  # as text: 0, 10, 2
    write_tree(tmp_path, plain_files(folders))
    found = open_eval_set(tmp_path, "in1k-v2", due=SMALL)
    assert {found.where(i).partition("/")[0]: int(n) for i, n in enumerate(found.labels)} == {
        form.format(0): 0,
        form.format(2): 2,
        form.format(10): 10,
    }
    assert found.complete


def test_v2_by_synsets(tmp_path: Path) -> None:
    found = open_eval_set(write_tree(tmp_path, plain_files(THREE)), "in1k-v2", due=SMALL)
    assert sorted(set(found.labels.tolist())) == [0, 2, 10]


def test_a_thousand_numeric_folders(tmp_path: Path) -> None:
    folders = tuple(map(str, range(1000)))
    due = replace(SMALL, images=1000, synsets=SYNSETS, per_class=1)
    write_tree(tmp_path, plain_files(folders, 1))
    found = open_eval_set(tmp_path, "in1k-v2", due=due)
    assert found.complete
    assert [int(found.where(i).partition("/")[0]) for i in range(1000)] == found.labels.tolist()


@given(st.integers(0, 999), st.integers(1, 6))
def test_a_number_is_its_class_however_it_is_written(number: int, width: int) -> None:
    assert number_label(f"{number:0{width}}") == number


@given(st.one_of(st.text(), st.integers(1000).map(str), st.integers(max_value=-1).map(str)))
def test_what_is_no_class_number_has_no_label(name: str) -> None:
    label = number_label(name)
    plain = name.isascii() and name.isdigit()
    assert label == (int(name) if plain and len(name) <= 18 and int(name) < 1000 else None)


def test_odd_numeric_folders(tmp_path: Path) -> None:
    write_tree(tmp_path / "out", plain_files(("0", "1000")))
    assert "1000" in refused(tmp_path / "out", "in1k-v2").what
    write_tree(tmp_path / "mixed", plain_files(("0", THREE[1])))
    assert "no classes of ImageNet: 0" in refused(tmp_path / "mixed", "in1k-v2").what
    write_tree(tmp_path / "twice", plain_files(("2", "02")))
    assert "02, 2" in refused(tmp_path / "twice", "in1k-v2").what


@pytest.mark.parametrize("name", ["imagenetv2-top-images-format-val", "imagenetv2-threshold0.7"])
def test_the_other_sets_of_v2_are_not_it(tmp_path: Path, name: str) -> None:
    write_tree(tmp_path / name, plain_files(("0", "2", "10")))
    for data in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match="another set of ImageNetV2"):
            open_eval_set(data, "in1k-v2", due=SMALL)


# What is not what it should be


def test_numbers_where_synsets_are_due(tmp_path: Path) -> None:
    error = refused(write_tree(tmp_path / "v2", plain_files(("0", "2", "10"))))
    assert "in1k-val has synsets: 0, 10, 2" in error.what


def test_a_missing_class(val: Path) -> None:
    for file in (val / THREE[1]).iterdir():
        file.unlink()
    assert f"empty: {THREE[1]}" in refused(val).where
    (val / THREE[1]).rmdir()
    error = refused(val)
    assert error.what == "2 of the 3 classes have images"
    assert f"missing: {THREE[1]}" in error.where
    found = open_eval_set(val, "in1k-val", partial=True, due=SMALL)
    assert found.name == "in1k-val (partial: 20 of 30 images, 2 of 3 classes)"
    assert not found.complete
    assert found.benchmark == "in1k-val"


def test_999_classes(tmp_path: Path) -> None:
    due = replace(SMALL, images=1000, synsets=SYNSETS, per_class=1)
    error = refused(write_tree(tmp_path / "v", plain_files(SYNSETS[:-1], 1)), due=due)
    assert error.what == "999 of the 1,000 classes have images"
    assert error.where.endswith(f"missing: {SYNSETS[-1]}")
    fix = "complete it, or repeat with --partial"
    assert_error(error, Exit.DATA, what=error.what, where=error.where, fix=fix)


def test_a_missing_image(val: Path) -> None:
    next((val / THREE[1]).iterdir()).unlink()
    error = refused(val)
    assert error.what == "29 images of 30"
    assert f"{THREE[1]} (9)" in error.where
    found = open_eval_set(val, "in1k-val", partial=True, due=SMALL)
    assert found.name == "in1k-val (partial: 29 of 30 images, 3 of 3 classes)"


def test_a_missing_image_where_classes_differ(tmp_path: Path) -> None:
    files = plain_files(THREE)
    del files[f"{THREE[0]}/0.jpg"]
    error = refused(write_tree(tmp_path / "r", files), "in1k-r", due=replace(SMALL, per_class=None))
    assert error.what == "29 images of 30"


@pytest.mark.parametrize("partial", [False, True])
def test_images_too_many_are_another_set(tmp_path: Path, partial: bool) -> None:
    write_tree(tmp_path / "all", plain_files(THREE, TEN + 1))
    assert "33 images where" in refused(tmp_path / "all", partial=partial).what
    write_tree(tmp_path / "one", plain_files(THREE[:1], TEN + 1))
    assert f"{THREE[0]} (11)" in refused(tmp_path / "one", partial=partial).what


def test_unknown_folders(val: Path) -> None:
    write_tree(val, plain_files(tuple(f"n9999{i:04}" for i in range(12)), 1))
    error = refused(val, partial=True)
    assert "n99990000, n99990001" in error.what
    assert "n99990009 and 2 more" in error.what


def test_known_classes_of_another_set(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "a", plain_files((*A_THREE, SYNSETS[0])))
    assert SYNSETS[0] in refused(tree, "in1k-a", due=replace(SMALL, synsets=A_THREE)).what


def test_loose_images_beside_class_folders(val: Path) -> None:
    write_tree(val, {"loose.jpg": picture(0)})
    assert "loose images" in refused(val).what


def test_class_folders_in_several_places(tmp_path: Path) -> None:
    write_tree(tmp_path / "d/one", plain_files(THREE))
    write_tree(tmp_path / "d/two", plain_files(THREE))
    assert refused(tmp_path / "d").where.endswith("one, two")


def test_permuted_class_folders(tmp_path: Path) -> None:
    files = val_files()
    turned = dict(zip(THREE, (*THREE[1:], THREE[0]), strict=True))
    write_tree(tmp_path / "v", {turned[n[:9]] + n[9:]: data for n, data in files.items()})
    error = refused(tmp_path / "v")
    assert error.what.startswith("the classes are permuted: 0.0% of 30 labels agree")


def test_names_that_carry_another_class(tmp_path: Path) -> None:
    files = {
        f"{THREE[0]}/{THREE[0]}_1.JPEG": picture(0),
        f"{THREE[0]}/{THREE[1]}_2.JPEG": picture(1),
    }
    error = refused(write_tree(tmp_path / "v", files), partial=True)
    assert f"{THREE[0]}/{THREE[1]}_2.JPEG as {THREE[0]}" in error.what


def test_validation_images_are_no_other_benchmark(val: Path) -> None:
    assert "ImageNet's own validation images" in refused(val, "in1k-sketch", partial=True).what


def test_an_image_twice(val: Path) -> None:
    first, second = sorted((val / THREE[0]).iterdir())[:2]
    second.rename(first.with_suffix(".png"))
    assert f"more than once: {first.stem}" in refused(val).what


def test_a_number_out_of_range(val: Path) -> None:
    name = next((val / THREE[0]).iterdir())
    name.rename(name.with_name("ILSVRC2012_val_00050001.JPEG"))
    assert "50001" in refused(val).what


def test_what_is_no_data_set(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "gone").what
    (tmp_path / "bare").mkdir()
    assert "no image" in refused(tmp_path / "bare").what
    with pytest.raises(UsageError, match="in2k") as caught:
        open_eval_set(tmp_path, "in2k")
    assert "in1k-val" in caught.value.fix
    flat = write_tree(tmp_path / "flat", {"a.jpg": picture(0)})
    assert "in1k-r has class folders" in refused(flat, "in1k-r").what


def test_an_image_that_cannot_be_decoded_is_named_when_read(val: Path) -> None:
    name = f"{THREE[0]}/{sorted(os.listdir(val / THREE[0]))[0]}"  # noqa: PTH208
    (val / name).write_bytes(b"no image")
    found = open_eval_set(val, "in1k-val", due=SMALL)
    with pytest.raises(DataError) as caught:
        found.read(0)
    assert caught.value.where.endswith(name)


# A user's own


def test_own_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, plain_files(("cat/big", "cat/small", "dog", "10", "9"), 2))
    found = open_eval_set(tmp_path, "own")
    assert found.classes == ("10", "9", "cat/big", "cat/small", "dog")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (found.name, found.complete) == ("own", True)


def test_own_val_is_taken_where_train_stands_beside(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", plain_files(("ant", "bee"), 1))
    write_tree(tmp_path / "train", plain_files(("ant", "bee"), 3))
    assert len(open_eval_set(tmp_path, "own")) == 2
    write_tree(tmp_path / "classes", plain_files(("val", "cal"), 3))
    assert open_eval_set(tmp_path / "classes", "own").classes == ("cal", "val")


def test_own_sets_that_are_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "own", plain_files(("ant", "bee"), 1))
    (tree / "cow").mkdir()
    assert "without an image: cow" in refused(tree, "own").what
    (tree / "cow").rmdir()
    write_tree(tree, {"loose.jpg": picture(0)})
    assert "loose beside class folders" in refused(tree, "own").what
    flat = write_tree(tmp_path / "flat", {"a.jpg": picture(0)})
    assert "not in class folders" in refused(flat, "own").what


# Workers


def _answer(found: EvalSet, pipe: Connection) -> None:
    pipe.send([found.read(i) for i in range(len(found))])


def test_a_worker_reads(val: Path) -> None:
    found = open_eval_set(val, "in1k-val", due=SMALL)
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_answer, args=(found, theirs))
    worker.start()
    pixels = ours.recv()
    worker.join()
    assert all(np.array_equal(found.read(i), pixels[i]) for i in range(30))


def test_a_set_is_small_to_send(tmp_path: Path) -> None:
    due = replace(SMALL, images=2000, synsets=SYNSETS, per_class=None)
    write_tree(tmp_path, {f"{SYNSETS[i % 1000]}/{i:06}.jpg": b"x" for i in range(2000)})
    found = open_eval_set(tmp_path, "in1k-r", due=due)
    sent = pickle.dumps(found)
    # 10 bytes of a name, 8 of where it ends, 4 of its folder, 8 of its label; and the classes.
    assert len(sent) < 2000 * 32 + 1000 * 50
    again = pickle.loads(sent)
    assert again.where(1999) == found.where(1999)
    assert again.name == found.name
