"""Convnet teachers: DINO's ResNet-50, or any of timm's, cut after the stage that is read."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.teachers.frozen import FrozenTokens, Precision
from zoo.card import TeacherRecord
from zoo.convnet import Stage, read_stage
from zoo.folder import load_convnet


def convnet_tokens(
    folder: Path,
    *,
    stride: int | None,
    image_size: int | None,
    precision: Precision,
    device: torch.device,
) -> FrozenTokens:
    """The teacher in a model folder; a token is a cell of the stage's map, after its last ReLU.

    Raises IntegrityError, UsageError.
    """
    model = load_convnet(folder, stride=stride, image_size=image_size, device=device)
    record = TeacherRecord(
        name=model.name,
        digest=model.digest,
        block=None,
        stride=model.stage.stride,
        license=model.license,
    )
    return FrozenTokens(
        model.net,
        _reader(model.stage),
        model.preprocess,
        record=record,
        cell=model.stage.stride,
        width=model.stage.channels,
        precision=precision,
    )


def _reader(stage: Stage) -> Callable[[nn.Module, Tensor], Tensor]:
    def read(net: nn.Module, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return read_stage(net, images, stage).flatten(2).transpose(1, 2)

    return read
