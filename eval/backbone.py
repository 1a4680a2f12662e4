"""A frozen network as the probes see it: images in, one pooled vector of tokens an image out.

B images · D width · S image side in pixels
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pretrain.teachers.frozen import FrozenTokens
from pretrain.teachers.tokens import open_tokens
from zoo.errors import UsageError
from zoo.folder import Model, holds_convnet, load_model
from zoo.hub import locate
from zoo.images import Preprocess, normalise
from zoo.tokens import block_tokens

Pooling = Literal["cls", "mean"]
"""The class token, or the mean of the patch tokens; after the final norm."""
Pooled = Literal["cls", "mean", "cls+mean"]
"""What a vector of features holds; of both, the class token comes first."""
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A network in eval mode and without gradients, whatever is done to what holds it."""

    name: str
    digest: str
    """Of the model: sha256 over weights and configuration."""
    preprocess: Preprocess
    place: str
    """Where it is read: ``block 11``, ``stride 32``."""
    width: int
    """D of one pooled vector."""
    has_cls: bool
    device: torch.device
    dtype: Dtype
    """Of the forward pass, by autocast unless float32."""
    _tokens: Callable[[Tensor], tuple[Tensor | None, Tensor]]

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        return ("cls", "mean") if self.has_cls else ("mean",)

    @torch.no_grad()  # not inference_mode: a head is trained on what comes out
    def pool(self, images01: Tensor, pooled: Pooled) -> Tensor:
        """(B, D) float32, or (B, 2 D) of both; images (B, 3, S, S) in [0, 1] on the device."""
        low = torch.float32 if self.dtype == "float32" else getattr(torch, self.dtype)
        half = torch.autocast(self.device.type, dtype=low, enabled=self.dtype != "float32")
        with half, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            cls, patches = self._tokens(images01)
        parts = {"cls": cls, "mean": patches.float().mean(1)}
        wanted = [parts[name] for name in pooled.split("+")]
        return torch.cat([part.float() for part in wanted if part is not None], dim=1)


def open_backbone(
    source: str,
    *,
    device: torch.device,
    transform: Preprocess | None = None,
    dtype: str = "float32",
) -> Backbone:
    """A model (folder, Hub or timm name), frozen and read after its last trained block or stage.

    transform: in place of the card's own.  Raises UsageError, IntegrityError, NetworkError.
    """
    if dtype not in get_args(Dtype):
        known = ", ".join(get_args(Dtype))
        raise UsageError(f"no precision is called {dtype!r}", fix=f"choose one of: {known}")
    folder = locate(source)
    size = transform.image_size if transform else None
    if holds_convnet(folder):
        tokens = open_tokens(str(folder), image_size=size, device=device)
        return of_tokens(tokens, device=device, transform=transform, dtype=dtype)  # type: ignore[arg-type]
    model = load_model(folder, image_size=size, device=device)
    return of_vit(model, device=device, transform=transform, dtype=dtype)  # type: ignore[arg-type]


def of_vit(
    model: Model,
    *,
    device: torch.device,
    transform: Preprocess | None = None,
    dtype: Dtype = "float32",
) -> Backbone:
    """A ViT, read after its last trained block and the final norm."""
    vit = model.vit.to(device).eval().float().requires_grad_(False)
    preprocess = transform or model.preprocess

    def read(images01: Tensor) -> tuple[Tensor, Tensor]:
        inputs = normalise(images01, preprocess.mean, preprocess.std)
        tokens = block_tokens(vit, inputs, model.last_trained_block)
        return tokens[:, 0], tokens[:, 1:]

    return Backbone(
        name=model.name,
        digest=model.digest,
        preprocess=preprocess,
        place=f"block {model.last_trained_block}",
        width=model.config.width,
        has_cls=True,
        device=device,
        dtype=dtype,
        _tokens=read,
    )


def of_tokens(
    network: FrozenTokens,
    *,
    device: torch.device,
    transform: Preprocess | None = None,
    dtype: Dtype = "float32",
) -> Backbone:
    """A network that is read as spatial tokens: a convnet's stage, a ViT's patches."""
    frozen, known = network.to(device).float(), network.record
    if transform:
        frozen.preprocess = transform
    last = f"block {known.block}" if known and known.block else f"stride {network.cell}"
    return Backbone(
        name=known.name if known else "pixels",
        digest=known.digest if known else "",
        preprocess=frozen.preprocess,
        place=last,
        width=network.width,
        has_cls=False,
        device=device,
        dtype=dtype,
        _tokens=lambda images01: (None, frozen(images01)),
    )


def require_pooling(backbone: Backbone, pooling: str) -> Pooling:
    """A pooling that the network has.  Raises UsageError."""
    if pooling not in get_args(Pooling):
        known = ", ".join(get_args(Pooling))
        raise UsageError(f"no pooling is called {pooling!r}", fix=f"choose one of: {known}")
    if pooling not in backbone.poolings:
        raise UsageError(
            "a network of spatial tokens has no class token",
            where="pooling cls",
            fix="repeat with --pooling mean",
        )
    return pooling  # type: ignore[return-value]
