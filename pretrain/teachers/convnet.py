"""Convnet teachers: DINO's ResNet-50, or any of timm's, cut after the stage that is read."""

from functools import partial
from pathlib import Path

import torch

from pretrain.teachers.frozen import FrozenTokens, Precision
from zoo.folder import load_convnet
from zoo.tokens import stage_tokens


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
    return FrozenTokens(
        model.net,
        partial(stage_tokens, stage=model.stage),
        model.preprocess,
        record=model.as_teacher(stride=model.stage.stride),
        cell=model.stage.stride,
        width=model.stage.channels,
        precision=precision,
    )
