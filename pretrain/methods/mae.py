"""MAE: reconstruct the pixels of masked patches.  The baseline, and the maker of teachers.

He, Chen, Xie, Li, Dollár, Girshick: "Masked Autoencoders Are Scalable Vision Learners",
CVPR 2022 (arXiv 2111.06377), §3.

B images · P patches · V visible patches · D encoder width · E decoder width
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pretrain.objective import Batch, Export, ParamGroup
from pretrain.optim import Count, decay_matrices
from pretrain.views import FLIP_DRAWS, flip
from zoo.errors import UsageError
from zoo.images import normalise
from zoo.vit import LAYER_NORM_EPS, ViTConfig, build_vit, embed, initialise, sincos_positions


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
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise UsageError(
                f"a decoder of width {self.decoder_width} cannot have {self.decoder_heads} heads",
                where="method.decoder_width, method.decoder_heads",
                fix="the width must be a multiple of 4 and of the heads",
            )
        return MaskedAutoencoder(student, self, seed=seed).to(device)


class MaskedAutoencoder(nn.Module):
    """The objective: ``{"total"}``, the mean squared error on masked patches."""

    def __init__(self, student: ViTConfig, method: MAE, *, seed: int) -> None:
        super().__init__()
        self.config, self.method = student, method
        self.draws = FLIP_DRAWS + student.patches
        self.encoder = build_vit(student, seed=seed)
        self.decoder = Decoder(student, method, seed=seed)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = normalise(flip(batch.images, batch.draws[:, 0]) / 255)
        order = mask_order(batch.draws[:, FLIP_DRAWS:])
        visible = order[:, : self.visible_patches]
        tokens = self.encoder.norm(self.encoder.blocks(embed(self.encoder, images, visible)))
        guess = self.decoder(tokens, order)
        target = patchify(images, self.config.patch)
        if self.method.normalise_pixels:
            target = normalise_patches(target)
        masked = order[:, self.visible_patches :]
        return {"total": masked_loss(guess, target, masked)}

    @property
    def visible_patches(self) -> int:
        """As in MAE, rounded down."""
        return int(self.config.patches * (1 - self.method.mask_ratio))

    def param_groups(self, weight_decay: float) -> Iterable[ParamGroup]:
        return decay_matrices(self.named_parameters(), weight_decay)

    def export(self) -> Export:
        """The encoder; the decoder has done its work."""
        return Export(weights=self.encoder.state_dict(), last_trained_block=self.config.depth)


class Decoder(nn.Module):
    """Mask tokens join the visible ones; a few blocks; pixels (§3, "MAE decoder")."""

    positions: Tensor

    def __init__(self, student: ViTConfig, method: MAE, *, seed: int) -> None:
        super().__init__()
        width = method.decoder_width
        self.enter = nn.Linear(student.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.Sequential(
            *(
                Block(width, method.decoder_heads, qkv_bias=True)
                for _ in range(method.decoder_depth)
            )
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.leave = nn.Linear(width, 3 * student.patch**2)
        positions = sincos_positions(width, student.grid)
        self.register_buffer("positions", positions, persistent=False)
        # Another stream than the encoder's, which has the recipe's seed itself.
        generator = torch.Generator().manual_seed(seed + 1)
        initialise(self, generator)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        """(B, P, 3·patch²) for tokens (B, 1 + V, D) of the first V patches of ``order`` (B, P)."""
        tokens = self.enter(tokens)
        batch, patches = order.shape
        missing = patches + 1 - tokens.shape[1]
        hidden = self.mask_token.to(tokens.dtype).expand(batch, missing, -1)
        shuffled = torch.cat([tokens[:, 1:], hidden], dim=1)
        place = order.argsort(dim=1).unsqueeze(-1).expand_as(shuffled)
        full = torch.cat([tokens[:, :1], shuffled.gather(1, place)], dim=1)
        full = self.norm(self.blocks(full + self.positions))
        return self.leave(full[:, 1:])


def mask_order(draws: Tensor) -> Tensor:
    """A random order of patches per sample from uniform draws (B, P): the first stay visible."""
    return draws.argsort(dim=1, stable=True)


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, 3, S, S) to (B, P, 3·patch²), patches in row order."""
    batch, channels, side, _ = images.shape
    grid = side // patch
    cells = images.reshape(batch, channels, grid, patch, grid, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid**2, channels * patch**2)


def normalise_patches(patches: Tensor) -> Tensor:
    """Each patch to mean 0 and (unbiased) variance 1 over its pixels and channels."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_loss(guess: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error over the pixels of the masked patches (B, M) alone; fp32."""
    per_patch = (guess.float() - target.float()).square().mean(-1)
    return per_patch.gather(1, masked).mean()
