"""Files as MAE and TinyMIM write them, and what their networks compute, in plain operations."""

import argparse
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dinofiles import Evil
from torch import Tensor

from zoo.vit import ViTConfig, empty_vit, sincos_positions

Weights = dict[str, Tensor]

UNTRAINED = ("norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
"""By TinyMIM, of its last block; and the final norm."""


def encoder(config: ViTConfig) -> Weights:
    """A trained network's, for all its values tell: numpy draws them from each tensor's name.

    The same as those of which TinyMIM's own code was measured.
    """
    return {
        name: _drawn(name, tensor) for name, tensor in empty_vit(config).state_dict().items()
    } | {"pos_embed": sincos_positions(config.width, config.grid)}


def _drawn(name: str, tensor: Tensor) -> Tensor:
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
    if name.endswith(".bias") or name == "cls_token":
        values *= 0.02
    elif values.ndim == 1:
        values = 1 + 0.1 * values
    else:
        values /= math.sqrt(math.prod(values.shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def student(config: ViTConfig) -> Weights:
    """As ``encoder``, with what TinyMIM does not train left as it is initialised."""
    weights = encoder(config)
    for layer in [*(f"blocks.{config.depth - 1}.{part}" for part in UNTRAINED), "norm"]:
        weights[f"{layer}.bias"] = torch.zeros_like(weights[f"{layer}.bias"])
        if "norm" in layer:
            weights[f"{layer}.weight"] = torch.ones_like(weights[f"{layer}.weight"])
    return weights


def decoder(width: int) -> Weights:
    """A small one, by MAE's names: 5 tensors of its own, 2 blocks of 12, and 4 at its ends."""
    block = empty_vit(ViTConfig(width=8, depth=2, heads=2, patch=8, image_size=16)).state_dict()
    inner = {f"decoder_{n}": torch.rand(t.shape) for n, t in block.items() if n[:6] == "blocks"}
    ends = {f"decoder_{end}.{kind}": torch.rand(8) for end in ("norm", "pred") for kind in _KINDS}
    return (
        inner
        | ends
        | {
            "mask_token": torch.rand(1, 1, 8),
            "decoder_pos_embed": torch.rand(1, 5, 8),
            "decoder_embed.weight": torch.rand(8, width),
            "decoder_embed.bias": torch.rand(8),
        }
    )


_KINDS = ("weight", "bias")


def training(weights: Weights, /, **options: Any) -> dict[str, Any]:
    """As ``main_pretrain.py`` of both saves it."""
    group = {"params": [0], "lr": 1.5e-4, "betas": (0.9, 0.95), "weight_decay": 0.0}
    stated = {"batch_size": 128, "epochs": 300, "data_path": "/home/someone/imagenet", **options}
    return {
        "model": weights,
        "optimizer": {"state": {0: {"step": 7}}, "param_groups": [group]},
        "epoch": 299,
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "args": argparse.Namespace(**stated),
    }


def plain_tokens(weights: Weights, images: Tensor, *, heads: int, blocks: int) -> Tensor:
    """(B, N, D) after so many blocks and the final norm, as the papers' formulas say it."""

    def layer(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    kernel = weights["patch_embed.proj.weight"]
    side = kernel.shape[-1]
    patches = F.unfold(images, side, stride=side).transpose(1, 2)
    patches = patches @ kernel.flatten(1).T + weights["patch_embed.proj.bias"]
    cls = weights["cls_token"].expand(len(images), -1, -1)
    x = torch.cat([cls, patches], dim=1) + weights["pos_embed"]
    for number in range(blocks):
        at = f"blocks.{number}"
        qkv = layer(f"{at}.attn.qkv", norm(f"{at}.norm1", x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv)
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + layer(f"{at}.attn.proj", mixed.transpose(1, 2).flatten(2))
        x = x + layer(f"{at}.mlp.fc2", F.gelu(layer(f"{at}.mlp.fc1", norm(f"{at}.norm2", x))))
    return norm("norm", x)


SMALL = torch.rand(3, 3)


def _with(**changes: Any) -> Callable[[Weights], object]:
    return lambda own: {"model": {**own, **{n.replace("__", "."): t for n, t in changes.items()}}}


def _finetuned(own: Weights, **more: Tensor) -> dict[str, Any]:
    kept = {name: tensor for name, tensor in own.items() if not name.startswith("norm.")}
    head = {"fc_norm.weight": torch.ones(192), "fc_norm.bias": torch.ones(192)}
    head |= {"head.weight": torch.rand(9, 192), "head.bias": torch.rand(9)}
    return training({**kept, **head, **more}, model="vit_base_patch16")


def _star(own: Weights) -> dict[str, Any]:
    more = {"dist_token": torch.rand(1, 1, 192), "conv1x1.0.weight": torch.rand(192)}
    more |= {"conv1x1.1.weight": torch.rand(1280, 192), "pos_embed": torch.rand(1, 198, 192)}
    return _finetuned(own, **more)


# Made of TinyMIM's ViT-T, in half precision.
WRONG: dict[str, tuple[Callable[[Weights], object], str]] = {
    "a student of its own size": (
        _with(pos_embed=torch.rand(1, 197, 200)),
        "192, 384, 768; how many",
    ),
    "MAE of another size": (_with(norm__bias=torch.rand(192)), "MAE's ViTs have width 768, 1024"),
    "trained to the end": (
        lambda own: training(
            {**own, "norm.bias": SMALL[0, :1].expand(192).clone()}, model="tinymim_x"
        ),
        "trained beyond its qkv",
    ),
    "learned positions": (
        _with(pos_embed=torch.rand(1, 197, 192)),
        "not the fixed sines of TinyMIM",
    ),
    "one too many": (_with(scale=SMALL), "unexpected (1): scale"),
    "missing": (
        lambda own: {"model": {n: t for n, t in own.items() if n != "cls_token"}},
        "missing (1): cls_token",
    ),
    "another shape": (_with(cls_token=torch.rand(1, 2, 192)), "another shape (1): cls_token"),
    "flat positions": (_with(pos_embed=torch.tensor(1.0)), "not"),
    "NaN": (_with(cls_token=torch.full((1, 1, 192), torch.nan)), "1 of 150 tensors hold NaN"),
    "another container": (lambda own: {"model": own, "ema": {}}, "not a file of TinyMIM's"),
    "a text among them": (_with(norm__bias="text"), "norm.bias (str)"),
    "nothing": (lambda own: {"model": {}}, "no weights where"),
    "other names": (lambda own: {"model": {"encoder.layers": SMALL}}, "MAE's ViTs have width"),
    "flat": (lambda own: own, "fixed sines, as MAE's are"),
    "with a decoder": (_with(**decoder(192)), "MAE's ViTs have width 768"),
    "fine-tuned": (_finetuned, "a classifier, fine-tuned"),
    "fine-tuned with a class token": (_with(head__weight=torch.rand(9, 192)), "a classifier"),
    "distilled as DeiT": (_with(dist_token=torch.rand(1, 1, 192)), "a classifier"),
    "TinyMIM*-T": (_star, "TinyMIM*-T as it was fine-tuned"),
    "TinyMIM*-T, flat": (lambda own: _star(own)["model"], "TinyMIM-PT-Tstar.pth"),
    "code in the options": (lambda own: training(own, evil=Evil()), "posix.system"),
}
