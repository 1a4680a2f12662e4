"""Windows, decode head and metric against mmseg's own: the model is the real one, made tiny."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eval.segmentation.iou import count, scores_of
from eval.segmentation.upernet import decode, window_logits
from eval.segmentation.windows import class_map, slide, windows_of

CLASSES, CROP, STRIDE, WIDTH = 7, 32, 21, 16
SIZES = [(32, 32), (32, 43), (50, 32), (32, 75), (61, 70), (33, 33)]


@pytest.fixture(scope="module", autouse=True)
def mmseg() -> None:
    """Its import takes ten seconds, and warns."""
    with warnings.catch_warnings(action="ignore"):
        import mmseg.models  # noqa: F401


@pytest.fixture(scope="module")
def model(mmseg: None) -> Any:
    """The protocol's EncoderDecoder; every weight and statistic drawn."""
    with warnings.catch_warnings(action="ignore"):  # mmseg's, of torch.meshgrid
        built = build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
        for module in built.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features, generator=generator) / 10
                module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)
    return built.eval()


def build() -> Any:
    from mmengine.config import ConfigDict
    from mmseg.registry import MODELS

    norm = {"type": "BN", "requires_grad": True}
    return MODELS.build(
        ConfigDict(
            type="EncoderDecoder",
            backbone={
                "type": "MAE",
                "img_size": (CROP, CROP),
                "patch_size": 4,
                "embed_dims": WIDTH,
                "num_layers": 4,
                "num_heads": 2,
                "out_indices": [0, 1, 2, 3],
            },
            neck={
                "type": "Feature2Pyramid",
                "embed_dim": WIDTH,
                "rescales": [4, 2, 1, 0.5],
                "norm_cfg": norm,
            },
            decode_head={
                "type": "UPerHead",
                "in_channels": [WIDTH] * 4,
                "in_index": [0, 1, 2, 3],
                "channels": 24,
                "num_classes": CLASSES,
                "norm_cfg": norm,
                "align_corners": False,
            },
            test_cfg={"mode": "slide", "crop_size": (CROP, CROP), "stride": (STRIDE, STRIDE)},
        )
    )


def drawn(sizes: list[tuple[int, int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def theirs(model: Any, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model.slide_inference(image[None], [{}])[0]


def encode_decode(model: Any, pixels: Tensor) -> Tensor:
    return model.encode_decode(pixels, [{"img_shape": pixels.shape[2:]}])


# Windows


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_grid_is_mmsegs(data: st.DataObject) -> None:
    """Read off where its own slide_inference runs the network, over numbered pixels."""
    from mmengine.config import ConfigDict
    from mmseg.models import EncoderDecoder

    crop = data.draw(st.integers(1, 20))
    stride = data.draw(st.integers(1, crop))
    height, width = (data.draw(st.integers(crop, 60)) for _ in range(2))
    seen: list[tuple[int, int]] = []

    class Grid(EncoderDecoder):
        test_cfg = ConfigDict(crop_size=(crop, crop), stride=(stride, stride))
        out_channels = 1

        def __init__(self) -> None:
            nn.Module.__init__(self)

        def encode_decode(self, inputs: Tensor, batch_img_metas: Any) -> Tensor:
            seen.append(divmod(int(inputs[0, 0, 0, 0]), width))
            assert inputs.shape == (1, 1, crop, crop)
            return inputs

    numbers = torch.arange(height * width).view(1, 1, height, width).double()
    Grid().slide_inference(numbers, [{}])
    assert windows_of(height, width, crop=crop, stride=stride) == seen


@pytest.mark.parametrize("batch", range(1, 8))
def test_logits_are_those_of_slide_inference(model: Any, batch: int) -> None:
    images = drawn(SIZES)
    expected = [theirs(model, image) for image in images]
    assert min(logits.std() for logits in expected) > 0.1
    for logits_of in (encode_decode, window_logits):
        found = slide(
            lambda pixels, logits_of=logits_of: logits_of(model, pixels),
            iter(images),
            classes=CLASSES,
            crop=CROP,
            stride=STRIDE,
            batch=batch,
        )
        for logits, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)


def test_an_image_smaller_than_the_crop_is_one_of_mmsegs_padded(model: Any) -> None:
    (image,) = drawn([(20, 45)])
    found = slide(
        lambda pixels: window_logits(model, pixels),
        [image],
        classes=CLASSES,
        crop=CROP,
        stride=STRIDE,
        batch=2,
    )
    expected = theirs(model, F.pad(image, (0, 0, 0, CROP - 20)))[:, :20]
    torch.testing.assert_close(next(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 86), (32, 43), (20, 29)])
def test_the_class_map_is_that_of_postprocess_result(model: Any, size: tuple[int, int]) -> None:
    from mmseg.structures import SegDataSample

    logits = theirs(model, drawn([(32, 43)])[0])
    logits -= logits.mean((1, 2), keepdim=True)  # so that no class wins everywhere
    sample = SegDataSample(metainfo={"ori_shape": size})
    (expected,) = model.postprocess_result(logits[None], [sample])
    assert len(expected.pred_sem_seg.data.unique()) > 3
    assert torch.equal(class_map(logits, size).long(), expected.pred_sem_seg.data[0])


# The decode head


def test_the_decode_head_gives_its_own_logits_and_gradients(model: Any) -> None:
    pixels = torch.stack(drawn([(CROP, CROP)] * 3))
    head = model.decode_head
    levels = [level.detach() for level in model.extract_feat(pixels)]

    def run(forward: Any) -> tuple[Tensor, list[Tensor]]:
        inputs = [level.clone().requires_grad_() for level in levels]
        logits = forward(inputs)
        wanted = [*inputs, *head.parameters()]
        return logits, list(torch.autograd.grad(logits.square().mean(), wanted))

    logits, gradients = run(lambda inputs: decode(head, inputs))
    expected, expected_gradients = run(head.forward)
    assert logits.shape == (3, CLASSES, CROP, CROP)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert len(gradients) > 20
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


# The metric


MAPS = st.integers(1, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(
            st.lists(
                st.tuples(
                    st.integers(0, classes - 1), st.sampled_from([*range(classes), 255, 255])
                ),
                min_size=1,
                max_size=30,
            ),
            min_size=1,
            max_size=4,
        ),
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MAPS)
def test_scores_are_those_of_iou_metric(drawn: tuple[int, list[list[tuple[int, int]]]]) -> None:
    """Ignored pixels, absent classes and such as are only guessed included."""
    from mmseg.evaluation import IoUMetric

    classes, images = drawn
    pairs = [torch.tensor(image).T[:, None] for image in images]
    areas = [IoUMetric.intersect_and_union(guess, truth, classes, 255) for guess, truth in pairs]
    counts = np.stack([count(guess, truth, classes) for guess, truth in pairs])
    for (right, _, guessed, labelled), ours in zip(areas, counts, strict=True):
        assert ours.tolist() == torch.stack([right, guessed, labelled]).tolist()
    if not counts[:, 2].any():
        return
    totals = [sum(area) for area in zip(*areas, strict=True)]
    expected = IoUMetric.total_area_to_metrics(*totals)  # type: ignore[arg-type]
    found = scores_of(counts)
    np.testing.assert_allclose(found.iou, 100 * expected["IoU"], rtol=1e-6)
    np.testing.assert_allclose(found.acc, 100 * expected["Acc"], rtol=1e-6)
    assert found.aacc == pytest.approx(100 * float(expected["aAcc"]))
    assert found.miou == pytest.approx(100 * float(np.nanmean(expected["IoU"])))
    assert found.macc == pytest.approx(100 * float(np.nanmean(expected["Acc"])))
