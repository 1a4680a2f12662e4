"""The comparison of a file with its network: a graph written by hand, and that network in torch."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from zoo.errors import DataError, IntegrityError, UsageError
from zoo.graph import Readable
from zoo.images import Preprocess
from zoo.parity import TOLERANCE, Parity, choose_images, measure, read_digests

GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
by_hand (float[batch, 3, 16, 16] images) => (float[batch, 3] %s, float[batch, 3, 16] tokens)
<int64[3] shape = {0, 3, 16}, int64[1] last = {2}>
{
    cells = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (images)
    tokens = Reshape (cells, shape)
    %s = ReduceMean <keepdims = 0> (tokens, last)
}
"""


class ByHand(nn.Module):
    """The same network, and what a test changes of its outputs."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda output: output) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = nn.functional.avg_pool2d(images, 4).flatten(2)
        return self.change(tokens.mean(2)), self.change(tokens)


@pytest.fixture(params=["features", "logits"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def file(name: str, tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model(GRAPH % (name, name))
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, tmp_path / "by_hand.onnx")
    return tmp_path / "by_hand.onnx"


@pytest.fixture
def readable(name: str) -> Readable:
    return Readable(
        name="by-hand",
        digest="0",
        license="none",
        preprocess=Preprocess(image_size=16),
        net=ByHand().eval(),
        outputs=(name, "tokens"),
    )


def share_of(parity: Parity, name: str) -> float:
    shares = {"logits": parity.top1_agreement, "features": parity.nearest_neighbour_agreement}
    share = shares.pop(name)
    assert share is not None
    assert set(shares.values()) == {None}
    return share


def test_the_same_network_agrees(file: Path, name: str, readable: Readable, photos: Path) -> None:
    parity = measure(file, readable, choose_images(photos, 99))
    assert (parity.images, parity.batches) == (36, (1, 5))
    assert share_of(parity, name) == 1
    assert list(parity.outputs) == [name, "tokens"]
    for output in parity.outputs.values():
        assert output.relative_difference < 1e-5
        assert output.least_cosine == pytest.approx(1)
    assert measure(file, readable, choose_images(photos, 9)).batches == (1, 3, 5)


def test_differences_are_those_that_were_made(file: Path, readable: Readable, photos: Path) -> None:
    images = choose_images(photos, 11)
    whole = measure(file, readable, images).outputs["tokens"]
    step = 0.5 * TOLERANCE * whole.scale
    some = torch.zeros(3, 16).scatter(1, torch.zeros(3, 1, dtype=torch.long), step)

    shifted = ByHand(lambda output: output + (some if output.ndim == 3 else 0))
    found = measure(file, replace(readable, net=shifted), images).outputs["tokens"]
    assert found.max_difference == pytest.approx(step, rel=1e-2)
    assert found.mean_difference == pytest.approx(step / 16, rel=1e-2)
    assert found.relative_difference == pytest.approx(0.5 * TOLERANCE, rel=1e-2)
    assert found.scale == pytest.approx(whole.scale, rel=1e-3)
    assert found.least_cosine < 1


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda output: output + 3 * TOLERANCE * output.square().mean().sqrt(), "differ from"),
        (lambda output: torch.cat([output[:-1], output[-1:] * 1.01]), "differ from"),
        (lambda output: output * torch.nan, "by up to nan"),
        (lambda output: output * 0, "differ from"),
        (lambda output: output[:, :-1], "where the network gives"),
    ],
    ids=["shifted", "one image of each batch", "NaN", "zeros", "shape"],
)
def test_any_difference_is_refused(
    change: Callable[[Tensor], Tensor], hint: str, file: Path, readable: Readable, photos: Path
) -> None:
    with pytest.raises(IntegrityError, match=hint):
        measure(file, replace(readable, net=ByHand(change)), choose_images(photos, 6))


def test_agreement_is_counted(
    file: Path, name: str, readable: Readable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.parity.TOLERANCE", 1e9)
    negated = ByHand(lambda output: -output if len(output) == 5 else output)
    images = choose_images(photos, 36)
    share = share_of(measure(file, replace(readable, net=negated), images), name)
    if name == "logits":  # the largest of three becomes the smallest, but of the first image
        assert share == pytest.approx(1 / 36)
    else:  # the first is now the farthest from all
        assert 0.5 < share < 1


@pytest.mark.parametrize("damage", [b"", b"not a graph", None])
def test_a_file_that_does_not_run_is_refused(
    damage: bytes | None,
    file: Path,
    readable: Readable,
    photos: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if damage is None:  # a batch that is not free
        fixed = GRAPH.replace("batch, 3, 16", "2, 3, 16") % (
            readable.outputs[0],
            readable.outputs[0],
        )
        onnx.save_model(onnx.parser.parse_model(fixed), file)
    else:
        file.write_bytes(damage)
    with pytest.raises(IntegrityError, match="onnxruntime does not run it"):
        measure(file, readable, choose_images(photos, 6))
    assert not any(capfd.readouterr())


def test_images_are_chosen_evenly_and_links_followed_once(tmp_path: Path) -> None:
    for name in ("b/1.JPG", "b/2.webp", "a/3.png", "a/.hidden.png", ".no/4.png", "a/5.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for i in range(12):
        (tmp_path / "b" / f"x{i:02}.jpeg").touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    everything = choose_images(tmp_path, 99)
    names = [path.relative_to(tmp_path).as_posix() for path in everything]
    assert names == ["a/3.png", "b/1.JPG", "b/2.webp", *(f"b/x{i:02}.jpeg" for i in range(12))]
    assert choose_images(tmp_path, 7) == [everything[i * 15 // 7] for i in range(7)]


def test_what_cannot_be_compared_on_is_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="5 images are too few"):
        choose_images(photos, 5)
    with pytest.raises(DataError, match="no such folder"):
        choose_images(tmp_path / "none", 6)
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match="5 images"):
        choose_images(tmp_path, 6)
    with pytest.raises(DataError, match="not a readable image"):
        read_digests([tmp_path / "0.jpg"], tmp_path)


def test_a_name_need_not_be_utf8(tmp_path: Path, photos: Path) -> None:
    content = (photos / "ant" / "000.jpg").read_bytes()
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))
    path.write_bytes(content)
    digests = read_digests([path], tmp_path)
    assert digests == {"\\xff.jpg": hashlib.sha256(content).hexdigest()}
