"""A model folder's ViT as the weights of a segmentation backbone, name by name.

D width · G patches along a side of the grid
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.finetune import initialise_fresh
from eval.segmentation.recipe import Backbone
from zoo.errors import IntegrityError
from zoo.folder import Model
from zoo.vit import ViTConfig, build_vit

NEW = ("gamma_1", "gamma_2", "relative_position_bias_table", "relative_position_index")
"""What the ``mae`` backbone has beside the ViT's weights: ones, ones, zeros, and a table."""
_NAMES = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
)
"""timm's names and mmsegmentation's."""
_BEHIND = ("norm.", "fc_norm.", "head.")
"""No feature map is read behind the final norm."""


def backbone_weights(
    config: ViTConfig, model: Model | None, *, backbone: Backbone, grid: int, seed: int
) -> dict[str, Tensor]:
    """The backbone's weights before the first step, on the CPU, by the backbone's names.

    Those of a model, with what its card calls fresh drawn as fine-tuning draws it (of a TinyMIM
    model most of the last block, which was never trained); of none, the weights of a new network.
    grid: G of the crop; positions are resized to it for ``mae``, whose grid is fixed.
    """
    vit = build_vit(config, seed=seed) if model is None else model.vit
    weights = {n: t.detach() for n, t in vit.state_dict().items() if not n.startswith(_BEHIND)}
    fresh = model.card.fresh_parameters if model is not None and model.card else []
    generator = torch.Generator().manual_seed(seed + 1)  # another stream than build_vit's
    for name in (name for name in fresh if name in weights):
        weights[name] = torch.empty_like(weights[name])
        initialise_fresh(name, weights[name], generator, std=0.02)
    if backbone == "plain":
        return {f"vit.{name}": tensor for name, tensor in weights.items()}
    weights["pos_embed"] = resize_positions(weights["pos_embed"], grid, grid)
    return {mmseg_name(name): tensor for name, tensor in weights.items()}


def mmseg_name(name: str) -> str:
    """What mmsegmentation's MAE backbone calls a parameter of timm's ViT."""
    for ours, theirs in _NAMES:
        name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        name = name.replace(ours, theirs) if ours.startswith(".") else name
    return name


def resize_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """(1, 1 + G², D) → (1, 1 + height · width, D), the class token's kept.

    Plain bicubic, as mmsegmentation resizes them: without the antialiasing of timm's.
    """
    cls, patches = positions[:, :1], positions[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if (height, width) == (side, side):
        return positions
    grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def require_taken(backbone: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise IntegrityError unless the backbone holds these weights, and beside them only new ones.

    mmengine loads what fits and says nothing of the rest.
    """
    held = backbone.state_dict()
    strangers = [n for n in held if n not in weights and not n.endswith(NEW)]
    lost = [n for n, t in weights.items() if n not in held or not torch.equal(held[n].cpu(), t)]
    if lost or strangers:
        raise IntegrityError(
            f"{len(lost)} of {len(weights)} pre-trained tensors did not reach the backbone, and "
            f"{len(strangers)} of it were given none",
            where=", ".join([*lost, *strangers][:6]),
            fix="this is a bug: please report it",
        )
