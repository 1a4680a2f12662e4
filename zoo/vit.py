"""The network: timm's VisionTransformer, and only what timm lacks.

B images · N tokens (class token first) · D width · S image side in pixels · P patches

Blocks are counted from 1, as the papers do.
"""

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from zoo.errors import UsageError

LAYER_NORM_EPS = 1e-6

# Far above any network, far below what a hostile configuration could fill a memory with.
MOST = {"width": 8192, "depth": 256, "heads": 8192, "patch": 4096, "image_size": 4096}


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """A plain ViT: class token, absolute positions, MLP ratio 4, qkv bias, LayerNorm eps 1e-6.

    Raises UsageError for sizes that do not divide, or that no ViT has.
    """

    width: int
    depth: int
    heads: int
    """Part of the model: weight shapes cannot tell head counts apart."""
    patch: int = 16
    """Side of a patch, in pixels."""
    image_size: int = 224
    """Side of the input, in pixels."""

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise UsageError(
                    f"no ViT has {name} {getattr(self, name):,}",
                    where=f"{type(self).__name__}.{name}",
                    fix=f"choose 1 … {most:,}",
                )
        for whole, part in (("width", "heads"), ("image_size", "patch")):
            if getattr(self, whole) % getattr(self, part):
                raise UsageError(
                    f"{part} {getattr(self, part)} does not divide {whole} {getattr(self, whole)}",
                    where=f"{type(self).__name__}.{part}",
                    fix=f"choose one of {divisors(getattr(self, whole))}",
                )
        if self.width % 4:
            raise UsageError(
                f"width {self.width} is not a multiple of 4, which sin-cos positions need",
                where=f"{type(self).__name__}.width",
                fix=f"choose {self.width + 4 - self.width % 4}",
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.patches + 1


VIT_T = ViTConfig(width=192, depth=12, heads=3)
VIT_S = ViTConfig(width=384, depth=12, heads=6)
VIT_B = ViTConfig(width=768, depth=12, heads=12)
VIT_L = ViTConfig(width=1024, depth=24, heads=16)
VIT_H = ViTConfig(width=1280, depth=32, heads=16, patch=14)


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def empty_vit(config: ViTConfig, classes: int = 0) -> VisionTransformer:
    """The network without memory for its weights (meta device): for loading and counting.

    With classes it ends as MAE's fine-tuning does: mean of the patch tokens, a norm of its own
    behind the pooling (``fc_norm``, in place of ``norm``), a linear ``head``.
    """
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=classes,
        global_pool="avg",
        fc_norm=classes > 0,
        weight_init="skip",
        device="meta",
    )


def build_vit(config: ViTConfig, *, seed: int) -> VisionTransformer:
    """A new network as MAE initialises it, with fixed sin-cos positions (``requires_grad`` off).

    Xavier-uniform for linears and for the patch projection seen as a matrix, zero biases, class
    token N(0, 0.02); the patch projection's bias keeps the uniform default of a convolution.
    """
    vit = empty_vit(config).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.fill_(math.nan)  # whatever is forgotten below shows at once
    generator = torch.Generator().manual_seed(seed)
    initialise(vit, generator)
    patch = vit.patch_embed.proj
    with torch.no_grad():
        nn.init.xavier_uniform_(patch.weight.view(config.width, -1), generator=generator)
        bound = patch.weight[0].numel() ** -0.5
        nn.init.uniform_(patch.bias, -bound, bound, generator=generator)
        nn.init.normal_(_present(vit.cls_token), std=0.02, generator=generator)
        _present(vit.pos_embed).copy_(sincos_positions(config.width, config.grid))
    _present(vit.pos_embed).requires_grad_(False)
    return vit


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """MAE's initialisation of every Linear and LayerNorm below ``module``."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def adopt_weights(vit: VisionTransformer, weights: Mapping[str, Tensor]) -> VisionTransformer:
    """Make ``weights`` the network's own, without a copy and whatever was there before."""
    vit.load_state_dict(weights, strict=True, assign=True)
    return vit


def config_of(vit: VisionTransformer) -> ViTConfig:
    """The plain ViT that ``vit`` is.  Raises UsageError where it is of another kind."""
    block = vit.blocks[0]
    plain = (
        vit.cls_token is not None
        and vit.reg_token is None
        and vit.pos_embed is not None
        and not vit.no_embed_class
        and not vit.dynamic_img_size
        and isinstance(vit.norm_pre, nn.Identity)
        and isinstance(block, Block)
        and isinstance(block.attn, Attention)
        and isinstance(block.attn.q_norm, nn.Identity)
        and isinstance(block.attn.norm, nn.Identity)
        and getattr(block.attn, "gate", None) is None
        and isinstance(block.mlp, Mlp)
    )
    if not plain:
        raise UsageError(
            "not a plain ViT (class token, absolute positions, fused qkv, no register tokens)",
            where=type(vit).__name__,
            fix="use a plain ViT, such as hf-hub:timm/vit_large_patch16_224.mae",
        )
    return ViTConfig(
        width=vit.embed_dim,
        depth=len(vit.blocks),
        heads=_attention(block).num_heads,
        patch=vit.patch_embed.patch_size[0],
        image_size=vit.patch_embed.img_size[0],
    )


def final_norm(vit: VisionTransformer) -> nn.Module:
    """The norm behind the last block: with mean pooling, timm may keep it behind the pooling."""
    pooled_first = isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.LayerNorm)
    return vit.fc_norm if pooled_first else vit.norm


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed 2-D positions in MAE's layout: (1, 1 + grid², width) float32, class token zero.

    The first half of the channels encodes the column, the second the row; each half holds all
    sines, then all cosines.  Computed in float64.
    """
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    angles = np.outer(np.arange(grid), frequencies)
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns, rows = np.tile(line, (grid, 1)), np.repeat(line, grid, axis=0)
    patches = np.concatenate([columns, rows], axis=1)
    table = np.concatenate([np.zeros((1, width)), patches])
    return torch.from_numpy(table).float().unsqueeze(0)


def set_drop_path(vit: VisionTransformer, rates: Iterable[float]) -> None:
    """One stochastic-depth rate a block, in [0, 1)."""
    for block, rate in zip(vit.blocks, rates, strict=True):
        block.drop_path1 = DropPath(rate) if rate else nn.Identity()
        block.drop_path2 = DropPath(rate) if rate else nn.Identity()


def embed(vit: VisionTransformer, images: Tensor, visible: Tensor | None = None) -> Tensor:
    """Tokens that enter the first block: (B, 1 + P, D), or only the visible patches'.

    images: (B, 3, S, S), normalised.  visible: (B, V) int64, indices of the patches to keep.
    """
    positions = _present(vit.pos_embed)
    patches = vit.patch_embed(images) + positions[:, 1:]
    if visible is not None:
        index = visible.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        patches = patches.gather(1, index)
    # Not len(patches): an exporter would take it for a constant.
    cls = (_present(vit.cls_token) + positions[:, :1]).expand(patches.shape[0], -1, -1)
    return torch.cat([cls, patches], dim=1)


Kind = Literal["q", "k", "v", "attention", "attention_residual", "ffn", "block"]
"""A place inside a block.  Q, K and V: heads concatenated.  ``attention`` and ``ffn``: what a
branch gives, before it joins the residual stream; ``attention_residual`` and ``block``: after."""


class Tap(NamedTuple):
    """A place to read; blocks are counted from 1."""

    block: int
    kind: Kind


def taps(
    vit: VisionTransformer,
    images: Tensor,
    wanted: Iterable[Tap],
    *,
    visible: Tensor | None = None,
) -> dict[Tap, Tensor]:
    """What the network holds at the ``wanted`` places, each (B, N, D).

    No block beyond the last one wanted runs, and of that block nothing past the last place wanted:
    where only its Q, K or V is, nothing past the qkv projection.  ``visible`` as in ``embed``.
    """
    wanted = set(wanted)
    last = max(tap.block for tap in wanted)
    found: dict[Tap, Tensor] = {}
    tokens = embed(vit, images, visible)
    for number, part in enumerate(vit.blocks[:last], start=1):
        block = cast(Block, part)
        here = {tap for tap in wanted if tap.block == number}
        kinds: set[Kind] = {tap.kind for tap in here}
        if kinds <= {"block"}:
            parts: dict[Kind, Tensor] = {"block": block(tokens)}
        else:
            parts = _parts(block, tokens, kinds if number == last else {"block"})
        found |= {tap: parts[tap.kind] for tap in here}
        if number < last:
            tokens = parts["block"]
    return found


def _parts(block: Block, tokens: Tensor, last: AbstractSet[Kind]) -> dict[Kind, Tensor]:
    """What a block holds, place by place, until all of ``last`` are there."""
    attention = _attention(block)
    qkv = attention.qkv(block.norm1(tokens))
    q, k, v = qkv.chunk(3, dim=-1)
    found: dict[Kind, Tensor] = {"q": q, "k": k, "v": v}
    if last <= found.keys():
        return found
    heads = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(*heads.unbind()).transpose(1, 2).flatten(2)
    found["attention"] = branch = block.ls1(attention.proj(mixed))
    found["attention_residual"] = tokens = tokens + block.drop_path1(branch)
    if last <= found.keys():
        return found
    found["ffn"] = branch = block.ls2(block.mlp(block.norm2(tokens)))
    found["block"] = tokens + block.drop_path2(branch)
    return found


def _attention(block: nn.Module) -> Attention:
    return cast(Attention, block.attn)  # timm declares its parts as plain modules


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "config_of() admits plain ViTs only"
    return tensor
