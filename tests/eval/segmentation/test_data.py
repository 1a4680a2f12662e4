"""Sets in ADE20K's layout: pairs, completeness, and the memory of what was checked."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from segsets import THREE, grey, photo, scene, write_ade20k, write_pair, write_set

from eval.segmentation.data import Split, open_split
from eval.segmentation.masks import read_mask
from zoo.errors import DataError


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_set(tmp_path / "streets")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def refused(root: Path, split: str = "training", *, partial: bool = False) -> DataError:
    with pytest.raises(DataError) as caught:
        open_split(root, split, partial=partial)
    assert caught.value.fix
    assert "\n" not in caught.value.what + caught.value.where
    return caught.value


def test_a_set_of_ones_own(own: Path) -> None:
    found = open_split(own, "training")
    assert (found.name, found.split, found.root) == ("streets", "training", own)
    assert (found.is_ade20k, found.complete, found.missing) == (False, True, "")
    assert found.labels.names == THREE
    assert len(found) == 4
    assert found.files[0] == ("images/training/training0.jpg", "annotations/training/training0.png")
    assert [found.image(i).name for i in range(4)] == [f"training{i}.jpg" for i in range(4)]
    assert found.endings == (".jpg", ".png")
    masks = [read_mask(found.mask(i), 3) for i in range(4)]
    assert found.pixels.tolist() == [sum((m == c).sum() for m in masks) for c in range(3)]
    assert found.empty == ()
    assert len(open_split(own, "validation")) == 3
    with pytest.raises(IndexError):
        found.image(4)


def test_any_folder_of_both_is_a_split(own: Path) -> None:
    write_pair(own, "night scenes", "a", scene(0, 3))
    assert len(open_split(own, "night scenes")) == 1


def test_files_in_folders_of_their_own(own: Path) -> None:
    for stem in ("b/a", "a.b/a", "a/b/c"):
        write_pair(own, "nested", stem, scene(0, 3))
    found = open_split(own, "nested")
    names = [image.removeprefix("images/nested/") for image, _ in found.files]
    assert names == ["a.b/a.jpg", "a/b/c.jpg", "b/a.jpg"]
    assert all(found.image(i).is_file() and found.mask(i).is_file() for i in range(3))


def test_endings_in_any_case(own: Path) -> None:
    (own / "images/training/training0.jpg").rename(own / "images/training/training0.JPEG")
    write_pair(own, "training", "more", scene(0, 3), ending=".png")
    (own / "images/training/more.png").write_bytes(photo(12, 16, form="PNG"))
    found = open_split(own, "training")
    assert len(found) == 5
    assert found.endings is None


def test_hidden_and_other_files_are_no_part_of_it(own: Path) -> None:
    before = open_split(own, "training").fingerprint
    for name in ("images/training/._training0.jpg", "annotations/training/.DS_Store"):
        (own / name).write_bytes(b"x")
    (own / "images/training/Thumbs.db").write_bytes(b"x")
    (own / "images/training/.hidden").mkdir()
    (own / "images/training/.hidden/a.jpg").write_bytes(b"x")
    assert open_split(own, "training").fingerprint == before


def test_links_are_followed_and_loops_are_not(own: Path, tmp_path: Path) -> None:
    (own / "images/training").rename(tmp_path / "elsewhere")
    (own / "images/training").symlink_to(tmp_path / "elsewhere")
    (own / "images/training/round").symlink_to(own / "images/training")
    (own / "images/training/self").symlink_to("self")
    (own / "images/training/gone.jpg").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(own)
    found = open_split(tmp_path / "link", "training")
    assert len(found) == 4
    assert found.root == own


def test_names_that_are_no_text(own: Path) -> None:
    for folder, ending, data in [
        ("images", b".jpg", photo(12, 16)),
        ("annotations", b".png", grey(np.zeros((12, 16), np.uint8))),
    ]:
        top = os.fsencode(own / folder / "training")
        Path(os.fsdecode(top + b"/caf\xe9" + ending)).write_bytes(data)
    for _ in range(2):  # checked, and remembered
        found = open_split(own, "training")
        assert len(found) == 5
        assert [os.fsencode(name)[-9:] for name in found.empty] == [b"/caf\xe9.png"]
        assert found.image(0).read_bytes() == photo(12, 16)
    Path(os.fsdecode(top + b"/caf\xe9.png")).unlink()
    assert r"caf\xe9.jpg" in refused(own).where


def test_masks_without_a_labelled_pixel_are_told(own: Path) -> None:
    write_pair(own, "training", "nothing", np.full((12, 16), 255, np.uint8))
    assert open_split(own, "training").empty == ("annotations/training/nothing.png",)


def test_images_and_masks_belong_together(own: Path) -> None:
    for i in range(12):
        (own / f"images/training/lone{i:02}.jpg").write_bytes(photo(12, 16))
    error = refused(own)
    assert error.what == "12 images without a mask"
    assert "lone09.jpg and 2 more" in error.where
    assert f"{own}/annotations/training/NAME.png" in error.fix
    for i in range(12):
        (own / f"images/training/lone{i:02}.jpg").unlink()
    (own / "images/training/training2.jpg").unlink()
    error = refused(own)
    assert error.what == "1 mask without an image"
    assert error.where.endswith("annotations/training: training2.png")


def test_two_images_for_one_mask(own: Path) -> None:
    (own / "images/training/training1.png").write_bytes(photo(12, 16, form="PNG"))
    error = refused(own)
    assert "differ by their endings only" in error.what
    assert "training1.jpg, training1.png" in error.where


def test_masks_that_are_jpegs(own: Path) -> None:
    for path in (own / "annotations/training").iterdir():
        path.rename(path.with_suffix(".jpg"))
    error = refused(own)
    assert error.what == "the folder holds no file that ends in .png"
    assert "endings there: .jpg" in error.where


def test_what_the_masks_hold_is_checked(own: Path) -> None:
    write_pair(own, "training", "training1", scene(0, 4))
    assert "a number that no class has" in refused(own).what


# ADE20K


def test_ade20k(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "any name", "validation", range(1, 2001))
    found = open_split(root, "validation")
    assert (found.name, found.is_ade20k, found.complete, found.missing) == (
        "ADE20K",
        True,
        True,
        "",
    )
    assert len(found) == 2000
    assert found.files[1999][0] == "images/validation/ADE_val_00002000.jpg"
    assert (found.pixels > 0).sum() == 150


def test_ade20k_with_images_missing(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ade", "training", [1, 7, 20_210])
    error = refused(root)
    assert error.what == "3 of 20,210 images of ADE20K's training are there"
    assert "--partial" in error.fix
    found = open_split(root, "training", partial=True)
    assert (found.name, found.is_ade20k, found.complete) == ("ADE20K", True, False)
    assert found.missing == "3 of 20,210 images"


@pytest.mark.parametrize("name", ["mine", "ADE_train_00000001", "ADE_val_00002001", "ADE_val_1"])
def test_ade20k_with_images_of_others(tmp_path: Path, name: str) -> None:
    root = write_ade20k(tmp_path / "ade", "validation", [1, 2])
    write_pair(root, "validation", name, scene(0, 3))
    error = refused(root, "validation", partial=True)
    assert error.what == "1 image that ADE20K's validation does not have"
    assert f"{name}.jpg" in error.where


def test_own_images_with_the_classes_of_ade20k(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "mine", "validation", [])
    write_pair(root, "validation", "kitchen", scene(0, 150, 16, 16))
    found = open_split(root, "validation")
    assert (found.name, found.is_ade20k, found.complete) == ("mine", False, True)
    assert found.labels.is_ade20k


# What was checked is remembered


def spied(root: Path, cache: Path) -> tuple[Split, bool]:
    """The split, and whether its masks were decoded: a mask that is made unreadable shows it."""
    mask = root / "annotations/training/training0.png"
    good, times = mask.read_bytes(), mask.stat()
    mask.write_bytes(bytes(len(good)))
    os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        return open_split(root, "training", cache=cache), False
    except DataError:
        mask.write_bytes(good)
        os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))
        return open_split(root, "training", cache=cache), True
    finally:
        mask.write_bytes(good)
        os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_second_start_decodes_no_mask(own: Path, cache: Path) -> None:
    write_pair(own, "training", "nothing", np.zeros((12, 16), np.uint8))
    first, decoded = spied(own, cache)
    assert decoded
    again, decoded = spied(own, cache)
    assert not decoded
    assert again.pixels.tolist() == first.pixels.tolist()
    assert (again.pixels.dtype, again.empty) == (np.int64, first.empty)
    assert (again.files, again.fingerprint) == (first.files, first.fingerprint)
    assert len(list((cache / "segmentation").iterdir())) == 1


def test_progress_is_told_whether_decoded_or_remembered(own: Path, cache: Path) -> None:
    for _ in range(2):
        done: list[int] = []
        open_split(own, "training", advance=done.append, cache=cache)
        assert sum(done) == 4


@pytest.mark.parametrize("change", ["mask", "image", "another", "classes", "rename"])
def test_a_changed_set_is_checked_again(own: Path, cache: Path, change: str) -> None:
    before = open_split(own, "training", cache=cache).fingerprint
    if change == "mask":  # the same size in bytes
        path = own / "annotations/training/training1.png"
        path.write_bytes(path.read_bytes())
    elif change == "image":
        (own / "images/training/training1.jpg").write_bytes(photo(12, 16) + b"\0")
    elif change == "another":
        write_pair(own, "training", "another", scene(0, 3))
    elif change == "classes":
        (own / "classes.txt").write_text("sky\nroad\nbus\n")
    else:
        (own / "images/training/training1.jpg").rename(own / "images/training/z.jpg")
        (own / "annotations/training/training1.png").rename(own / "annotations/training/z.png")
    found, decoded = spied(own, cache)
    assert decoded
    assert (found.fingerprint == before) == (change == "mask")
    assert not spied(own, cache)[1]
    assert len(list((cache / "segmentation").iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": [1, 2]},
        {"pixels": [1, 2, -3]},
        {"pixels": [1, 2, 0.5]},
        {"pixels": [1, 2, "x"]},
        {"pixels": [[1], [2], [3]]},
        {"pixels": [1, 2, 10**30]},
        {"empty": [4]},
        {"empty": [-1]},
        {"empty": "x"},
        {"empty": None},
        {"format": "tinyzoo-masks@0"},
        [],
        None,
    ],
)
def test_a_damaged_memory_is_none(own: Path, cache: Path, change: object) -> None:
    first = open_split(own, "training", cache=cache)
    (place,) = (cache / "segmentation").iterdir()
    record = json.loads(place.read_text())
    record = {**record, **change} if isinstance(change, dict) else change
    place.write_text(json.dumps(record)[: None if change is not None else 3])
    found, decoded = spied(own, cache)
    assert decoded
    assert found.pixels.tolist() == first.pixels.tolist()


def test_a_home_that_cannot_be_written(own: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(open_split(own, "training", cache=tmp_path / "file")) == 4


def test_the_fingerprint_is_of_the_files_and_not_of_their_place(own: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "copy")
    one, two = open_split(own, "training"), open_split(other, "training")
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != open_split(own, "validation").fingerprint
