"""Features that are kept: a hit, a miss for every part of the key, damage, several writers."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from banks import made_bank, peak_of_search
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import make_photos
from runs import _FORKS

from eval import features
from eval.backbone import Backbone, Pooled, open_backbone
from eval.features import FeatureKey, Features, cached_features
from eval.nearest import BANK_BLOCK
from eval.probe import extract
from pretrain.distributed import World
from pretrain.index import ImageIndex, open_index
from zoo.card import Card
from zoo.errors import DataError, IntegrityError
from zoo.folder import load_model, save_model
from zoo.images import Preprocess
from zoo.vit import ViTConfig, build_vit

TINY = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    card = Card(name="tiny", method="none", heads=3, last_trained_block=2)
    save_model(folder, TINY, build_vit(TINY, seed=3).state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return open_index(make_photos(tmp_path_factory.mktemp("photos"), per_class=7))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD", 8)  # of 21 images: three shards, the last of 5


def keep(
    backbone: Backbone, index: ImageIndex, cache: Path, pooled: Pooled = "cls", **other: Any
) -> Features:
    arguments = {"cache": cache, "world": World(device=CPU), "workers": 0, **other}
    return cached_features(backbone, index, index.fingerprint, pooled, **arguments)


def whole(kept: Features) -> torch.Tensor:
    return torch.cat(list(kept.blocks(6)))


def bytes_of(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.rglob("*.npy")}


@pytest.mark.parametrize("pooled", ["cls", "mean", "cls+mean"])
def test_what_is_kept_is_what_the_network_gives(
    model: Path, index: ImageIndex, tmp_path: Path, pooled: Any
) -> None:
    kept = keep(open_backbone(str(model), device=CPU), index, tmp_path, pooled)
    loaded = load_model(model)
    parts = [
        extract(loaded, index, pooling=part, device=CPU, workers=0) for part in pooled.split("+")
    ]
    torch.testing.assert_close(whole(kept), torch.cat(parts, dim=1), atol=1e-5, rtol=1e-5)
    assert (len(kept), kept.width, len(kept.shards)) == (21, 24 * len(parts), 3)


def test_the_second_time_no_image_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(make_photos(tmp_path / "photos", per_class=3))
    backbone = open_backbone(str(model), device=CPU)
    first = whole(keep(backbone, index, tmp_path / "cache"))
    for i in range(len(index)):
        index.path(i).unlink()
    assert torch.equal(whole(keep(backbone, index, tmp_path / "cache")), first)


KEY = FeatureKey(
    model_digest="a",
    data_fingerprint="b",
    transform={"image_size": 32},
    device="cpu",
    dtype="float32",
    pooling="cls",
    place="block 2",
    shard=2048,
    extraction=1,
)
OTHERS: dict[str, Any] = {
    "model_digest": "c",
    "data_fingerprint": "c",
    "transform": {"image_size": 48},
    "device": "cuda",
    "dtype": "float16",
    "pooling": "mean",
    "place": "block 3",
    "shard": 1024,
    "extraction": 2,
}


@pytest.mark.parametrize("part", OTHERS)
def test_every_part_of_the_key_makes_another(part: str) -> None:
    assert OTHERS.keys() == set(FeatureKey.__dataclass_fields__)
    assert replace(KEY, **{part: OTHERS[part]}).digest != KEY.digest


@pytest.mark.parametrize("part", sorted(OTHERS.keys() - {"device"}))
def test_what_is_another_is_computed_anew(
    model: Path, index: ImageIndex, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = open_backbone(str(model), device=CPU)
    keep(backbone, index, tmp_path)
    fingerprint: str = index.fingerprint
    pooled: Pooled = "cls"
    if part == "model_digest":
        backbone = replace(backbone, digest="c")
    elif part == "data_fingerprint":
        fingerprint = "c"
    elif part == "transform":
        squash = Preprocess(image_size=32, crop_mode="squash")
        backbone = open_backbone(str(model), device=CPU, transform=squash)
    elif part == "dtype":
        backbone = open_backbone(str(model), device=CPU, dtype="bfloat16")
    elif part == "pooling":
        pooled = "mean"
    elif part == "place":
        backbone = replace(backbone, place="block 3")
    else:
        monkeypatch.setattr(features, part.upper(), 9)
    cached_features(
        backbone, index, fingerprint, pooled, cache=tmp_path, world=World(device=CPU), workers=0
    )
    folders = list((tmp_path / "features").iterdir())
    assert len(folders) == 2
    keys = [json.loads((folder / "key.json").read_text()) for folder in folders]
    differing = {name for name in keys[0] if keys[0][name] != keys[1][name]}
    assert differing == {part}


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "lost", "renamed"])
def test_a_damaged_shard_is_made_anew(
    model: Path, index: ImageIndex, tmp_path: Path, damage: str
) -> None:
    backbone = open_backbone(str(model), device=CPU)
    keep(backbone, index, tmp_path)
    before = bytes_of(tmp_path)
    victim = sorted(tmp_path.rglob("*.npy"))[1]
    data = bytearray(victim.read_bytes())
    if damage == "flipped":
        data[-5] ^= 4
        victim.write_bytes(data)
    elif damage == "lost":
        victim.unlink()
    elif damage == "renamed":  # to another shard's place
        victim.rename(victim.with_name("000000" + victim.name[6:]))
    else:
        victim.write_bytes(data[: 0 if damage == "empty" else 300])
    found = whole(keep(backbone, index, tmp_path))
    assert bytes_of(tmp_path) == before
    assert found.shape == (21, 24)


def test_what_a_killed_writer_left_goes_once_it_is_old(
    model: Path, index: ImageIndex, tmp_path: Path
) -> None:
    backbone = open_backbone(str(model), device=CPU)
    keep(backbone, index, tmp_path)
    folder = next(tmp_path.rglob("key.json")).parent
    dead = _FORKS.Process(target=time.sleep, args=(0,))
    dead.start()
    dead.join()
    old, young = (folder / f".tmp-{dead.pid}-{name}.npy" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    keep(backbone, index, tmp_path)
    assert not old.exists()
    assert young.exists()  # its writer may live on another machine


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_half_precision_is_kept_as_such(
    model: Path, index: ImageIndex, tmp_path: Path, dtype: str
) -> None:
    kept = keep(open_backbone(str(model), device=CPU, dtype=dtype), index, tmp_path)
    exact = keep(open_backbone(str(model), device=CPU), index, tmp_path)
    assert whole(kept).dtype == getattr(torch, dtype)
    assert kept.shards[0].stat().st_size == 128 + 8 * 24 * (4 if dtype == "float32" else 2)
    torch.testing.assert_close(whole(kept).float(), whole(exact), atol=0.1, rtol=0.1)


def test_features_that_are_no_numbers_are_an_error(
    model: Path, index: ImageIndex, tmp_path: Path
) -> None:
    backbone = open_backbone(str(model), device=CPU)
    broken = replace(
        backbone, _tokens=lambda images: (torch.full((len(images), 24), torch.nan), images[:, :1])
    )
    with pytest.raises(IntegrityError, match="not finite, of 8 images"):
        keep(broken, index, tmp_path)
    assert not bytes_of(tmp_path)


def test_all_images_that_cannot_be_read_are_listed(model: Path, tmp_path: Path) -> None:
    index = open_index(make_photos(tmp_path / "photos", per_class=7))
    for i in (9, 20):
        index.path(i).write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 21") as caught:
        keep(open_backbone(str(model), device=CPU), index, tmp_path / "cache")
    assert all(index.path(i).name in caught.value.where for i in (9, 20))
    assert len(bytes_of(tmp_path / "cache")) == 1  # the shard before them


@settings(max_examples=30, deadline=None)
@given(
    places=st.lists(st.integers(0, 49), max_size=30),
    rows=st.integers(1, 60),
    size=st.integers(1, 9),
)
def test_any_rows_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], rows: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    array = np.random.default_rng(0).standard_normal((50, 3), np.float32)
    shards = []
    for number, start in enumerate(range(0, 50, rows)):
        shards.append(folder / f"{number}.npy")
        np.save(shards[-1], array[start : start + rows])
    kept = Features(shards=tuple(shards), count=50, width=3, dtype="float32", rows=rows)
    taken = kept.take(np.array(places, np.int64))
    assert np.array_equal(taken.numpy(), array[places].reshape(-1, 3))
    assert np.array_equal(torch.cat(list(kept.blocks(size))).numpy(), array)


def test_a_bank_larger_than_memory_may_be_stays_on_disk(tmp_path: Path) -> None:
    bank = made_bank(tmp_path, rows=2048, width=768, shards=120)
    size = 4 * len(bank) * bank.width
    answers = _FORKS.Queue()
    process = _FORKS.Process(target=peak_of_search, args=(bank, answers))
    process.start()
    added = answers.get(timeout=120)
    process.join()
    block = 4 * BANK_BLOCK * bank.width
    assert size > 700_000_000
    assert added < 9 * block < size / 3  # 8.02 blocks were seen
