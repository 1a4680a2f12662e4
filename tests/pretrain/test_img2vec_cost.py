"""What a step of Img2Vec computes, counted on the meta device."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pretrain.methods.img2vec import Img2Vec, MaskedFeaturePrediction
from pretrain.objective import Batch
from pretrain.teachers.frozen import FrozenTokens
from pretrain.teachers.tokens import TokenTeacher
from zoo.convnet import empty_convnet, read_stage, stage_at
from zoo.images import Preprocess
from zoo.vit import VIT_B

# Two floating-point operations a multiply-add; norms, softmax and activations are not counted.


def blocks_flops(width: int, depth: int, tokens: int) -> int:
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


def resnet50() -> tuple[FrozenTokens, int]:
    net = empty_convnet("resnet50", {})
    stage = stage_at(net, 32)

    def read(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return read_stage(net, images, stage).flatten(2).transpose(1, 2)

    size = Preprocess(image_size=224)
    teacher = FrozenTokens(net, read, size, record=None, cell=32, width=2048)
    with FlopCounterMode(display=False) as counter:
        teacher(torch.empty(1, 3, 224, 224, device="meta"))
    return teacher, counter.get_total_flops()


def step_flops(method: Img2Vec, teacher: FrozenTokens) -> int:
    objective = MaskedFeaturePrediction(VIT_B, teacher, method, seed=0).to("meta")
    batch = Batch(
        images=torch.zeros(1, 3, 224, 224, dtype=torch.uint8, device="meta"),
        indices=torch.zeros(1, dtype=torch.int64, device="meta"),
        draws=torch.zeros(1, objective.draws, device="meta"),
    )
    with FlopCounterMode(display=False) as counter:
        objective(batch)["total"].backward()
    return counter.get_total_flops()


def test_a_step_computes_this_and_nothing_else() -> None:
    """Teacher once; 77 encoder and 197 decoder tokens, heads, each three times over."""
    teacher, of_teacher = resnet50()
    assert of_teacher / 1e9 == pytest.approx(8.2, rel=0.01)
    method = Img2Vec(
        teacher=TokenTeacher(source=""), decoder_width=512, decoder_depth=2, decoder_heads=16
    )
    embed = 2 * 196 * 768**2  # every patch is projected; the images need no gradient
    enter = 2 * 77 * 768 * 512
    heads = 2 * 49 * (512 * 768 + 768 * 2048) + 2 * (768 * 768 + 768 * 2048)
    learned = blocks_flops(768, 12, 77) + blocks_flops(512, 2, 197) + enter + heads
    expected = of_teacher + 2 * embed + 3 * learned
    found = step_flops(method, teacher)
    assert found == expected
    assert found / 1e9 == pytest.approx(57.2, abs=0.05)  # as docs/img2vec.md states


def test_at_maes_settings_a_step_costs_what_mae_costs_and_the_teacher() -> None:
    """75 % masked, decoder of 8 blocks: 66 GF an image, with a pixel-sized output."""
    teacher, of_teacher = resnet50()
    method = Img2Vec(
        teacher=TokenTeacher(source=""),
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        mask_ratio=0.75,
        mask_unit=16,
    )
    found = step_flops(method, teacher)
    encoder = blocks_flops(768, 12, 50)
    decoder = blocks_flops(512, 8, 197)
    assert found > of_teacher + 3 * (encoder + decoder)
    assert found / 1e9 == pytest.approx(66, rel=0.02)
