"""Images set aside by a list: every class in both parts, nothing twice, and always the same."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import make_photos

from pretrain.data import open_source
from pretrain.index import open_index
from pretrain.split import make_split, open_part, read_split, write_split
from zoo.errors import DataError, IntegrityError, UsageError, ZooError

_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


def fill(folder: Path, classes: list[int], stem: str = "x") -> Path:
    """So many files of a byte or more in every class: a list of names opens none."""
    for number, count in enumerate(classes):
        (folder / f"class{number}").mkdir(parents=True)
        for i in range(count):
            (folder / f"class{number}" / f"{stem[:20]}{i}.jpg").write_bytes(b"x" * (i + 1))
    return folder


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(2, 9), min_size=2, max_size=4),
    st.floats(0.01, 0.99),
    st.integers(0, 99),
    _NAMES.filter(lambda name: not name.startswith(".")),
)
def test_every_class_is_in_both_parts(
    classes: list[int], share: float, seed: int, stem: str
) -> None:
    with tempfile.TemporaryDirectory() as temp:
        index = open_index(fill(Path(temp) / "data", classes, stem))
        split = make_split(index, share=share, seed=seed)
        assert split == make_split(index, share=share, seed=seed)
        assert not set(split.train) & set(split.val)
        assert len(split.train) + len(split.val) == len(index) == sum(classes)
        write_split(split, Path(temp) / "split.json")
        assert read_split(Path(temp) / "split.json") == split
        train, val = (open_part(Path(temp) / f"split.json#{part}") for part in ("train", "val"))
        assert train.classes == val.classes == index.classes
        assert train.labels is not None
        assert val.labels is not None
        for label, count in enumerate(classes):
            aside = int((val.labels == label).sum())
            assert aside == min(max(round(share * count), 1), count - 1)
            assert aside + int((train.labels == label).sum()) == count


def test_another_seed_sets_other_images_aside(tmp_path: Path) -> None:
    index = open_index(fill(tmp_path, [9, 9]))
    assert make_split(index, share=0.3, seed=0) != make_split(index, share=0.3, seed=1)


def test_a_part_is_like_a_folder_of_its_own(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=4)
    split = make_split(open_index(photos), share=0.5, seed=0)
    write_split(split, tmp_path / "split.json")
    part = open_source(f"split:{tmp_path / 'split.json'}#val")
    for name in split.val:
        (tmp_path / "alone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / name, tmp_path / "alone" / name)
    alone = open_index(tmp_path / "alone")
    assert part.fingerprint == alone.fingerprint
    assert [part.path(i).relative_to(photos) for i in range(len(part))] == [
        alone.path(i).relative_to(alone.root) for i in range(len(alone))
    ]
    assert part.labels is not None
    assert np.array_equal(part.labels, alone.labels)  # type: ignore[arg-type]


def test_new_images_are_no_part_and_lost_ones_are_named(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=4)
    write_split(make_split(open_index(photos), share=0.5, seed=0), tmp_path / "split.json")
    source = tmp_path / "split.json#train"
    before = open_part(source)
    shutil.copy(photos / "ant" / "000.jpg", photos / "ant" / "new.jpg")
    assert open_part(source).fingerprint == before.fingerprint
    lost = before.path(0)
    lost.unlink()
    with pytest.raises(DataError, match="1 images of the list are no longer") as caught:
        open_part(source)
    assert lost.name in caught.value.where


@pytest.mark.parametrize(
    ("classes", "said"), [([3], "one class only"), ([3, 1, 1], "2 classes have one image only")]
)
def test_what_cannot_be_split_is_refused(tmp_path: Path, classes: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        make_split(open_index(fill(tmp_path, classes)), share=0.2, seed=0)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", [3, 3])
    (folder / "class0" / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    split = make_split(open_index(folder), share=0.5, seed=0)
    write_split(split, tmp_path / "split.json")
    parts = [open_part(tmp_path / f"split.json#{part}") for part in ("train", "val")]
    assert sum(map(len, parts)) == 7


def test_flat_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="no class folders"):
        make_split(open_index(tmp_path), share=0.2, seed=0)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", IntegrityError),
        ("[]", IntegrityError),
        ('{"root": 3}', IntegrityError),
        ('{"root": "/", "seed": 0, "share": 0.1, "train": [1], "val": []}', IntegrityError),
    ],
)
def test_a_file_that_is_no_list(tmp_path: Path, text: str, error: type[ZooError]) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(error):
        open_part(tmp_path / "split.json#train")


def test_sources_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such list"):
        open_source(f"split:{tmp_path}/none.json#train")
    with pytest.raises(UsageError, match="which part"):
        open_source(f"split:{tmp_path}/none.json")
