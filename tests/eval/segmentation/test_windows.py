"""Sliding windows: the grid, the mean over windows, who is in memory when, each pixel's class."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from eval.segmentation.windows import class_map, slide, windows_of
from zoo.errors import IntegrityError

CLASSES, CROP, STRIDE = 5, 12, 8
SIZES = [(12, 12), (12, 30), (29, 12), (13, 41), (7, 20), (25, 9), (5, 5)]


def drawn(sizes: Iterable[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def by_place(pixels: Tensor) -> Tensor:
    """Logits that depend on the whole window and on where in it a pixel lies."""
    place = torch.arange(CROP * CROP).view(CROP, CROP).sin()
    mixed = torch.einsum("ck,wkyx->wcyx", torch.arange(15.0).view(5, 3).cos(), pixels)
    return mixed * place + pixels.mean((1, 2, 3), keepdim=True)


def mean_by_definition(image: Tensor) -> Tensor:
    """Window by window into a whole canvas, divided by how often a pixel was seen."""
    _, height, width = image.shape
    image = F.pad(image, (0, max(CROP - width, 0), 0, max(CROP - height, 0)))
    total, seen = image.new_zeros(CLASSES, *image.shape[1:]), image.new_zeros(image.shape[1:])
    for y, x in windows_of(*image.shape[1:], crop=CROP, stride=STRIDE):
        total[:, y : y + CROP, x : x + CROP] += by_place(
            image[None, :, y : y + CROP, x : x + CROP]
        )[0]
        seen[y : y + CROP, x : x + CROP] += 1
    return (total / seen)[:, :height, :width]


def slid(images: Iterable[Tensor], batch: int, logits_of: Any = by_place) -> Iterator[Tensor]:
    return slide(logits_of, images, classes=CLASSES, crop=CROP, stride=STRIDE, batch=batch)


# The grid


def test_the_windows_of_the_usual_images() -> None:
    grid = {"crop": 512, "stride": 341}
    assert windows_of(512, 512, **grid) == [(0, 0)]
    assert windows_of(512, 683, **grid) == [(0, 0), (0, 171)]
    assert windows_of(512, 853, **grid) == [(0, 0), (0, 341)]
    assert windows_of(512, 854, **grid) == [(0, 0), (0, 341), (0, 342)]
    assert windows_of(600, 683, **grid) == [(0, 0), (0, 171), (88, 0), (88, 171)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_pixel_is_in_a_window(data: st.DataObject) -> None:
    crop = data.draw(st.integers(1, 40))
    stride = data.draw(st.integers(1, crop))
    height, width = (data.draw(st.integers(crop, 150)) for _ in range(2))
    corners = windows_of(height, width, crop=crop, stride=stride)
    assert corners == sorted(set(corners))
    seen = torch.zeros(height, width, dtype=torch.bool)
    for y, x in corners:
        assert 0 <= y <= height - crop
        assert 0 <= x <= width - crop
        seen[y : y + crop, x : x + crop] = True
    assert seen.all()
    fewest = [-(-(length - crop) // stride) + 1 for length in (height, width)]
    assert len(corners) == fewest[0] * fewest[1]


# The mean over windows


@pytest.mark.parametrize("batch", range(1, 8))
def test_batches_of_one_and_of_several_images_change_nothing(batch: int) -> None:
    images = drawn(SIZES)
    found = list(slid(iter(images), batch))
    assert [tuple(logits.shape) for logits in found] == [(CLASSES, *size) for size in SIZES]
    for logits, image in zip(found, images, strict=True):
        torch.testing.assert_close(logits, mean_by_definition(image), atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 45), st.integers(1, 45)), max_size=4),
    batch=st.integers(1, 40),
)
def test_any_sizes(sizes: list[tuple[int, int]], batch: int) -> None:
    images = drawn(sizes)
    for logits, image in zip(slid(images, batch), images, strict=True):
        torch.testing.assert_close(logits, mean_by_definition(image), atol=1e-6, rtol=0)


def test_the_network_gets_full_batches_but_for_the_last() -> None:
    given: list[int] = []

    def logits_of(pixels: Tensor) -> Tensor:
        given.append(len(pixels))
        assert pixels.shape[1:] == (3, CROP, CROP)
        assert not torch.is_grad_enabled()
        return by_place(pixels)

    windows = sum(
        len(windows_of(max(h, CROP), max(w, CROP), crop=CROP, stride=STRIDE)) for h, w in SIZES
    )
    list(slid(drawn(SIZES), 4, logits_of))
    assert windows % 4
    assert given == [4] * (windows // 4) + [windows % 4]


def test_half_precision_is_summed_in_full() -> None:
    images = drawn([(30, 41)])
    (found,) = slid(images, 3, lambda pixels: by_place(pixels).bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mean_by_definition(images[0]), atol=0.02, rtol=0)
    assert not torch.equal(found, found.bfloat16().float())


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"logits of \(2, 5, 6, 6\), not \(2, 5, 12, 12\)"):
        list(slid(drawn([(12, 20)]), 2, lambda pixels: by_place(pixels)[..., ::2, ::2]))


# Memory


class Live(TorchDispatchMode):
    """The most values that were alive at once among what torch allocated since."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes() // 4)
        self.storages = {k: (ref, n) for k, (ref, n) in self.storages.items() if not ref.expired()}
        self.most = max(self.most, sum(values for _, values in self.storages.values()))
        return result


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_memory_is_what_the_docstring_says(batch: int) -> None:
    """Of images of one size, with a network that takes nothing beside its logits."""
    h, w, count = 60, 50, 12

    def images() -> Iterator[Tensor]:
        for i in range(count):
            yield torch.full((3, h, w), float(i))

    def network(pixels: Tensor) -> Tensor:
        return torch.ones(len(pixels), CLASSES, CROP, CROP)

    with Live() as live:
        done = 0
        for _ in slid(images(), batch, network):
            del _
            done += 1
    per_window, sums = (CLASSES + 3) * CROP**2, (CLASSES + 1) * h * w
    bound = batch * per_window + sums + 3 * h * w * (batch + 1)
    assert done == count
    assert sums + per_window <= live.most <= bound


@pytest.mark.parametrize("batch", [1, 2, 5, 11])
def test_images_are_read_when_their_turn_comes(batch: int) -> None:
    """However many there are: not one more than the windows at once, and the one being read."""
    alive: list[StorageWeakRef] = []
    finished = 0

    def images() -> Iterator[Tensor]:
        for read in range(30):
            assert read <= finished + batch
            assert sum(not ref.expired() for ref in alive) <= batch
            image = torch.zeros(3, CROP, CROP + 3 * (read % 2))  # of one window and of two
            alive.append(StorageWeakRef(image.untyped_storage()))
            yield image
            del image

    for _ in slid(images(), batch):
        finished += 1
    assert finished == 30
    assert all(ref.expired() for ref in alive)


# Each pixel's class


ANY = st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=40, deadline=None)
@given(
    classes=st.integers(1, 40),
    small=ANY,
    times=st.sampled_from([1, 2, 4]),
    at_once=st.none() | st.integers(1, 45),
    levels=st.integers(1, 6),
)
def test_the_class_is_that_of_all_at_once(
    classes: int, small: tuple[int, int], times: int, at_once: int | None, levels: int
) -> None:
    """Few levels of logits and factors without rounding make ties: the first of equals wins."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randint(levels, (classes, *small), generator=generator).float()
    size = (times * small[0], times * small[1])
    resized = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    found = class_map(logits, size, at_once=at_once)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), resized.argmax(0))


@settings(max_examples=30, deadline=None)
@given(small=ANY, size=ANY, at_once=st.none() | st.integers(1, 12))
def test_the_class_at_any_size(
    small: tuple[int, int], size: tuple[int, int], at_once: int | None
) -> None:
    logits = torch.randn(9, *small, generator=torch.Generator().manual_seed(1))
    resized = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    found = class_map(logits, size, at_once=at_once).long()
    chosen = resized.gather(0, found[None])[0]
    torch.testing.assert_close(chosen, resized.amax(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("at_once", [None, 1, 7, 150])
def test_of_equal_logits_the_first(at_once: int | None) -> None:
    logits = torch.zeros(150, 4, 6)
    assert not class_map(logits, (9, 9), at_once=at_once).any()
    logits[[149, 40, 77]] = 2.0
    assert (class_map(logits, (9, 9), at_once=at_once) == 40).all()


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_no_prediction(bad: float, at_once: int) -> None:
    logits = torch.randn(6, 5, 5)
    logits[2, 3, 3] = bad
    with pytest.raises(IntegrityError, match="not finite"):
        class_map(logits, (10, 10), at_once=at_once)


@pytest.mark.gpu
def test_on_a_gpu_as_on_a_cpu() -> None:
    logits = torch.randint(3, (150, 40, 60)).float()
    found = class_map(logits.cuda(), (80, 120))
    assert torch.equal(found.cpu(), class_map(logits, (80, 120)))
    images = drawn(SIZES)
    slid_on_gpu = slid((image.cuda() for image in images), 4, lambda x: by_place(x.cpu()).cuda())
    for one, other in zip(slid_on_gpu, slid(images, 4), strict=True):
        torch.testing.assert_close(one.cpu(), other)
