"""Streamed shards: the same pictures whatever the workers, the same sequence from any position."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import same
from hypothesis import given
from hypothesis import strategies as st
from shards import picture, serve, write_info, write_shard, write_shards

from pretrain import stream as stream_module
from pretrain.data import MAX_ATTEMPTS, Data
from pretrain.objective import Batch
from pretrain.shards import ShardSet, open_shards
from pretrain.stream import Deal, Reader
from pretrain.stream_loader import StreamLoader
from zoo.errors import DataError, UsageError

COUNTS = [5, 9, 1, 7, 12]
"""Samples of each shard: uneven."""
CROP = Data(source="folder:x").crop(16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("plain") / "shards", COUNTS)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = write_shards(tmp_path_factory.mktemp("counted") / "shards", COUNTS)
    return write_info(place, COUNTS, ["ant", "bee", "cat"])


@pytest.fixture(scope="module", params=["folder", "counted"])
def data(request: pytest.FixtureRequest) -> ShardSet:
    return open_shards(str(request.getfixturevalue(request.param)))


def loader(data: ShardSet, **changes) -> StreamLoader:
    options = {
        "transform": CROP,
        "draws": 3,
        "buffer": 6,
        "global_batch": 8,
        "rank_batch": 4,
        "seed": 5,
        "stop_step": 12,
        "workers": 0,
    }
    return StreamLoader(data, **{**options, **changes})


def load(data: ShardSet, **changes) -> list[Batch]:
    return list(loader(data, **changes))


def test_a_batch_is_what_the_contract_says(data: ShardSet) -> None:
    batches = load(data)
    assert len(batches) == 12 * 2
    for batch in batches:
        assert batch.images.shape == (4, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert batch.indices.dtype == torch.int64
        assert batch.draws.shape == (4, 3)
        assert batch.draws.dtype == torch.float32
        assert batch.bad == ()
        assert batch.labels is not None
        assert batch.labels.dtype == torch.int64
        first = np.cumsum([0, *COUNTS])
        numbers = [first[i >> 32] + (i & 0xFFFFFFFF) for i in batch.indices.tolist()]
        assert batch.labels.tolist() == [n % 3 for n in numbers]


def test_a_pass_shows_each_sample_once(data: ShardSet) -> None:
    total = sum(COUNTS)
    indices = torch.cat([batch.indices for batch in load(data, stop_step=10)]).tolist()
    one, two = indices[:total], indices[total : 2 * total]
    assert len(set(one)) == len(set(two)) == total
    assert set(one) == set(two)
    assert one != two
    assert one != sorted(one)


def test_worker_processes_change_nothing_but_the_order(data: ShardSet) -> None:
    alone = load(data)
    assert same(alone, load(data, workers=1))
    assert not same(alone, load(data, seed=6))
    pair = load(data, workers=2)
    assert same(pair, load(data, workers=2))
    assert not same(alone, pair)
    assert_looks(pair, views(load(data, stop_step=40)))


def views(batches: list[Batch]) -> dict[int, list]:
    """What each sample looked like, showing by showing."""
    found: dict[int, list] = {}
    for batch in batches:
        for i, image, draws in zip(batch.indices, batch.images, batch.draws, strict=True):
            found.setdefault(int(i), []).append((image.numpy().tobytes(), draws.tolist()))
    return found


def assert_looks(batches: list[Batch], known: dict[int, list]) -> None:
    """Every picture is one that some pass shows."""
    seen = views(batches)
    assert sum(map(len, seen.values())) == 4 * len(batches)
    assert all(len({look[0] for look in looks}) > 1 for looks in known.values())
    for index, looks in seen.items():
        assert all(look in known[index] for look in looks)


def test_ranks_change_no_picture_and_have_no_sample_in_common(data: ShardSet) -> None:
    known = views(load(data, stop_step=40))
    ranks = [load(data, rank=rank, world=2, stop_step=6) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [6, 6]
    for batches in ranks:
        assert_looks(batches, known)
    first, second = (views(batches[:1]) for batches in ranks)
    assert not first.keys() & second.keys()


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (3, 0), (4, 0), (11, 0), (7, 2)])
def test_any_step_is_a_start(data: ShardSet, start: int, workers: int) -> None:
    whole = load(data, workers=workers)
    assert same(whole[2 * start :], load(data, workers=workers, start_step=start))


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    buffer=st.integers(1, 12),
    start=st.integers(0, 60),
    readers=st.integers(1, 3),
    known=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_position_is_the_same_from_wherever_one_comes(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    buffer: int,
    start: int,
    readers: int,
    known: bool,
    seed: int,
) -> None:
    place = tmp_path_factory.mktemp("any")
    for shard, count in enumerate(counts):
        write_shard(place / f"{shard:03}.tar", {f"{i}.jpg": b"%d" % i for i in range(count)})
    if known:
        write_info(place, counts)
    found = open_shards(str(place))
    readers = min(readers, len(counts))
    deal = Deal(shards=len(counts), rank=0, world=1, readers=readers, seed=seed)
    for number in range(readers):
        ahead = Reader(found, deal, number, buffer=buffer).entries(0)
        for _ in range(start):
            next(ahead)
        again = Reader(found, deal, number, buffer=buffer).entries(start)
        for _ in range(20):
            one, other = next(ahead), next(again)
            assert (one.epoch, one.index, one.image) == (other.epoch, other.index, other.image)


@given(
    shards=st.integers(1, 40),
    world=st.integers(1, 4),
    readers=st.integers(1, 4),
    epoch=st.integers(0, 9),
)
def test_every_pass_deals_every_shard_to_one_reader(
    shards: int, world: int, readers: int, epoch: int
) -> None:
    hands = []
    for rank in range(world):
        deal = Deal(shards=shards, rank=rank, world=world, readers=readers, seed=3)
        hands += [deal.hand(reader, epoch) for reader in range(readers)]
    assert sorted(shard for hand in hands for shard in hand) == list(range(shards))


def test_a_late_start_opens_what_it_needs(counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_shards(str(counted))
    opened: list[str] = []
    actual = stream_module.opened
    monkeypatch.setattr(
        stream_module, "opened", lambda place, size: (opened.append(place), actual(place, size))[1]
    )
    load(found, start_step=10_000, stop_step=10_001, buffer=1)
    assert len(opened) < 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_late_start_need_not_count_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    found = open_shards(str(folder))
    first = loader(found, stop_step=30, workers=workers)
    expected = list(first)[-2:]
    counts = first.counted()
    assert counts == {str(shard): count for shard, count in enumerate(COUNTS)}
    assert first.counted() == {}
    opened: list[str] = []
    actual = stream_module.opened
    monkeypatch.setattr(
        stream_module, "opened", lambda place, size: (opened.append(place), actual(place, size))[1]
    )
    times = []
    for known in ({}, counts):
        later = loader(found, start_step=29, stop_step=30, workers=workers)
        later.remember(known)
        assert same(list(later), expected)
        times.append(len(opened))
        opened.clear()
    if workers == 0:  # others open them in processes of their own
        assert times[1] <= times[0] - len(COUNTS)


def test_uneven_shards_give_even_steps(data: ShardSet) -> None:
    for rank in range(5):
        batches = load(data, rank=rank, world=5, global_batch=20, rank_batch=4, stop_step=30)
        assert len(batches) == 30


def test_more_ranks_than_shards_are_refused(data: ShardSet) -> None:
    with pytest.raises(UsageError, match="5 shards are too few for 6 ranks") as caught:
        loader(data, world=6, global_batch=12, rank_batch=2)
    assert "shard-size" in caught.value.fix


def test_more_workers_than_shards_share(data: ShardSet) -> None:
    many = loader(data, workers=3, world=2, rank_batch=4)
    assert many.readers == 2
    assert many.remarks == ["5 shards keep 2 of 3 workers busy on each rank"]
    assert loader(data, workers=2).remarks == []
    assert len(list(many)) == 12


def test_the_index_tells_how_long_an_epoch_is(folder: Path, counted: Path) -> None:
    assert loader(open_shards(str(folder))).steps_per_epoch is None
    found = open_shards(str(counted))
    assert loader(found).steps_per_epoch == sum(COUNTS) // 8
    assert found.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_give_their_place_to_the_next(tmp_path: Path, workers: int) -> None:
    bad = (3, 4, 20)
    found = open_shards(str(write_shards(tmp_path / "shards", COUNTS, bad=bad)))
    reading = loader(found, workers=workers)
    batches = list(reading)
    reported = {i: why for batch in batches for i, why in batch.bad}
    indices = {(0 << 32 | 3), (0 << 32 | 4), (3 << 32 | 5)}
    assert reported.keys() == indices
    assert all("JPEG" in why for why in reported.values())
    assert {reading.describe(i) for i in indices} == {
        f"{tmp_path}/shards/000.tar: 0003.jpg",
        f"{tmp_path}/shards/000.tar: 0004.jpg",
        f"{tmp_path}/shards/003.tar: 0020.jpg",
    }
    assert not indices & {int(i) for batch in batches for i in batch.indices}
    assert reading.describe(4 << 32 | 2) == f"{tmp_path}/shards/004.tar: sample 2"
    later = load(found, workers=workers, start_step=5)
    assert same(batches[10:], later)  # whatever was bad before


def test_nothing_but_bad_images_stops(tmp_path: Path) -> None:
    found = open_shards(str(write_shards(tmp_path, [9, 9], bad=tuple(range(18)))))
    with pytest.raises(DataError, match=f"^{MAX_ATTEMPTS} images in a row") as caught:
        load(found)
    assert caught.value.where.endswith(".jpg")


def test_an_image_of_monstrous_size_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{i}.jpg": picture(i) for i in range(6)}
    files["9.jpg"] = bytes(5000)
    found = open_shards(str(write_shard(tmp_path / "a.tar", files)))
    monkeypatch.setattr(stream_module, "MOST_IMAGE_BYTES", 4999)
    for start in (0, 1):
        batches = load(found, start_step=start, global_batch=4)
        assert {why for b in batches for _, why in b.bad} == {"a file of 5,000 bytes, over 4,999"}


@pytest.mark.parametrize("label", [b"x", b"-1", b"", b"2147483648", b"1.5", "٣".encode()])
def test_labels_that_are_no_class(tmp_path: Path, label: bytes) -> None:
    files = {f"{i}.jpg": picture(i) for i in range(9)} | {f"{i}.cls": b"1" for i in range(8)}
    files["8.cls"] = label
    found = open_shards(str(write_shard(tmp_path / "a.tar", dict(sorted(files.items())))))
    assert found.labelled
    with pytest.raises(DataError, match="no class is called") as caught:
        load(found)
    assert caught.value.where == f"{tmp_path}/a.tar: 8.jpg"


def test_labels_for_some_only(tmp_path: Path) -> None:
    files = {f"{i}.jpg": picture(i) for i in range(9)} | {"0.cls": b"1"}
    found = open_shards(str(write_shard(tmp_path / "a.tar", dict(sorted(files.items())))))
    with pytest.raises(DataError, match=r"no \.cls file"):
        load(found)


def test_names_of_classes_need_an_index(tmp_path: Path) -> None:
    files = {
        f"{i}{end}": data
        for i in range(9)
        for end, data in ((".jpg", picture(i)), (".cls", b"bee"))
    }
    write_shard(tmp_path / "000.tar", files)
    assert not open_shards(str(tmp_path)).labelled
    write_info(tmp_path, [9], ["ant", "bee"])
    (batch, *_) = load(open_shards(str(tmp_path)))
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 1, 1, 1]


def test_no_labels(tmp_path: Path) -> None:
    found = open_shards(str(write_shards(tmp_path, COUNTS, labels=False)))
    assert load(found)[0].labels is None


def test_a_shard_that_holds_other_counts_than_its_index_says(tmp_path: Path) -> None:
    write_info(write_shards(tmp_path, [5, 5]), [5, 6])
    found = open_shards(str(tmp_path))
    with pytest.raises(
        DataError, match="holds 5 samples, where its index or the run knows 6"
    ) as caught:
        load(found)
    assert caught.value.where.endswith("001.tar")


def test_a_local_shard_that_vanishes_or_shrinks_is_named(tmp_path: Path) -> None:
    found = open_shards(str(write_shards(tmp_path, COUNTS)))
    shard = tmp_path / "001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:4096])
    with pytest.raises(DataError, match="4,096 bytes where there were") as caught:
        load(found)
    assert caught.value.where == str(shard)
    shard.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file") as caught:
        load(found)
    assert caught.value.where == str(shard)


def test_streaming_over_http_gives_the_same_batches(counted: Path) -> None:
    here = load(open_shards(str(counted)))
    with serve(counted) as web:
        for workers in (0, 2):
            there = open_shards(f"{web.address}/{{000..004}}.tar")
            assert there.fingerprint == open_shards(str(counted)).fingerprint
            if not workers:
                assert same(here, load(there))
            got = load(there, workers=workers, start_step=3)
            assert same(load(open_shards(str(counted)), workers=workers)[6:], got)


def test_the_processs_own_randomness_is_left_alone(data: ShardSet) -> None:
    torch.manual_seed(1)
    random.seed(1)
    expected = float(torch.rand(())), random.random()
    torch.manual_seed(1)
    random.seed(1)
    load(data, stop_step=2)
    assert (float(torch.rand(())), random.random()) == expected
