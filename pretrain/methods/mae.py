"""MAE: reconstruct the pixels of masked patches.  The baseline, and the maker of teachers.

He, Chen, Xie, Li, Dollár, Girshick: "Masked Autoencoders Are Scalable Vision Learners",
CVPR 2022 (arXiv 2111.06377), §3.

B images · P patches · M masked patches
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.bounds import Count
from pretrain.masked import (
    mask_order,
    masked_loss,
    pixel_decoder,
    pixel_targets,
    require_decoder_sizes,
    visible_patches,
)
from pretrain.objective import Batch, Export, Observation, ParamGroup
from pretrain.observe import observe_vit
from pretrain.optim import decay_matrices
from pretrain.views import FLIP_DRAWS, flip
from zoo.images import normalise
from zoo.vit import Tap, ViTConfig, build_vit, embed


@dataclass(frozen=True, kw_only=True, slots=True)
class MAE:
    """Masked autoencoding with a light decoder."""

    name: ClassVar[str] = "mae"

    decoder_width: Count
    decoder_depth: Count
    decoder_heads: Count
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    normalise_pixels: bool = True
    """Predict each patch's pixels normalised by that patch's own mean and variance."""

    def build(self, student: ViTConfig, *, seed: int, device: torch.device) -> "MaskedAutoencoder":
        require_decoder_sizes(self.decoder_width, self.decoder_heads)
        return MaskedAutoencoder(student, self, seed=seed).to(device)


class MaskedAutoencoder(nn.Module):
    """The objective: ``{"total"}``, the mean squared error on masked patches."""

    def __init__(self, student: ViTConfig, method: MAE, *, seed: int) -> None:
        super().__init__()
        self.config, self.method = student, method
        self.draws = FLIP_DRAWS + student.patches
        self.encoder = build_vit(student, seed=seed)
        self.decoder = pixel_decoder(
            student,
            width=method.decoder_width,
            depth=method.decoder_depth,
            heads=method.decoder_heads,
            seed=seed,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = normalise(flip(batch.images, batch.draws[:, 0]) / 255)
        order = mask_order(batch.draws[:, FLIP_DRAWS:])
        visible = order[:, : self.visible_patches]
        tokens = self.encoder.norm(self.encoder.blocks(embed(self.encoder, images, visible)))
        masked = order[:, self.visible_patches :]
        target = pixel_targets(images, self.config.patch, self.method.normalise_pixels)
        return {"total": masked_loss(self.decoder(tokens, order), target, masked)}

    @property
    def visible_patches(self) -> int:
        return visible_patches(self.config, self.method.mask_ratio)

    def observe(self, images01: Tensor) -> Observation:
        last = Tap(self.config.depth, "block")
        return observe_vit(self.encoder, normalise(images01), last=last)

    def param_groups(self, weight_decay: float) -> Iterable[ParamGroup]:
        return decay_matrices(self.named_parameters(), weight_decay)

    def export(self) -> Export:
        """The encoder; the decoder has done its work."""
        return Export(weights=self.encoder.state_dict(), last_trained_block=self.config.depth)
