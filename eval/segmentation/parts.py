"""What our configurations name and mmsegmentation lacks.  Importing this registers it there.

B images · D width · H, W pixels
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmseg.datasets
import mmseg.engine
import mmseg.evaluation
import mmseg.models
import mmseg.visualization  # noqa: F401  # each fills the registry
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.model import BaseModule
from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS
from torch import Tensor, nn

from eval.segmentation.pixels import read_pixels
from eval.segmentation.recipe import IGNORED
from eval.segmentation.weights import resize_positions
from zoo.vit import ViTConfig, empty_vit, initialise, set_drop_path


@MODELS.register_module()
class PlainViT(BaseModule):
    """timm's ViT as it was pre-trained, at any input size that its patches tile.

    Absolute positions are resized to each input's grid; the class token is dropped from what comes
    out; there is no final norm.
    """

    def __init__(
        self,
        *,
        embed_dims: int,
        depth: int,
        num_heads: int,
        patch_size: int,
        img_size: int,
        out_indices: Sequence[int],
        drop_path_rate: float,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        config = ViTConfig(
            width=embed_dims, depth=depth, heads=num_heads, patch=patch_size, image_size=img_size
        )
        vit = empty_vit(config).to_empty(device="cpu")
        vit.norm = nn.Identity()  # nothing is read behind it, and DDP wants every weight used
        initialise(vit, torch.Generator().manual_seed(0))
        nn.init.zeros_(vit.cls_token)  # type: ignore[arg-type]
        nn.init.trunc_normal_(vit.pos_embed, std=0.02)  # type: ignore[arg-type]
        vit.patch_embed.proj.reset_parameters()  # type: ignore[operator]
        set_drop_path(vit, torch.linspace(0, drop_path_rate, depth).tolist())
        self.vit, self.out_indices = vit, tuple(out_indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalised → a (B, D, H/patch, W/patch) for each of ``out_indices``."""
        vit = self.vit
        patches = vit.patch_embed.proj(images)
        height, width = patches.shape[-2:]
        positions = resize_positions(vit.pos_embed, height, width)  # type: ignore[arg-type]
        cls = vit.cls_token.expand(patches.shape[0], -1, -1)  # type: ignore[union-attr]
        tokens = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1) + positions
        levels = []
        for number, block in enumerate(vit.blocks):
            tokens = block(tokens)
            if number in self.out_indices:
                level = tokens[:, 1:].transpose(1, 2).unflatten(2, (height, width))
                levels.append(level.contiguous())
        return tuple(levels)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecay(DefaultOptimWrapperConstructor):
    """Layer-wise learning rates for either backbone; vectors have no weight decay.

    paramwise_cfg: ``depth``, ``layer_decay`` and ``decay_tokens``: whether class token and
    positions have weight decay.
    """

    def add_params(  # type: ignore[override]
        self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any
    ) -> None:
        """One group a layer and weight decay, in ``params``."""
        depth, rate = self.paramwise_cfg["depth"], self.paramwise_cfg["layer_decay"]
        groups: dict[tuple[int, bool], list[str]] = {}
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        for name, parameter in trained.items():
            token = name.endswith(("cls_token", "pos_embed"))
            bare = parameter.ndim == 1 or (token and not self.paramwise_cfg["decay_tokens"])
            groups.setdefault((_layer_of(name, depth), bare), []).append(name)
        for (layer, bare), names in sorted(groups.items()):
            scale = rate ** (depth + 1 - layer)
            params.append(
                {
                    "params": [trained[name] for name in names],
                    "param_names": names,
                    "lr_scale": scale,
                    "lr": scale * self.base_lr,
                    "weight_decay": 0.0 if bare else self.base_wd,
                }
            )


def _layer_of(name: str, depth: int) -> int:
    """0 for what embeds, i + 1 for block i, depth + 1 for neck and heads."""
    if not name.startswith("backbone."):
        return depth + 1
    parts = name.removeprefix("backbone.").removeprefix("vit.").split(".")
    return int(parts[1]) + 1 if parts[0] in {"blocks", "layers"} else 0


@TRANSFORMS.register_module()
class ReadImage(BaseTransform):
    """The file's pixels in BGR, as OpenCV decodes a good one."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Raises DataError for a file that is damaged, or none."""
        pixels = np.ascontiguousarray(read_pixels(Path(results["img_path"]))[..., ::-1])
        shape = pixels.shape[:2]
        return {**results, "img": pixels, "img_shape": shape, "ori_shape": shape}


@TRANSFORMS.register_module()
class SkipIgnored(BaseTransform):
    """Pass over a crop without a labelled pixel: mmengine draws another image in its place.

    ``skipped`` counts this process's.
    """

    def __init__(self) -> None:
        self.skipped = 0

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        if np.all(results["gt_seg_map"] == IGNORED):
            self.skipped += 1
            return None
        results["skipped"], self.skipped = self.skipped, 0
        return results
