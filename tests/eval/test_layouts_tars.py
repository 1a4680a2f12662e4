"""Tar archives and WebDataset shards: equal to folders, and never more than bytes at a place."""

import io
import pickle
import random
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evalsets import (
    SMALL,
    SYNSETS,
    THREE,
    flat_files,
    picture,
    plain_files,
    shard_files,
    val_files,
    val_pairs,
    write_tar,
    write_tree,
)
from faults import assert_error
from hypothesis import given
from hypothesis import strategies as st

from eval.layouts import EvalSet, open_eval_set
from eval.layouts.tars import list_tars
from zoo.errors import DataError, IntegrityError, ZooError

LABELS = {synset: SYNSETS.index(synset) for synset in THREE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> EvalSet:
    root = write_tree(tmp_path_factory.mktemp("set") / "val", val_files())
    return open_eval_set(root, "in1k-val", due=SMALL)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive that may be written over."""
    return tmp_path_factory.mktemp("scratch") / "a.tar"


def shuffled(files: dict[str, bytes]) -> dict[str, bytes]:
    names = list(files)
    random.Random(0).shuffle(names)
    return {name: files[name] for name in names}


def assert_equal(found: EvalSet, folder: EvalSet) -> None:
    assert found.fingerprint == folder.fingerprint
    assert np.array_equal(found.labels, folder.labels)
    assert (found.name, found.groups) == (folder.name, folder.groups)
    for i in range(len(folder)):
        assert found.where(i) == folder.where(i)
        assert found.basename(i) == folder.basename(i)
        assert np.array_equal(found.read(i), folder.read(i))


@pytest.mark.parametrize("top", ["", "./", "val/", "./imagenet/val/"])
def test_a_tar_equals_its_folder(tmp_path: Path, folder: EvalSet, top: str) -> None:
    files = {top + name: data for name, data in shuffled(val_files()).items()}
    tar = write_tar(tmp_path / "val.tar", {**files, f"{top}._{THREE[0]}": b"from a Mac"})
    found = open_eval_set(tar, "in1k-val", due=SMALL)
    assert_equal(found, folder)
    assert_equal(pickle.loads(pickle.dumps(found)), folder)
    assert_equal(open_eval_set(tmp_path, "in1k-val", due=SMALL), folder)


def test_several_tars_equal_the_folder(tmp_path: Path, folder: EvalSet) -> None:
    for synset in THREE:
        write_tar(tmp_path / f"{synset}.tar", val_files((synset,)))
    assert_equal(open_eval_set(tmp_path, "in1k-val", due=SMALL), folder)


def test_tars_of_the_training_set_are_left_out(tmp_path: Path, folder: EvalSet) -> None:
    write_tar(tmp_path / "imagenet-val.tar", val_files())
    write_tar(tmp_path / "imagenet-train.tar", plain_files(THREE))
    assert_equal(open_eval_set(tmp_path, "in1k-val", due=SMALL), folder)
    (tmp_path / "imagenet-val.tar").unlink()
    with pytest.raises(DataError, match="training set"):
        open_eval_set(tmp_path, "in1k-val", due=SMALL)


def test_the_official_archive_is_flat(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "ILSVRC2012_img_val.tar", flat_files())
    with pytest.raises(DataError, match="nothing says which"):
        open_eval_set(tar, "in1k-val", due=SMALL)
    rows = "".join(f"{name},{synset} 1 1 2 2\n" for name, synset in val_pairs())
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    found = open_eval_set(tar, "in1k-val", due=SMALL)
    assert found.complete
    label_of = {f"{name}.JPEG": LABELS[synset] for name, synset in val_pairs()}
    assert [label_of[found.where(i)] for i in range(30)] == found.labels.tolist()


@pytest.mark.parametrize("label_of", [LABELS, {synset: synset for synset in THREE}])
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_equal_the_folder(
    tmp_path: Path, folder: EvalSet, label_of: dict, shards: int
) -> None:
    files = list(val_files().items())
    for k in range(shards):
        part = shard_files(dict(files[k::shards]), label_of)  # keys recur from shard to shard
        write_tar(tmp_path / f"in1k-validation-{k:02}.tar", part)
    found = open_eval_set(tmp_path, "in1k-val", due=SMALL)
    assert found.complete
    ours = sorted((int(found.labels[i]), found.read(i).tobytes()) for i in range(30))
    theirs = sorted((int(folder.labels[i]), folder.read(i).tobytes()) for i in range(30))
    assert ours == theirs
    assert len({found.where(i) for i in range(30)}) == 30


def test_own_shards(tmp_path: Path) -> None:
    files = plain_files(("ant", "bee", "cow"), 2)
    write_tar(tmp_path / "a.tar", shard_files(files, {"ant": 10, "bee": 2, "cow": 0}))
    found = open_eval_set(tmp_path, "own")
    assert found.classes == ("0", "2", "10")
    assert found.labels.tolist() == [2, 2, 1, 1, 0, 0]
    write_tar(
        tmp_path / "a.tar", shard_files(files, {name: name for name in ("ant", "bee", "cow")})
    )
    assert open_eval_set(tmp_path, "own").classes == ("ant", "bee", "cow")


def test_own_classes_in_a_tar(tmp_path: Path) -> None:
    files = plain_files(("ant", "bee"), 2)
    tar = write_tar(tmp_path / "own.tar", {f"photos/{name}": data for name, data in files.items()})
    tree = open_eval_set(write_tree(tmp_path / "tree", files), "own")
    assert_equal(open_eval_set(tar, "own"), tree)
    assert tree.classes == ("ant", "bee")


@pytest.mark.parametrize("label", [1000, -1, "tench", "n99999999", "", "1.5", "٣"])
def test_labels_that_are_no_class(tmp_path: Path, label: int | str) -> None:
    files = shard_files(val_files(), LABELS)
    files["000007.cls"] = str(label).encode()
    with pytest.raises(DataError, match="no classes of ImageNet") as caught:
        open_eval_set(write_tar(tmp_path / "a.tar", files), "in1k-val", due=SMALL)
    assert_error(caught.value, 3, what="no classes of", where=str(tmp_path), fix="in1k-val")


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("000003.cls"),
        lambda files: files.pop("000003.jpg"),
        lambda files: files.update({"000003.png": picture(0)}),
        lambda files: files.update({"000003.cls": b"1" * 65}),
    ],
)
def test_pairs_that_are_none(tmp_path: Path, change: Callable[[dict], object]) -> None:
    files = shard_files(val_files(), LABELS)
    change(files)
    with pytest.raises(DataError) as caught:
        open_eval_set(write_tar(tmp_path / "a.tar", files), "in1k-val", due=SMALL)
    assert "000003" in caught.value.where


def test_shards_say_no_severity(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", shard_files(val_files(), LABELS))
    with pytest.raises(DataError, match="severity"):
        open_eval_set(tar, "in1k-c")


# Archives that are none


def test_an_empty_class_in_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", val_files(THREE[:2]))
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(f"./{THREE[2]}/")
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    with pytest.raises(DataError) as caught:
        open_eval_set(path, "in1k-val", due=SMALL)
    assert f"empty: {THREE[2]}" in caught.value.where


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_archives(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"val.tar.{kind}"
    with tarfile.open(path, f"w:{kind}") as tar:  # type: ignore[call-overload]
        tar.addfile(tarfile.TarInfo("a.jpg"))
    for data in (path, tmp_path):
        with pytest.raises(DataError, match="compressed") as caught:
            open_eval_set(data, "in1k-val")
        assert "unpack" in caught.value.fix


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", plain_files(("ant", "bee"), 2))
    whole = path.read_bytes()
    last = whole.rstrip(b"\0")
    ends = -(-len(last) // 512) * 512  # where the end mark starts
    for size in {0, 1, 511, 513, *range(512, ends + 1, 512), len(last)}:
        path.write_bytes(whole[:size])
        with pytest.raises(DataError) as caught:
            list_tars([path])
        assert caught.value.where == str(path)


@given(at=st.integers(0, 5 * 1024), byte=st.integers(0, 255))
def test_a_damaged_archive_is_an_error_or_the_same_list(scratch: Path, at: int, byte: int) -> None:
    files = plain_files(("ant", "bee"), 2)
    path = write_tar(scratch, files)
    content = bytearray(path.read_bytes())
    content[at % len(content)] = byte
    path.write_bytes(content)
    try:
        listing = list_tars([path])
    except ZooError:
        return
    assert {listing.relative(i).decode() for i in range(len(listing))} == set(files)


def test_joined_archives(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "a.tar", plain_files(("ant",), 2))
    two = write_tar(tmp_path / "b.tar", plain_files(("bee",), 2))
    one.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(DataError, match="joined"):
        list_tars([one])


def test_names_twice_in_one_archive(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", plain_files(("ant",), 2))
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("./ant/0.jpg"))
    with pytest.raises(DataError, match="same name") as caught:
        list_tars([path])
    assert "ant/0.jpg" in caught.value.where


def test_an_archive_that_shrinks(tmp_path: Path, folder: EvalSet) -> None:
    path = write_tar(tmp_path / "a.tar", val_files())
    found = open_eval_set(path, "in1k-val", due=SMALL)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match="shorter") as caught:
        found.read(29)
    assert folder.where(29) in caught.value.where
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        found.read(0)


def test_no_image_in_an_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        list_tars([write_tar(tmp_path / "a.tar", {"ant/readme.txt": b"x"})])


# Hostile members


def hostile(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.type = kind
        if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
            member.linkname = "/etc/passwd"
        if kind == tarfile.REGTYPE:
            member.size = 5
        tar.addfile(member, io.BytesIO(b"image"))
    return path


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
@pytest.mark.parametrize("name", ["ant/1.jpg", "ant", "1.cls"])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, name: str) -> None:
    with pytest.raises(IntegrityError, match="link or a device") as caught:
        list_tars([hostile(tmp_path / "a.tar", name, kind)])
    assert name in caught.value.where


PART = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@given(
    parts=st.lists(st.one_of(PART, st.sampled_from(["..", ".", "", "ant"])), max_size=5),
    absolute=st.booleans(),
)
def test_no_name_leads_out(scratch: Path, parts: list[str], absolute: bool) -> None:
    name = ("/" if absolute else "") + "/".join([*parts, "1.jpg"])
    path = hostile(scratch, name)
    if name.startswith("/") or ".." in parts or "\\" in name:
        with pytest.raises(IntegrityError, match="leads out"):
            list_tars([path])
    elif any(part.startswith(".") and part != "." for part in parts):
        with pytest.raises(DataError, match="no image"):
            list_tars([path])
    else:
        inside = list_tars([path]).relative(0).decode()
        assert inside == "/".join(part for part in name.split("/") if part not in {"", "."})


def test_a_negative_size_does_not_turn_in_circles(tmp_path: Path) -> None:
    path = hostile(tmp_path / "a.tar", "ant/1.jpg")
    header = bytearray(path.read_bytes())
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(header)
    with pytest.raises(DataError, match="impossible size"):
        list_tars([path])


def test_sparse_members(tmp_path: Path) -> None:
    path = hostile(tmp_path / "a.tar", "ant/1.jpg")
    header = bytearray(path.read_bytes())
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[257:265] = b"ustar  \0"
    header[386:410] = b"%011o\0%011o\0" % (0, 5)
    header[483:495] = b"%011o\0" % 5
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(header)
    with pytest.raises(DataError, match="sparse"):
        list_tars([path])


def test_thousands_of_members_take_no_time(tmp_path: Path) -> None:
    files = {f"{SYNSETS[i % 1000]}/{i:06}.jpg": b"x" for i in range(5000)}
    path = write_tar(tmp_path / "a.tar", files)
    due = replace(SMALL, images=5000, synsets=SYNSETS, per_class=5)
    started = time.process_time()
    found = open_eval_set(path, "in1k-sketch", due=due)
    assert found.complete
    assert time.process_time() - started < 5
    assert len(pickle.dumps(found)) < 5000 * 55 + 1000 * 50


def test_archives_one_folder_down_and_beside_images(tmp_path: Path, folder: EvalSet) -> None:
    write_tar(tmp_path / "hub/data/val.tar", val_files())
    (tmp_path / "hub/README.md").write_text("a card")
    assert_equal(open_eval_set(tmp_path / "hub", "in1k-val", due=SMALL), folder)
    write_tree(tmp_path / "unpacked", val_files())
    write_tar(tmp_path / "unpacked/ILSVRC2012_img_val.tar", flat_files())
    assert_equal(open_eval_set(tmp_path / "unpacked", "in1k-val", due=SMALL), folder)
