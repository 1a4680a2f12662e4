"""Batches: pure functions of the recipe, whatever the workers, the ranks and the moment."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import same
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import v2

from pretrain import data as module
from pretrain import loader as loader_module
from pretrain.data import Data, Order, open_source
from pretrain.index import ImageIndex, open_index
from pretrain.loader import Loader
from pretrain.objective import Batch
from zoo.errors import DataError, UsageError, ZooError

COUNT = 23
CROP = Data(source="folder:x").crop(16)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return open_index(make_images(tmp_path_factory.mktemp("images")))


def make_images(root: Path, bad: tuple[int, ...] = ()) -> Path:
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = root / f"class{i % 3}" / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        if i in bad:
            path.write_bytes(b"<html>")
        else:
            pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40 + i, 36)).save(path)
    return root


def load(index: ImageIndex, **changes) -> list[Batch]:
    options = {
        "transform": CROP,
        "draws": 3,
        "global_batch": 8,
        "rank_batch": 4,
        "seed": 5,
        "stop_step": 5,
        "workers": 0,
    }
    return list(Loader(index, **{**options, **changes}))


def test_a_batch_is_what_the_contract_says(index: ImageIndex) -> None:
    batches = load(index)
    assert len(batches) == 5 * 2
    for batch in batches:
        assert batch.images.shape == (4, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert batch.indices.dtype == torch.int64
        assert batch.draws.shape == (4, 3)
        assert batch.draws.dtype == torch.float32
        assert batch.draws.min() >= 0
        assert batch.draws.max() < 1
        assert batch.labels is not None
        assert batch.labels.dtype == torch.int64
        assert index.labels is not None
        assert batch.labels.tolist() == index.labels[batch.indices.numpy()].tolist()
        assert batch.bad == ()


def test_an_epoch_shows_each_image_once(index: ImageIndex) -> None:
    batches = load(index, global_batch=5, rank_batch=5, stop_step=8)
    epochs = [torch.cat([b.indices for b in part]).tolist() for part in (batches[:4], batches[4:])]
    for epoch in epochs:
        assert len(set(epoch)) == 20  # 23 images, the last three dropped
    assert epochs[0] != epochs[1]


def test_workers_change_nothing(index: ImageIndex) -> None:
    alone = load(index)
    assert same(alone, load(index, workers=2))
    assert not same(alone, load(index, seed=6))


def test_ranks_change_nothing(index: ImageIndex) -> None:
    def by_step_and_index(batches: list[Batch], accumulate: int) -> dict:
        return {
            (number // accumulate, int(i)): (image.numpy().tobytes(), tuple(draws.tolist()))
            for number, batch in enumerate(batches)
            for i, image, draws in zip(batch.indices, batch.images, batch.draws, strict=True)
        }

    single = by_step_and_index(load(index), 2)
    pair = by_step_and_index(load(index, rank=0, world=2), 1)
    other = by_step_and_index(load(index, rank=1, world=2), 1)
    assert not pair.keys() & other.keys()
    assert pair | other == single


@pytest.mark.parametrize("start", [1, 2, 4])
def test_any_step_is_a_start(index: ImageIndex, start: int) -> None:
    assert same(load(index)[2 * start :], load(index, start_step=start))


def test_a_late_start_reads_no_earlier_image(
    index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    actual = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: (read.append(path), actual(path))[1])
    load(index, start_step=10_000, stop_step=10_001)
    assert len(read) == 8


def test_draws_do_not_move_the_crop(index: ImageIndex) -> None:
    few, many = load(index, draws=1), load(index, draws=9)
    for one, other in zip(few, many, strict=True):
        assert torch.equal(one.images, other.images)


def test_no_draws(index: ImageIndex) -> None:
    assert load(index, draws=0)[0].draws.shape == (4, 0)


def test_the_processs_own_randomness_is_left_alone(index: ImageIndex) -> None:
    def roll() -> tuple:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    def seed() -> None:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)

    seed()
    expected = [roll() for _ in range(3)]
    for workers in (0, 2):
        seed()
        seen = []
        for number, _ in enumerate(loader(index, workers=workers)):
            if number < 3:
                seen.append(roll())
        assert seen == expected


def loader(index: ImageIndex, transform: Callable = CROP, workers: int = 2) -> Loader:
    return Loader(
        index,
        transform=transform,
        draws=1,
        global_batch=2,
        rank_batch=2,
        stop_step=60,
        workers=workers,
    )


def noisy(_: np.ndarray) -> torch.Tensor:
    """A recipe's transform that draws from every generator there is."""
    values = torch.rand(3), torch.from_numpy(np.random.rand(3)), torch.tensor([random.random()] * 3)
    noise = torch.stack([value.float() for value in values])
    return (noise * 255).to(torch.uint8)[:, None].repeat(1, 2, 1)


def test_a_recipes_transform_draws_per_sample(index: ImageIndex) -> None:
    alone = load(index, transform=noisy)
    assert same(alone, load(index, transform=noisy, workers=2))
    images = torch.cat([batch.images for batch in alone]).flatten(1)
    assert len(images.unique(dim=0)) == len(images)


def test_bad_images_are_drawn_again_and_reported(tmp_path: Path) -> None:
    index = open_index(make_images(tmp_path, bad=(3, 4, 11)))
    broken = {i for i in range(COUNT) if index.path(i).read_bytes() == b"<html>"}
    alone = load(index)
    assert same(alone, load(index, workers=2))
    reported = [entry for batch in alone for entry in batch.bad]
    assert {i for i, _ in reported} == broken
    assert all("JPEG" in why for _, why in reported)
    for batch in alone:
        assert not broken & set(batch.indices.tolist())
        assert batch.labels is not None
        assert index.labels is not None
        assert batch.labels.tolist() == index.labels[batch.indices.numpy()].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_data_set_stops(tmp_path: Path, workers: int) -> None:
    index = open_index(make_images(tmp_path, bad=tuple(range(COUNT))))
    with pytest.raises(DataError, match=f"^{module.MAX_ATTEMPTS} images in a row") as caught:
        load(index, workers=workers)
    assert caught.value.where.endswith(".jpg")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrong_transform_is_named(index: ImageIndex, workers: int) -> None:
    with pytest.raises(UsageError, match="float32"):
        load(index, transform=as_floats, workers=workers)


def as_floats(_: np.ndarray) -> torch.Tensor:
    return torch.zeros(3, 4, 4)


def die(_: np.ndarray) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(3, 4, 4, dtype=torch.uint8)


def leave(_: np.ndarray) -> torch.Tensor:
    os._exit(3)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are looked after every moment, not every few seconds."""
    monkeypatch.setattr(loader_module, "POLL_SECONDS", 0.2)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("end", "says"), [(die, "SIGKILL"), (leave, "exit code 3")])
def test_a_dead_worker_is_one_clear_error(index: ImageIndex, end: Callable, says: str) -> None:
    with pytest.raises(ZooError, match="a loader worker died") as caught:
        list(loader(index, end))
    assert says in caught.value.what
    assert caught.value.fix


@pytest.mark.usefixtures("impatient")
def test_a_worker_killed_from_outside(index: ImageIndex) -> None:
    batches = iter(loader(index))
    next(batches)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(ZooError, match="SIGKILL"):
        list(batches)
    assert not multiprocessing.active_children()


def hang(_: np.ndarray) -> torch.Tensor:
    time.sleep(600)
    return torch.zeros(3, 4, 4, dtype=torch.uint8)


@pytest.mark.usefixtures("impatient")
def test_hanging_workers_are_given_up(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "HANG_SECONDS", 0)
    with pytest.raises(ZooError, match="gave nothing"):
        list(loader(index, hang))


def test_workers_leave_signals_to_the_training_process(index: ImageIndex) -> None:
    batches = iter(loader(index))
    first = next(batches)  # from one worker; the other may hardly have begun
    for process in multiprocessing.active_children():
        assert process.pid
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(process.pid, number)
    assert same([first, *batches], list(loader(index)))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        ({"global_batch": 8, "rank_batch": 3}, ["rank_batch", "1, 2, 4, 8"]),
        ({"global_batch": 8, "rank_batch": 8, "world": 2}, ["rank_batch", "1, 2, 4"]),
        ({"global_batch": 8, "rank_batch": 0}, ["rank_batch", "1, 2, 4, 8"]),
        ({"global_batch": 7, "rank_batch": 1, "world": 2}, ["global_batch", "multiple of 2"]),
        ({"global_batch": 0, "rank_batch": 1}, ["global_batch"]),
        ({"global_batch": 24, "rank_batch": 24}, ["global_batch", "23"]),
    ],
)
def test_batch_sizes_that_do_not_fit(index: ImageIndex, sizes: dict, names: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load(index, **sizes)
    for name in names:
        assert name in str(caught.value)


@given(
    samples=st.integers(1, 200),
    world=st.integers(1, 4),
    rank_batch=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_the_ranks_share_every_step(
    samples: int, world: int, rank_batch: int, accumulate: int, seed: int
) -> None:
    global_batch = rank_batch * world * accumulate
    if global_batch > samples:
        return
    orders = [
        Order(
            samples=samples,
            global_batch=global_batch,
            rank_batch=rank_batch,
            rank=rank,
            world=world,
            seed=seed,
        )
        for rank in range(world)
    ]
    steps = orders[0].steps_per_epoch
    batches = [[*order.micro_batches(steps, 2 * steps)] for order in orders]
    assert all(epoch == 1 for rank in batches for epoch, _ in rank)
    assert all(len(rank) == steps * accumulate for rank in batches)
    seen = np.concatenate([indices for rank in batches for _, indices in rank])
    permutation = np.random.default_rng([seed, 1]).permutation(samples)
    assert sorted(seen) == sorted(permutation[: steps * global_batch])


@given(seed=st.integers(0, 2**31), size=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_the_crop_is_drawn_by_timm_and_cut_by_torchvision(seed: int, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    random.seed(seed)
    box = RandomResizedCropAndInterpolation.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3))
    if 0 in box[2:]:
        box = (0, 0, *size)
    bicubic = v2.InterpolationMode.BICUBIC
    expected = v2.functional.resized_crop(image, *box, [16, 16], bicubic, antialias=True)
    random.seed(seed)
    assert torch.equal(CROP(pixels), expected)


def test_sources(index: ImageIndex) -> None:
    assert open_source(f"folder:{index.root}").fingerprint == index.fingerprint
    for wrong in ("wds:x.tar", "folder:", str(index.root)):
        with pytest.raises(UsageError, match="data source") as caught:
            open_source(wrong)
        assert "folder:PATH" in caught.value.fix


def test_more_workers_than_cores_is_no_warning(index: ImageIndex) -> None:
    workers = len(os.sched_getaffinity(0)) + 1
    assert same(load(index, stop_step=1), load(index, stop_step=1, workers=workers))
