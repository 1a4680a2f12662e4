"""What masked autoencoders share: which patches are hidden, and the light decoder that fills in.

B images · P patches · V visible patches · C mask cells · D encoder width · E decoder width
"""

import math
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.errors import UsageError
from zoo.vit import LAYER_NORM_EPS, ViTConfig, initialise, sincos_positions


def mask_order(draws: Tensor) -> Tensor:
    """A random order of cells per sample from uniform draws (B, C): the first stay visible."""
    return draws.argsort(dim=1, stable=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class CellMask:
    """Masks of square cells larger than a patch, as many in every sample (SimMIM, §3.2).

    The masked share is rounded up: 30 of 49 cells at 60 %.  Raises UsageError where cells do not
    align with patches and image, or none would stay visible.
    """

    student: ViTConfig
    unit: int
    """Side of a cell, in pixels."""
    ratio: float

    def __post_init__(self) -> None:
        if self.unit % self.student.patch or self.student.image_size % self.unit:
            patch, size = self.student.patch, self.student.image_size
            fitting = [u for u in range(patch, size, patch) if size % u == 0]
            raise UsageError(
                f"mask cells of {self.unit} px are not made of whole patches of {patch} px, "
                f"or do not tile an image of {size} px",
                where="method.mask_unit",
                fix=f"choose one of {', '.join(map(str, fitting))}, or other patches",
            )
        if self.visible < 1:
            raise UsageError(
                f"a mask ratio of {self.ratio} leaves no visible cell of {self.cells}",
                where="method.mask_ratio",
                fix=f"choose at most {_down(1 - 1 / self.cells)}, or a smaller mask_unit"
                if self.cells > 1
                else "choose a smaller mask_unit",
            )

    @property
    def cells(self) -> int:
        return (self.student.image_size // self.unit) ** 2

    @property
    def masked(self) -> int:
        """Masked cells of a sample."""
        return max(1, math.ceil(self.cells * self.ratio - 1e-9))  # 0.55 × 100 is 55.000…01

    @property
    def visible(self) -> int:
        """Visible cells of a sample."""
        return self.cells - self.masked

    @property
    def visible_patches(self) -> int:
        return self.visible * (self.unit // self.student.patch) ** 2


def _down(ratio: float) -> float:
    """To four digits, and not above: advice that can be followed."""
    return math.floor(ratio * 1e4) / 1e4


def patch_order(draws: Tensor, patches: Tensor) -> Tensor:
    """(B, P) patch indices, cell after cell in random order: the first ones stay visible.

    draws: (B, C), uniform.  patches: (C, patches a cell), from ``patches_of_cells``.
    """
    return patches[mask_order(draws)].flatten(1)


def patches_of_cells(grid: int, side: int) -> Tensor:
    """(C, side²) int64: which patches of a ``grid``² make up each cell of ``side``², row by row."""
    patches = torch.arange(grid**2).view(grid // side, side, grid // side, side)
    return patches.transpose(1, 2).reshape(-1, side**2)


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, 3, S, S) to (B, P, 3·patch²), patches in row order."""
    batch, channels, side, _ = images.shape
    grid = side // patch
    cells = images.reshape(batch, channels, grid, patch, grid, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid**2, channels * patch**2)


def visible_patches(student: ViTConfig, ratio: float) -> int:
    """Patches that stay visible in every sample; as in MAE, rounded down."""
    return int(student.patches * (1 - ratio))


def pixel_targets(images: Tensor, patch: int, normalised: bool) -> Tensor:
    """What MAE's decoder is to predict: (B, P, 3·patch²) pixels of normalised images.

    normalised: each patch by its own mean and variance.
    """
    patches = patchify(images, patch)
    return normalise_patches(patches) if normalised else patches


def normalise_patches(patches: Tensor) -> Tensor:
    """Each patch to mean 0 and (unbiased) variance 1 over its pixels and channels."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_loss(guess: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error over the pixels of the masked patches (B, M) alone; fp32."""
    per_patch = (guess.float() - target.float()).square().mean(-1)
    return per_patch.gather(1, masked).mean()


class Decoder(nn.Module):
    """Mask tokens join the visible ones; a few blocks (MAE §3, "MAE decoder")."""

    positions: Tensor

    def __init__(
        self,
        student: ViTConfig,
        *,
        width: int,
        depth: int,
        heads: int,
        leave: nn.Module,
        seed: int,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(student.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.leave = leave
        positions = sincos_positions(width, student.grid)
        self.register_buffer("positions", positions, persistent=False)
        # Another stream than the encoder's, which has the recipe's seed itself.
        generator = torch.Generator().manual_seed(seed + 1)
        initialise(self, generator)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        """What ``leave`` makes of (B, P, E), for tokens (B, 1 + V, D) of the first V patches of
        ``order`` (B, P).
        """
        tokens = self.enter(tokens)
        batch, patches = order.shape
        missing = patches + 1 - tokens.shape[1]
        hidden = self.mask_token.to(tokens.dtype).expand(batch, missing, -1)
        shuffled = torch.cat([tokens[:, 1:], hidden], dim=1)
        place = order.argsort(dim=1).unsqueeze(-1).expand_as(shuffled)
        full = torch.cat([tokens[:, :1], shuffled.gather(1, place)], dim=1)
        full = self.norm(self.blocks(full + self.positions))
        return self.leave(full[:, 1:])


def pixel_decoder(student: ViTConfig, *, width: int, depth: int, heads: int, seed: int) -> Decoder:
    """MAE's decoder: it predicts the pixels of each patch, as ``pixel_targets`` has them."""
    leave = nn.Linear(width, 3 * student.patch**2)
    return Decoder(student, width=width, depth=depth, heads=heads, leave=leave, seed=seed)


def require_decoder_sizes(width: int, heads: int, *, owner: str = "method") -> None:
    """Raise UsageError for a decoder that no attention could have.  owner: the recipe key of it."""
    if width % heads or width % 4:
        raise UsageError(
            f"a decoder of width {width} cannot have {heads} heads",
            where=f"{owner}.decoder_width, {owner}.decoder_heads",
            fix="the width must be a multiple of 4 and of the heads",
        )
