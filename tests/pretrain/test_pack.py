"""``zoo data pack``: a folder's own bytes in shards, the same each time, whole or not there."""

import gc
import itertools
import json
import os
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from runs import zoo
from webdataset.compat import WebDataset

from pretrain.index import open_index
from pretrain.pack import pack
from pretrain.shards import open_shards
from zoo.errors import DataError, DiskError, UsageError


def pairs(folder: Path) -> list[tuple[bytes, int]]:
    """Every image's bytes and class, as webdataset itself reads them."""
    places = [str(place) for place in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
        data = WebDataset(places, shardshuffle=False)
        found = [(sample["jpg"], int(sample["cls"])) for sample in data]
        gc.collect()
    return found


def of_folder(photos: Path) -> list[tuple[bytes, int]]:
    index = open_index(photos)
    assert index.labels is not None
    return [(index.path(i).read_bytes(), int(label)) for i, label in enumerate(index.labels)]


def files(folder: Path) -> dict[str, bytes]:
    return {place.name: place.read_bytes() for place in sorted(folder.iterdir())}


def test_webdataset_reads_what_was_packed(photos: Path, tmp_path: Path) -> None:
    packed = pack(photos, tmp_path / "shards", shard_bytes=20_000)
    assert sorted(pairs(tmp_path / "shards")) == sorted(of_folder(photos))
    assert pairs(tmp_path / "shards") != of_folder(photos)
    assert (packed.images, packed.classes) == (36, 3)
    places = sorted((tmp_path / "shards").glob("*.tar"))
    assert packed.shards == len(places) >= 3
    assert packed.bytes == sum(place.stat().st_size for place in places)
    assert all(place.stat().st_size <= 20_000 + 1024 for place in places)
    sizes = [place.stat().st_size for place in places]
    assert max(sizes) < 1.5 * min(sizes)


def test_timm_reads_the_index(photos: Path, tmp_path: Path) -> None:
    from timm.data.readers.reader_wds import _load_info, _parse_split_info

    pack(photos, tmp_path / "shards", shard_bytes=20_000)
    info = _parse_split_info("train", _load_info(str(tmp_path / "shards")))
    assert info.num_samples == sum(info.shard_lengths) == 36
    assert [*info.filenames] == sorted(p.name for p in (tmp_path / "shards").glob("*.tar"))


def test_the_order_follows_from_the_seed_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    for name, options in {"a": {}, "b": {}, "c": {"seed": 1}, "d": {"in_order": True}}.items():
        pack(photos, tmp_path / name, shard_bytes=20_000, **options)
        time.sleep(0.01)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert pairs(tmp_path / "a") != pairs(tmp_path / "c")
    assert sorted(pairs(tmp_path / "a")) == sorted(pairs(tmp_path / "c"))
    assert pairs(tmp_path / "d") == of_folder(photos)
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert member.mode == 0o644


@pytest.mark.parametrize("shard_bytes", [1, 3000, 10_000, 10**9])
def test_every_size_holds_everything(photos: Path, tmp_path: Path, shard_bytes: int) -> None:
    packed = pack(photos, tmp_path / "shards", shard_bytes=shard_bytes)
    found = open_shards(str(tmp_path / "shards"))
    assert found.samples == 36
    assert len(found.shards) == packed.shards
    assert 1 <= packed.shards <= 36
    assert all(shard.count for shard in found.shards)


def test_shards_are_as_few_as_can_be_whatever_the_sizes(tmp_path: Path) -> None:
    """Images larger than a shard stand alone, and make no more shards of the others."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(500, 9_000, 150), np.full(10, 30_000)])
    for number, size in enumerate(rng.permutation(sizes)):
        (tmp_path / "photos" / "ant").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / "ant" / f"{number:03}.jpg").write_bytes(rng.bytes(int(size)))
    pack(tmp_path / "photos", tmp_path / "shards", shard_bytes=20_000)
    found = []
    for place in sorted((tmp_path / "shards").glob("*.tar")):
        with tarfile.open(place) as tar:
            members = [512 + -(-member.size // 512) * 512 for member in tar]
        found.append([a + b for a, b in zip(members[::2], members[1::2], strict=True)])
    assert all(sum(shard) <= 20_000 or len(shard) == 1 for shard in found)
    assert sum(sum(shard) > 20_000 for shard in found) == 10
    least, room = 0, 0
    for image in itertools.chain(*found):  # as full as can be
        least, room = (least, room - image) if image <= room else (least + 1, 20_000 - image)
    assert len(found) == least


@pytest.mark.parametrize("images", [9, 10, 23, 101])
def test_equal_images_make_equal_shards(tmp_path: Path, images: int) -> None:
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    for number in range(images):
        (tmp_path / "photos" / "ant" / f"{number:03}.jpg").write_bytes(bytes(3_000))
    pack(tmp_path / "photos", tmp_path / "shards", shard_bytes=20_000)  # four of them and labels
    counts = [s.count or 0 for s in open_shards(str(tmp_path / "shards")).shards]
    assert max(counts) - min(counts) <= 1
    assert len(counts) == -(-images // 4)


def test_odd_names_and_no_classes(photos: Path, tmp_path: Path) -> None:
    data = (photos / "ant" / "000.jpg").read_bytes()
    folder = tmp_path / "flat"
    folder.mkdir()
    names = [b"a.b.c.JPG", b"\xff.jpg", "ü 'x'.jpeg".encode(), b"a" * 200 + b".jpg", b"a_b_c.jpg"]
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:  # noqa: PTH118, PTH123
            file.write(data)
    packed = pack(folder, tmp_path / "shards", shard_bytes=10**6)
    assert (packed.images, packed.classes, packed.shards) == (5, 0, 1)
    found = open_shards(str(tmp_path / "shards"))
    assert found.samples == 5
    assert not found.labelled
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        members = tar.getnames()
    assert len({name.partition(".")[0] for name in members}) == 5
    assert all(name.isascii() and len(name) < 100 and name.count(".") == 1 for name in members)


def test_a_place_that_is_taken_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder"):
        with pytest.raises(UsageError, match="something already"):
            pack(photos, tmp_path / name, shard_bytes=10**6)
    assert not [*(tmp_path / "folder").iterdir()]


def test_a_full_disk_leaves_nothing(tmp_path: Path, full_disk: int) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(bytes(full_disk // 2))
    with pytest.raises(DiskError, match="no space"):
        pack(folder, tmp_path / "shards", shard_bytes=10 * full_disk)
    assert [place.name for place in tmp_path.iterdir()] == ["images"]


def test_an_image_that_changes_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pretrain.pack as module

    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "a.jpg"
    image.write_bytes(b"abc")
    actual = module._plan
    monkeypatch.setattr(
        module, "_plan", lambda *a, **k: (image.write_bytes(b"ab"), actual(*a, **k))[1]
    )
    with pytest.raises(DataError, match="changed meanwhile") as caught:
        pack(tmp_path / "images", tmp_path / "shards", shard_bytes=10**6)
    assert caught.value.where == str(image)
    assert [place.name for place in tmp_path.iterdir()] == ["images"]


def test_the_verb(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "pack", str(photos), "--out", str(tmp_path / "a"), "--shard-size-mb", "0.02"]
    assert zoo(words) == 0
    assert f"data.source=wds:{tmp_path}/a" in capsys.readouterr().out
    words[4] = str(tmp_path / "b")
    assert zoo([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["classes"], said["folder"]) == (36, 3, str(tmp_path / "b"))
    assert zoo([*words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["code"] == 2
    assert zoo(["data", "pack", str(tmp_path / "none"), "--out", str(tmp_path / "c")]) == 3
