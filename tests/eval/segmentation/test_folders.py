"""What people give instead of the folder of the set: each is told what to give."""

import os
import shutil
from pathlib import Path

import pytest
from segsets import grey, photo, scene, write_set

from eval.segmentation.data import open_split
from zoo.errors import DataError


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_set(tmp_path / "ADEChallengeData2016")


def refused(root: Path, split: str = "training") -> DataError:
    with pytest.raises(DataError) as caught:
        open_split(root, split)
    assert caught.value.fix
    return caught.value


def test_nothing_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").what == "there is no such folder"
    (tmp_path / "loop").symlink_to("loop")
    assert "folder" in refused(tmp_path / "loop").what
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file").what == "the data set is not a folder"
    (tmp_path / "empty").mkdir()
    error = refused(tmp_path / "empty")
    assert error.what == "no set in ADE20K's layout: there is no images/ and no annotations/"
    assert error.where.endswith("which holds: nothing")
    assert "images/training" in error.fix


def test_the_folder_above(own: Path) -> None:
    error = refused(own.parent)
    assert error.fix == f"give {own}"
    write_set(own.parent / "B")
    assert refused(own.parent).fix == f"give one of: {own}, {own.parent / 'B'}"


@pytest.mark.parametrize("inner", ["images", "annotations", "images/training"])
def test_a_folder_inside(own: Path, monkeypatch: pytest.MonkeyPatch, inner: str) -> None:
    assert refused(own / inner).fix == f"give {own}, the folder of the whole set"
    monkeypatch.chdir(own / inner)
    assert refused(Path()).fix == f"give {own}, the folder of the whole set"


@pytest.mark.parametrize("inside", [True, False])
def test_an_archive(tmp_path: Path, inside: bool) -> None:
    archive = tmp_path / "ADEChallengeData2016.zip"
    archive.write_bytes(b"PK")
    error = refused(tmp_path if inside else archive)
    assert error.what == "the set is still packed"
    assert error.where == str(archive)


def test_one_folder_of_the_two(own: Path) -> None:
    (own / "annotations").rename(own / "masks")
    error = refused(own)
    assert error.what == "no set in ADE20K's layout: there is no annotations/"
    assert error.where.endswith("classes.txt, images, masks")


def test_splits_first(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "images").mkdir(parents=True)
    error = refused(tmp_path)
    assert error.where.endswith("which holds: train, val")
    assert "images/training" in error.fix


def test_images_without_the_folder_of_a_split(own: Path) -> None:
    shutil.rmtree(own / "images")
    (own / "images").mkdir()
    (own / "images" / "a.jpg").write_bytes(photo(4, 4))
    assert "no folder of a split" in refused(own).what
    assert "images/training" in refused(own).fix


def test_a_split_that_is_not_there(own: Path) -> None:
    error = refused(own, "testing")
    assert error.what == "there is no split 'testing', only: training, validation"
    assert refused(own, "../images/training").what.endswith("only: training, validation")
    assert "no split ''" in refused(own, "").what


@pytest.mark.parametrize(("split", "short"), [("training", "train"), ("validation", "val")])
def test_short_names_of_splits(own: Path, split: str, short: str) -> None:
    for folder in ("images", "annotations"):
        (own / folder / split).rename(own / folder / short)
    error = refused(own, split)
    assert short in error.what
    assert error.fix == f"rename images/{short} and annotations/{short} to {split}"
    assert len(open_split(own, short)) > 0


def test_a_split_without_masks(own: Path) -> None:
    (own / "images/testing").mkdir()
    error = refused(own, "testing")
    assert error.what == "split 'testing' has images and no masks"
    assert error.where.endswith("splits there: training, validation")


def test_a_split_without_images(own: Path) -> None:
    for path in (own / "images/training").iterdir():
        path.unlink()
    error = refused(own)
    assert "no file that ends in .jpg" in error.what
    assert error.where.endswith("endings there: none")


def test_names_that_a_terminal_would_obey(own: Path) -> None:
    (own / "images/training/red\x1b[31m\n.jpg").write_bytes(photo(4, 4))
    assert r"red\x1b[31m\n.jpg" in refused(own).where


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(own: Path) -> None:
    (own / "images/training").chmod(0)
    try:
        assert "cannot be read" in refused(own).what
    finally:
        (own / "images/training").chmod(0o755)


# The full ADE20K


def full_2021(root: Path) -> Path:
    place = root / "images/ADE/training/urban/street"
    place.mkdir(parents=True)
    (place / "ADE_train_00016869.jpg").write_bytes(photo(4, 4))
    (place / "ADE_train_00016869_seg.png").write_bytes(grey(scene(0, 3, 4, 4)))
    (place / "ADE_train_00016869.json").write_text("{}")
    return root


def full_2016(root: Path) -> Path:
    """Its images/ and splits are called as the challenge's."""
    place = root / "images/training/a/abbey"
    place.mkdir(parents=True)
    (root / "annotations/training").mkdir(parents=True)
    (root / "classes.txt").write_text("abbey\n")
    (place / "ADE_train_00000970.jpg").write_bytes(photo(4, 4))
    (place / "ADE_train_00000970_seg.png").write_bytes(grey(scene(0, 3, 4, 4)))
    return root


@pytest.mark.parametrize("given", [".", "..", "images", "indexed", "2016"])
def test_the_full_ade20k(tmp_path: Path, given: str) -> None:
    root = full_2021(tmp_path / "ADE20K_2021_17_01")
    if given == "indexed":
        root = tmp_path / "other"
        root.mkdir()
        (root / "index_ade20k.pkl").write_bytes(b"")
    elif given == "2016":
        root = full_2016(tmp_path / "ADE20K_2016_07_26")
    else:
        root = root / given
    error = refused(root)
    assert error.what.startswith("this is the full ADE20K")
    assert "ADEChallengeData2016" in error.fix
