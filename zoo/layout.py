"""timm's ``config.json``: what ours says, and what of another's is believed.

The file comes from wherever the weights come from.  Every value that reaches timm is one of the
few that a plain ViT needs, of the right type and of a size that exists.
"""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import timm
import torch
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import from_json
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from zoo.classes import NO_CLASSES, Classes, read_classes
from zoo.convnet import ConvnetConfig
from zoo.errors import IntegrityError, UsageError
from zoo.images import IMAGENET_MEAN, IMAGENET_STD, CropMode, Interpolation, Preprocess
from zoo.vit import MOST, VIT_B, VIT_H, VIT_L, VIT_S, VIT_T, ViTConfig

MAX_BYTES = 1_000_000
MOST_CLASSES = 100_000

# timm's registered name says the size; model_args state all of it, so any size goes by some name.
_ARCHITECTURES = {
    VIT_T.width: "vit_tiny_patch16_224",
    VIT_S.width: "vit_small_patch16_224",
    VIT_B.width: "vit_base_patch16_224",
    VIT_L.width: "vit_large_patch16_224",
    VIT_H.width: "vit_huge_patch14_224",
}
_ARCHITECTURE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")


def timm_config(
    config: ViTConfig | ConvnetConfig, name: str, classes: Classes = NO_CLASSES
) -> dict[str, Any]:
    """``config.json`` as timm reads and writes it, everything stated.

    classes: of a ViT that was fine-tuned.
    """
    if isinstance(config, ConvnetConfig):
        return {
            "architecture": config.architecture,
            "num_classes": 0,
            "model_args": config.arguments,
            "pretrained_cfg": {**_pretrained_cfg(config.image_size, name), "classifier": "fc"},
        }
    return {
        "architecture": _ARCHITECTURES.get(config.width, "vit_base_patch16_224"),
        "num_classes": len(classes.names),
        **classes.as_layout(),
        "num_features": config.width,
        "global_pool": "avg",
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.heads,
            # Mean of the patch tokens after the final norm: the keys stay those of a plain ViT.
            # A fine-tuned one has its norm behind the pooling.
            "global_pool": "avg",
            "fc_norm": bool(classes.names),
        },
        "pretrained_cfg": {
            **_pretrained_cfg(config.image_size, name),
            "num_classes": len(classes.names),
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _pretrained_cfg(image_size: int, name: str) -> dict[str, Any]:
    return {
        "tag": name,
        "custom_load": False,
        "input_size": [3, image_size, image_size],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "num_classes": 0,
        "pool_size": None,
    }


_Side = Annotated[int, Field(ge=1, le=MOST["image_size"])]
_Width = Annotated[int, Field(ge=1, le=MOST["width"])]
_Depth = Annotated[int, Field(ge=1, le=MOST["depth"])]


def _one_side(value: object) -> object:
    if isinstance(value, list) and len(value) == 2:  # as timm writes it
        if value[0] != value[1]:
            raise ValueError("images that are not square")
        return value[0]
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class _Arguments:
    """The ``model_args`` that may reach timm's constructor; defaults here mean "not stated"."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    img_size: Annotated[_Side | None, BeforeValidator(_one_side)] = None
    in_chans: Literal[3] = 3
    patch_size: _Side | None = None
    embed_dim: _Width | None = None
    depth: _Depth | None = None
    num_heads: _Width | None = None
    mlp_ratio: Annotated[float, Field(gt=0, le=16)] | None = None
    init_values: Annotated[float, Field(allow_inf_nan=False)] | None = None
    global_pool: Literal["", "avg", "token"] = ""
    reg_tokens: Annotated[int, Field(ge=0, le=64)] = 0
    num_classes: Annotated[int, Field(ge=0)] = 0
    qkv_bias: bool = True
    qk_norm: bool = False
    class_token: bool = True
    no_embed_class: bool = False
    pre_norm: bool = False
    fc_norm: bool | None = None
    dynamic_img_size: bool = False
    channels: Annotated[list[_Width], Field(max_length=8)] | None = None
    layers: Annotated[list[_Depth], Field(max_length=8)] | None = None


_Rgb = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]


def _of_rgb(sides: list[int]) -> list[int]:
    if sides[0] != 3:
        raise ValueError("images that are not RGB")
    return sides


_InputSize = Annotated[list[_Side], Field(min_length=3, max_length=3), AfterValidator(_of_rgb)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pretrained:
    """What is read of ``pretrained_cfg``; it holds much more."""

    __pydantic_config__ = ConfigDict(strict=True)

    mean: _Rgb | None = None
    std: _Rgb | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    crop_mode: str | None = None
    license: str | None = None
    input_size: _InputSize | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    architecture: str
    model_args: _Arguments | None = None
    pretrained_cfg: _Pretrained | None = None


def read_layout(path: Path) -> dict[str, Any]:
    """A ``config.json``, its types and bounds checked.  Raises IntegrityError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES:,} bytes")
        text = path.read_bytes()
        layout = from_json(text, allow_inf_nan=False)
        if isinstance(layout, dict) and "pretrained_cfg" not in layout:
            layout["pretrained_cfg"] = dict(layout)  # timm's first layout had it all at the root
        TypeAdapter(_Layout).validate_json(json.dumps(layout))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"no readable timm configuration: {_reason(error)}",
            where=str(path),
            fix="give a model folder: config.json and model.safetensors",
        ) from error
    return layout


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return getattr(error, "strerror", None) or str(error)


def empty_from_layout(layout: dict[str, Any], path: Path) -> VisionTransformer:
    """The network that a read ``config.json`` describes, on the meta device, without a head.

    Raises UsageError where it is not a ViT that timm can build.
    """
    name = layout["architecture"]
    arguments = {**(layout.get("model_args") or {}), "num_classes": 0}
    known = _ARCHITECTURE.fullmatch(name) and timm.is_model(name.split(".")[0])
    reason: object = "unknown"
    if known:
        try:
            vit = timm.create_model(
                name.split(".")[0], device="meta", weight_init="skip", **arguments
            )
            if type(vit) is VisionTransformer:  # a subclass has tokens or parts of its own
                return vit
            reason = type(vit).__name__
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            reason = error  # sizes that do not fit together, or a variant without these arguments
    raise UsageError(
        f"the architecture {name[:80]!r} is not a plain ViT that timm can build",
        where=f"{path}: {reason}",
        fix="use a plain ViT, such as hf-hub:timm/vit_large_patch16_224.mae",
    )


def build_as_timm(folder: Path, device: str) -> nn.Module:
    """The network of a model folder, its configuration read before, as timm builds it for itself.

    device: ``meta``, or ``cpu`` with random weights.  Raises UsageError where timm cannot build it.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return timm.create_model(f"local-dir:{folder}", pretrained=False)
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise UsageError(
            "timm cannot build this network",
            where=f"{folder / 'config.json'}: {error}".partition("\n")[0],
            fix="use a network of timm's, saved by this version of timm or an older one",
        ) from error


def is_convnet(layout: dict[str, Any]) -> bool:
    """Whether a read ``config.json`` names a network of timm's that is no ViT."""
    name = layout["architecture"].split(".")[0]
    if not timm.is_model(name) or name.startswith("vit_"):
        return False
    return not issubclass(_class_of(name), VisionTransformer)


@functools.cache
def _class_of(name: str) -> type:
    """What timm makes of a name that it knows: ``deit_…`` is a ViT too."""
    try:
        with torch.device("meta"):
            return type(timm.create_model(name, num_classes=0))
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError):
        return object  # one that cannot be built without memory is no plain ViT


def convnet_of(layout: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """timm's name and the arguments of the convnet that a read ``config.json`` describes."""
    arguments = dict(layout.get("model_args") or {})
    for head in ("num_classes", "global_pool"):  # what we leave out anyhow
        arguments.pop(head, None)
    return layout["architecture"].split(".")[0], arguments


def preprocess_of(layout: dict[str, Any], image_size: int) -> Preprocess:
    """How images become this network's input; ImageNet's statistics where nothing is stated.

    Raises UsageError for a way of resizing that is not ours.
    """
    stated = layout["pretrained_cfg"] or {}
    red, green, blue = stated.get("mean") or IMAGENET_MEAN
    red_std, green_std, blue_std = stated.get("std") or IMAGENET_STD
    return Preprocess(
        image_size=image_size,
        crop_pct=stated.get("crop_pct") or 0.875,
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        interpolation=_one_of(Interpolation, stated.get("interpolation") or "bicubic"),
        crop_mode=_one_of(CropMode, stated.get("crop_mode") or "center"),
    )


def _one_of(kind: Any, value: str) -> Any:
    if value not in get_args(kind):
        raise UsageError(
            f"images resized by {value!r} are not ours to make",
            where="config.json: pretrained_cfg",
            fix=f"choose one of: {', '.join(get_args(kind))}",
        )
    return value


def image_size_of(layout: dict[str, Any]) -> int:
    """Side of the input that a read ``config.json`` states, in pixels; ImageNet's by default."""
    return ((layout["pretrained_cfg"] or {}).get("input_size") or [3, 224, 224])[-1]


def classes_of(layout: dict[str, Any], path: Path) -> int:
    """How many classes a read ``config.json`` states, by timm's order of precedence; 0 for none.

    Raises IntegrityError.
    """
    places = (layout.get("model_args"), layout, layout["pretrained_cfg"])
    stated = [place["num_classes"] for place in places if place and "num_classes" in place]
    classes = stated[0] if stated else 0
    if type(classes) is not int or not 0 <= classes <= MOST_CLASSES:
        raise IntegrityError(
            f"not a number of classes: {str(classes)[:40]!r}",
            where=f"{path}: num_classes",
            fix=f"it must be 0 … {MOST_CLASSES:,}",
        )
    return classes


def class_names_of(layout: dict[str, Any], path: Path) -> Classes:
    """The names of a classifier's classes, where a read ``config.json`` has them; else none.

    Raises IntegrityError where they are not one to a class, or not fit for a name.
    """
    stated = {**(layout["pretrained_cfg"] or {}), **layout}  # as timm has it: the root decides
    names = stated.get("label_names") or stated.get("labels")
    described = stated.get("label_descriptions") or {}
    classes = classes_of(layout, path)
    return read_classes(names, described, classes, path) if names and classes else NO_CLASSES


def license_of(layout: dict[str, Any]) -> str:
    return (layout["pretrained_cfg"] or {}).get("license") or "not stated"
