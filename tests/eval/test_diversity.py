"""Token diversity: its known answers, and its definition spelled out."""

import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_convnet, make_model
from torch import Tensor, nn

import eval.diversity as module
from eval.crops import images_of
from eval.diversity import (
    ESTIMATES,
    common_cell,
    common_mask,
    layer_normed,
    masked_to_visible,
    measure,
    pooled,
    spread,
    token_similarity,
)
from eval.diversity_page import QUERIES, heat_maps, sample_images, similarity_maps
from pretrain.index import ImageIndex, open_index
from pretrain.teachers.frozen import FrozenTokens
from pretrain.teachers.pixels import pixel_tokens
from pretrain.teachers.tokens import open_tokens
from zoo.errors import DataError, IntegrityError, UsageError
from zoo.images import Preprocess
from zoo.vit import ViTConfig

SEVEN = 7


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ViTs, of 16 and 64 tokens, and a convnet, all at 32 px."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "vit")
    make_model(folder / "fine", ViTConfig(width=24, depth=1, heads=3, patch=4, image_size=32))
    make_convnet(folder / "convnet")
    return folder


@pytest.fixture(scope="module")
def seven(photos: Path) -> ImageIndex:
    return spread(open_index(photos), SEVEN)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """In double precision; 0 where either has no direction."""
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else 0.0


def plain_similarity(tokens: np.ndarray) -> float:
    """The definition: every ordered pair of different tokens."""
    count = len(tokens)
    pairs = [(i, k) for i in range(count) for k in range(count) if i != k]
    return sum(plain_cosine(tokens[i], tokens[k]) for i, k in pairs) / len(pairs)


KNOWN = {
    "identical": (torch.ones(1, 5, 8), 1.0),
    "of one direction": (torch.arange(1.0, 6)[None, :, None] * torch.ones(8), 1.0),
    "orthogonal": (torch.eye(8)[None] * 3, 0.0),
    "opposed": (torch.stack([torch.ones(4), -torch.ones(4)])[None], -1.0),
    "zero": (torch.zeros(1, 5, 8), 0.0),
    "one zero of three": (torch.tensor([[[1.0, 0], [1, 0], [0, 0]]]), 1 / 3),
    "tiny": (torch.full((1, 4, 8), 1e-30), 1.0),
    "huge": (torch.full((1, 4, 8), 1e30), 1.0),
    "bfloat16": (torch.ones(1, 5, 8, dtype=torch.bfloat16), 1.0),
}


@pytest.mark.parametrize(("tokens", "answer"), KNOWN.values(), ids=KNOWN.keys())
def test_known_answers(tokens: Tensor, answer: float) -> None:
    assert token_similarity(tokens).item() == pytest.approx(answer, abs=1e-6)


def test_random_tokens() -> None:
    noise = gaussian(4, 196, 512)
    assert token_similarity(noise).abs().max() < 0.002
    rectified = token_similarity(noise.relu()).mean().item()
    assert rectified == pytest.approx(1 / math.pi, abs=0.005)
    # What LayerNorm is for: it takes the floor of rectified features away.
    assert token_similarity(layer_normed(noise.relu())).abs().max() < 0.01


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(2, 9),
    width=st.integers(1, 6),
    offset=st.sampled_from([0.0, 1.0, -30.0]),
    zeros=st.integers(0, 2),
)
def test_identity_is_the_double_loop(
    seed: int, count: int, width: int, offset: float, zeros: int
) -> None:
    tokens = gaussian(2, count, width, seed=seed) + offset
    tokens[:, :zeros] = 0
    similarity = token_similarity(tokens)
    plain = [plain_similarity(image.double().numpy()) for image in tokens]
    assert similarity.tolist() == pytest.approx(plain, abs=1e-5)
    assert (similarity >= -1 / (count - 1) - 1e-6).all()
    assert (similarity <= 1 + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 9), data=st.data())
def test_masked_to_visible_is_the_slow_loop(seed: int, count: int, data: st.DataObject) -> None:
    tokens = gaussian(1, count, 3, seed=seed)
    order = data.draw(st.permutations(range(count)))
    visible = data.draw(st.integers(1, count - 1))
    mean, greatest = masked_to_visible(tokens, torch.tensor([order]), visible)
    array = tokens[0].numpy()
    table = [[plain_cosine(array[m], array[v]) for v in order[:visible]] for m in order[visible:]]
    assert mean.item() == pytest.approx(np.mean(table), abs=1e-5)
    assert greatest.item() == pytest.approx(np.mean([max(row) for row in table]), abs=1e-5)


def test_pooling_takes_neighbours_together() -> None:
    tokens = gaussian(2, 16, 3)
    square = tokens.reshape(2, 4, 4, 3)
    assert torch.allclose(pooled(tokens, 2)[:, 1], square[:, :2, 2:].mean((1, 2)), atol=1e-6)
    assert pooled(tokens, 1).equal(tokens)


@pytest.mark.parametrize(
    ("cells", "image_size", "answer"),
    [([32, 16], 224, 32), ([16], 224, 32), ([14, 32], 224, 32), ([8, 16], 48, 16), ([8], 32, 8)],
)
def test_the_common_cell(cells: list[int], image_size: int, answer: int) -> None:
    assert common_cell(cells, image_size) == answer


def test_the_mask_is_the_method_s() -> None:
    mask = common_mask(224, 32)
    assert (mask.masked, mask.visible) == (30, 19)
    for unit in (0, 33, 224):
        with pytest.raises(UsageError, match="do not make a grid"):
            common_mask(224, unit)


def test_spread_is_even_and_covers_every_class(photos: Path) -> None:
    index = open_index(photos)
    chosen = spread(index, 3)
    assert [chosen.path(i).relative_to(photos).as_posix() for i in range(3)] == [
        "ant/006.jpg",
        "bee/006.jpg",
        "cat/006.jpg",
    ]
    assert spread(index, 99) is index


@pytest.mark.parametrize("name", ["vit", "convnet"])
def test_measure_is_its_definition(models: Path, seven: ImageIndex, name: str) -> None:
    """All tokens at once, in double precision, against the stream."""
    teacher = open_tokens(str(models / name), stride=8 if name == "convnet" else None)
    found = measure(teacher, seven, unit=16, batch=3)
    assert (found.images, found.tokens, found.unit, found.cell) == (7, 16, 16, 8)
    images = torch.cat(list(images_of(seven, Preprocess(image_size=32))))
    tokens = teacher(images / 255).double()
    square = tokens.reshape(7, 2, 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
    variants = {
        "raw": tokens,
        "layernorm": F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6),
        "centred": tokens - tokens.mean((0, 1)),
        "matched": square.mean((3, 4)).flatten(1, 2),
    }
    for variant, values in variants.items():
        each = [plain_similarity(image.numpy()) for image in values]
        estimate = getattr(found, variant)
        assert estimate.value == pytest.approx(np.mean(each), abs=1e-5)
        assert estimate.error == pytest.approx(np.std(each, ddof=1) / math.sqrt(7), abs=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_stream_equals_all_at_once(models: Path, seven: ImageIndex, batch: int) -> None:
    teacher = open_tokens(str(models / "vit"))
    whole, streamed = measure(teacher, seven, batch=7), measure(teacher, seven, batch=batch)
    for name in ESTIMATES:
        a, b = getattr(whole, name), getattr(streamed, name)
        assert (a.value, a.error) == pytest.approx((b.value, b.error), abs=1e-6)


def test_memory_holds_a_batch_or_two_whatever_the_data_set(
    seven: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, alive, most = pixel_tokens(patch=8, image_size=32), [], 0
    read = teacher._read

    def tracked(net: nn.Module, images: Tensor) -> Tensor:
        nonlocal most
        tokens = read(net, images).clone()
        alive.append(weakref.ref(tokens.untyped_storage()))
        most = max(most, sum(each() is not None for each in alive))
        return tokens

    monkeypatch.setattr(teacher, "_read", tracked)
    assert measure(teacher, seven, batch=1).name == "pixels"
    assert len(alive) == 2 * SEVEN
    assert most <= 2


def test_every_network_sees_the_same_masks(
    models: Path, seven: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Tensor]] = []
    real = module.masked_to_visible

    def spy(tokens: Tensor, order: Tensor, visible: int) -> Any:
        cells = round(tokens.shape[1] ** 0.5)
        hidden = torch.ones(order.shape, dtype=torch.bool).scatter(1, order[:, :visible], False)
        square = hidden.reshape(-1, 1, cells, cells).float()
        seen[-1].append(F.avg_pool2d(square, cells // 4).flatten(1))
        return real(tokens, order, visible)

    monkeypatch.setattr(module, "masked_to_visible", spy)
    for name in ("vit", "fine"):
        seen.append([])
        measure(open_tokens(str(models / name)), seven, unit=8, batch=3)
    first, second = (torch.cat(masks) for masks in seen)
    assert first.equal(second)
    assert first.sum(1).tolist() == [10.0] * SEVEN  # ⌈0.6 · 16⌉ whole cells
    assert len({tuple(row) for row in first.tolist()}) > 1


def test_a_cell_that_does_not_fit_leaves_a_gap(models: Path, seven: ImageIndex) -> None:
    found = measure(open_tokens(str(models / "convnet"), stride=16), seven, unit=8)
    assert (found.matched, found.visible_mean, found.visible_max) == (None, None, None)
    assert found.details()["matched"] is None
    assert found.raw.error > 0


def broken(value: float) -> FrozenTokens:
    def read(_: nn.Module, images: Tensor) -> Tensor:
        return torch.full((len(images), 4, 3), value)

    preprocess = Preprocess(image_size=32)
    return FrozenTokens(nn.Identity(), read, preprocess, record=None, cell=16, width=3)


def test_what_cannot_be_measured_is_refused(photos: Path) -> None:
    index = open_index(photos)
    with pytest.raises(IntegrityError, match="not finite"):
        measure(broken(math.nan), index)
    with pytest.raises(DataError, match="no standard error"):
        measure(broken(1.0), spread(index, 1))
    with pytest.raises(UsageError, match="two tokens or more, and here is 1"):
        measure(pixel_tokens(patch=32, image_size=32), index)
    with pytest.raises(UsageError, match="two tokens or more"):
        similarity_maps(pixel_tokens(patch=32, image_size=32), torch.zeros(1, 3, 32, 32))
    for count in (0, 1):
        with pytest.raises(UsageError, match=f"here is {count}"):
            token_similarity(torch.zeros(3, count, 4))
    assert measure(broken(0.0), index).raw.value == 0


def test_maps_are_the_cosine_to_the_query(models: Path, seven: ImageIndex) -> None:
    teacher = open_tokens(str(models / "vit"))
    images = sample_images(seven, 32, 2)
    maps = similarity_maps(teacher, images, [(0.0, 0.99), (0.5, 0.25)])
    assert maps.shape == (2, 2, 4, 4)
    tokens = teacher(images / 255)[1].numpy()
    plain = [plain_cosine(tokens[2 * 4 + 1], token) for token in tokens]
    assert maps[1, 1].flatten() == pytest.approx(plain, abs=1e-5)
    assert maps[:, 0, 0, 3] == pytest.approx(1, abs=1e-6)
    figure = heat_maps(teacher, images)
    assert len(figure.axes) == 2 * (1 + len(QUERIES)) + 1  # and the colour bar
