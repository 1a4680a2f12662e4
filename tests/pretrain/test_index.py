"""The packed index: what counts as an image, in which order, and when a kept index holds."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain import index as module
from pretrain.index import KEPT, ImageIndex, PackedNames, load_index, open_index, save_index
from zoo.errors import DataError, DiskError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, a fresh one."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(module, "user_cache_dir", lambda _: str(folder))
    return folder


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The roots walked so far."""
    roots: list[Path] = []
    walk = module._walk
    monkeypatch.setattr(module, "_walk", lambda root: (roots.append(root), walk(root))[1])
    return roots


def make(root: Path, *names: str, content: bytes = b"image") -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def touch_later(folder: Path) -> None:
    """Move a folder's time on, which a file system with coarse clocks might not."""
    status = folder.stat()
    os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def names(index: ImageIndex) -> list[str]:
    return [str(index.path(i).relative_to(index.root)) for i in range(len(index))]


def test_class_folders(tmp_path: Path) -> None:
    index = open_index(make(tmp_path, "b/2.JPG", "b/1.png", "a/x.jpeg", "a/y.WebP", "a/t.txt"))
    assert names(index) == ["a/x.jpeg", "a/y.WebP", "b/1.png", "b/2.JPG"]
    assert index.classes == ["a", "b"]
    assert index.labels is not None
    assert index.labels.dtype == np.int32
    assert index.labels.tolist() == [0, 0, 1, 1]


def test_classes_at_any_depth_and_folders_without_images(tmp_path: Path) -> None:
    index = open_index(make(tmp_path, "cat/big/1.jpg", "cat/small/1.jpg", "dog/1.jpg", "no/a.txt"))
    assert index.classes == ["cat/big", "cat/small", "dog"]
    assert index.labels is not None
    assert index.labels.tolist() == [0, 1, 2]


def test_flat(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    index = open_index(make(tmp_path, "b.jpg", "a.jpg"))
    assert names(index) == ["a.jpg", "b.jpg"]
    assert index.labels is None
    assert index.classes == []


def test_mixed(tmp_path: Path) -> None:
    index = open_index(make(tmp_path, "loose.jpg", "cat/1.jpg"))
    assert index.classes == [".", "cat"]
    assert index.labels is not None
    assert index.labels.tolist() == [0, 1]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    index = open_index(make(tmp_path, "a/1.jpg", "a/._1.jpg", ".git/1.jpg", ".tinyzoo/1.jpg"))
    assert names(index) == ["a/1.jpg"]


def test_order_is_that_of_bytes(tmp_path: Path) -> None:
    index = open_index(make(tmp_path, "é.jpg", "z.jpg", "B.jpg", "a.jpg", "10.jpg", "9.jpg"))
    assert names(index) == ["10.jpg", "9.jpg", "B.jpg", "a.jpg", "z.jpg", "é.jpg"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/\xff.jpg")).write_bytes(b"image")
    for index in (open_index(tmp_path), open_index(tmp_path)):  # walked, then kept
        assert index.path(0).read_bytes() == b"image"
        assert [os.fsencode(name) for name in index.classes] == [b"caf\xe9"]


@pytest.mark.parametrize("exists", [True, False])
def test_no_images_is_a_data_error(tmp_path: Path, exists: bool) -> None:
    root = make(tmp_path, "readme.txt") if exists else tmp_path / "gone"
    with pytest.raises(DataError) as caught:
        open_index(root)
    assert caught.value.where == str(root)
    assert caught.value.fix


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        open_index(make(tmp_path, "a.jpg") / "a.jpg")


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    make(tmp_path / "store", "real/1.jpg")
    root = make(tmp_path / "root", "a/1.jpg")
    (root / "linked").symlink_to(tmp_path / "store" / "real")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "gone.jpg").symlink_to(root / "nothing")
    (root / "round.jpg").symlink_to(root / "round.jpg")
    assert names(open_index(root)) == ["a/1.jpg", "linked/1.jpg"]


def test_a_kept_index_is_not_walked_again(tmp_path: Path, walks: list[Path]) -> None:
    make(tmp_path, "b/1.jpg", "a/1.jpg", "a/2.jpg")
    first, second = open_index(tmp_path), open_index(tmp_path)
    assert len(walks) == 1
    assert (tmp_path / KEPT).is_file()
    assert names(first) == names(second)
    assert first.classes == second.classes
    assert first.fingerprint == second.fingerprint
    assert first.labels is not None
    assert second.labels is not None
    assert first.labels.tolist() == second.labels.tolist()


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new folder", "remove folder"])
def test_a_change_is_seen(tmp_path: Path, change: str, walks: list[Path]) -> None:
    make(tmp_path, "a/1.jpg", "a/2.jpg", "deep/er/1.jpg", "empty/readme.txt")
    before = open_index(tmp_path)
    if change == "add":
        make(tmp_path, "empty/3.jpg")
    elif change == "remove":
        (tmp_path / "a/2.jpg").unlink()
    elif change == "rename":
        (tmp_path / "deep/er/1.jpg").rename(tmp_path / "deep/er/2.jpg")
    elif change == "new folder":
        make(tmp_path, "deep/new/1.jpg")
    else:
        (tmp_path / "deep/er/1.jpg").unlink()
        (tmp_path / "deep/er").rmdir()
    for folder in ("a", "deep", "empty", "deep/er"):
        if change != "remove folder" or folder != "deep/er":
            touch_later(tmp_path / folder)
    after = open_index(tmp_path)
    assert len(walks) == 2
    assert names(after) != names(before)
    assert after.fingerprint != before.fingerprint


def test_only_a_folders_time_decides(tmp_path: Path, walks: list[Path]) -> None:
    make(tmp_path, "a/1.jpg")
    open_index(tmp_path)
    touch_later(tmp_path / "a")
    open_index(tmp_path)
    open_index(tmp_path)
    assert len(walks) == 2


def test_reindex_walks_and_sees_sizes(tmp_path: Path, walks: list[Path]) -> None:
    make(tmp_path, "a/1.jpg")
    before = open_index(tmp_path)
    make(tmp_path, "a/1.jpg", content=b"longer content")
    assert open_index(tmp_path).fingerprint == before.fingerprint
    assert open_index(tmp_path, reindex=True).fingerprint != before.fingerprint
    assert len(walks) == 2


def test_the_fingerprint_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    one = open_index(make(tmp_path / "one", "a/1.jpg", "b/1.jpg"))
    two = open_index(make(tmp_path / "two", "b/1.jpg", "a/1.jpg"))
    assert one.fingerprint == two.fingerprint
    assert len(one.fingerprint) == 64


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "version", "folder"])
def test_a_damaged_index_is_walked_again(
    tmp_path: Path, damage: str, walks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/1.jpg", "a/2.jpg")
    before = open_index(tmp_path)
    place = tmp_path / KEPT
    content = place.read_bytes()
    if damage == "cut":
        place.write_bytes(content[:-3])
    elif damage == "flip":
        at = content.index(b"1.jpg")
        place.write_bytes(content[:at] + b"7" + content[at + 1 :])
    elif damage == "empty":
        place.write_bytes(b"")
    elif damage == "text":
        place.write_bytes(b"<html>")
    elif damage == "version":
        with monkeypatch.context() as patch:
            patch.setattr(module, "_FORMAT", "tinyzoo-index@0")
            save_index(before, place)
    else:
        place.unlink()
        place.mkdir()
    assert names(open_index(tmp_path)) == names(before)
    assert len(walks) == 2


def test_a_read_only_root_is_kept_in_the_users_cache(
    tmp_path: Path, cache: Path, walks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/1.jpg")
    write = module.atomic_write

    def refuse(path: Path, data: bytes) -> None:  # root writes through chmod
        if path.parent == tmp_path:
            raise DiskError("the place cannot be written to")
        write(path, data)

    monkeypatch.setattr(module, "atomic_write", refuse)
    for _ in range(2):
        assert names(open_index(tmp_path)) == ["a/1.jpg"]
    assert len(walks) == 1
    assert [place.suffix for place in (cache / "indexes").iterdir()] == [".safetensors"]
    assert not (tmp_path / KEPT).exists()


def test_no_place_to_keep_it_is_no_error(
    tmp_path: Path, cache: Path, walks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/1.jpg", f"{KEPT}/in the way")
    monkeypatch.setattr(module, "user_cache_dir", lambda _: "/dev/null/cache")
    for _ in range(2):
        assert names(open_index(tmp_path)) == ["a/1.jpg"]
    assert len(walks) == 2


def test_a_million_images_open_at_once_and_travel_light(tmp_path: Path, cache: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    small = open_index(tmp_path)
    count = 1_000_000
    big = ImageIndex(
        root=small.root,
        names=PackedNames.of([b"1.jpg"] * count),
        folders=small.folders,
        folder_ids=np.sort(np.arange(count, dtype=np.int32) % 2 + 1),
        folder_times=small.folder_times,
        fingerprint="f" * 64,
    )
    place = cache / "big.safetensors"
    save_index(big, place)
    loaded = load_index(small.root, place)
    assert loaded is not None
    assert len(pickle.dumps(loaded, protocol=5)) < 18 * count
    copy = pickle.loads(pickle.dumps(loaded))
    assert copy.path(count - 1) == small.root / "b" / "1.jpg"
    assert copy.labels.sum() == count // 2


@given(st.lists(st.binary(max_size=12), max_size=20))
def test_packed_names_give_back_what_went_in(content: list[bytes]) -> None:
    packed = PackedNames.of(content)
    assert [packed[i] for i in range(len(packed))] == content
    for outside in (-1, len(content)):
        with pytest.raises(IndexError):
            packed[outside]
