"""What a model is used for: its tokens, read after the last place that was trained.

B images · N tokens · K spatial tokens · D width or channels · S image side in pixels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zoo.convnet import Stage, read_stage
from zoo.errors import UsageError
from zoo.folder import Convnet, Model, holds_convnet, load_convnet, load_model, read_preprocess
from zoo.hub import locate
from zoo.images import Preprocess, pixels_of, read_image, require_sane_size
from zoo.vit import Tap, final_norm, taps

Pooling = Literal["mean", "cls", "tokens"]
Picture = str | Path | Image.Image | np.ndarray
"""A file, or its pixels: an image of Pillow's, or (H, W, 3) uint8 RGB."""


def block_tokens(vit: VisionTransformer, images: Tensor, block: int) -> Tensor:
    """(B, 1 + K, D) after a block (1-based) and the final norm, class token first.

    A network that was fine-tuned with its norm behind the pooling has none: ``Model.vit``.
    images: (B, 3, S, S), normalised.  No block beyond this one runs.
    """
    last = Tap(block, "block")
    return final_norm(vit)(taps(vit, images, [last])[last])


def stage_tokens(net: nn.Module, images: Tensor, stage: Stage) -> Tensor:
    """(B, K, D): the cells of a convnet's stage, row by row.  images: (B, 3, S, S), normalised."""
    images = images.contiguous(memory_format=torch.channels_last)
    return read_stage(net, images, stage).flatten(2).transpose(1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """One image to one input of a network, by its card's evaluation preprocessing."""

    preprocess: Preprocess

    def __call__(self, image: Picture) -> Tensor:
        """(3, S, S) float32, normalised.

        Raises DataError for a file, or an image, that is none or of no sane size; UsageError for
        an array that is not (H, W, 3) uint8.
        """
        crop = self.preprocess.eval_crop(_pixels(image))
        return self.preprocess.normalise(crop.unsqueeze(0))[0]


def transform_of(source: str | Path) -> Transform:
    """The transform of a model, without its weights.  Raises as ``zoo.hub.locate`` does."""
    return Transform(preprocess=read_preprocess(locate(str(source))))


def features_of(
    source: str | Path | Model | Convnet,
    images: Tensor | Sequence[Picture],
    *,
    pooling: Pooling = "mean",
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """As ``zoo.features``, which see."""
    if pooling not in get_args(Pooling):
        known = ", ".join(get_args(Pooling))
        raise UsageError(
            f"no pooling {str(pooling)[:80]!r}", where="pooling", fix=f"choose {known}"
        )
    if batch < 1:
        raise UsageError(f"a batch of {batch} images", where="batch", fix="choose 1 or more")
    if isinstance(source, nn.Module):
        raise UsageError(
            "a network alone does not say which block was trained last, nor how images come in",
            where=f"features of a {type(source).__name__}",
            fix="give the model's name, or what zoo.folder.load_model gave",
        )
    model = source if isinstance(source, Model | Convnet) else _load(source, device)
    _require_whole(model, pooling)
    _require_images(model, images)
    transform = Transform(preprocess=model.preprocess)
    parts = []
    with torch.no_grad():  # not inference_mode: a head may be trained on what comes out
        for start in range(0, len(images), batch):
            some = images[start : start + batch]
            inputs = some if isinstance(some, Tensor) else torch.stack([transform(i) for i in some])
            parts.append(_read(model, inputs, pooling))
    return torch.cat(parts)


def _load(source: str | Path, device: torch.device | str) -> Model | Convnet:
    folder = locate(str(source))
    if not holds_convnet(folder):
        return load_model(folder, device=device)
    return load_convnet(folder, device=device)


def _read(model: Model | Convnet, inputs: Tensor, pooling: Pooling) -> Tensor:
    if isinstance(model, Convnet):
        at = next(model.net.parameters())
        tokens = stage_tokens(model.net, inputs.to(at), model.stage)
    else:
        at = next(model.vit.parameters())
        tokens = block_tokens(model.vit, inputs.to(at), model.last_trained_block)
        if pooling == "cls":
            return tokens[:, 0]
        if pooling == "mean":
            tokens = tokens[:, 1:]
    return tokens.mean(1) if pooling == "mean" else tokens


def _require_whole(model: Model | Convnet, pooling: Pooling) -> None:
    if isinstance(model, Convnet):
        if pooling == "cls":
            raise UsageError(
                "a convnet has no class token", where=model.name, fix="choose mean or tokens"
            )
    elif len(model.vit.blocks) < model.last_trained_block:
        raise UsageError(
            f"loaded up to block {len(model.vit.blocks)}, without a final norm; "
            f"features are read after block {model.last_trained_block}",
            where=model.name,
            fix="load it without blocks=",
        )


def _require_images(model: Model | Convnet, images: Tensor | Sequence[Picture]) -> None:
    if not isinstance(images, Tensor):
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            raise UsageError(
                f"one {type(images).__name__}, where a list of images is due",
                where="images",
                fix="give [image], or a batch (B, 3, S, S) made with zoo.transform",
            )
        if not len(images):
            raise UsageError("no images", where="images", fix="give one at least")
        return
    side = model.preprocess.image_size
    fits = images.ndim == 4 and len(images) and images.shape[1] == 3
    if fits and isinstance(model, Convnet):  # at any size that its cells tile
        fits = images.shape[2] == images.shape[3] and images.shape[3] % model.stage.stride == 0
    elif fits:
        fits = images.shape[2:] == (side, side)
    if not fits or not images.is_floating_point():
        raise UsageError(
            f"a {str(images.dtype).removeprefix('torch.')} tensor {tuple(images.shape)} "
            "is not a batch of this network's inputs",
            where=f"images, model {model.name}",
            fix=f"give normalised floats (B, 3, {side}, {side}), as zoo.transform makes them",
        )


def _pixels(image: Picture) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return pixels_of(image, "images")
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3):
        shape = f" {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else ""
        raise _no_picture(f"{type(image).__name__}{shape}")
    if image.shape[2] != 3 or 0 in image.shape:
        raise _no_picture(f"array {image.shape}")
    require_sane_size(image.shape[1], image.shape[0], "images")
    return np.require(image, requirements=["C", "W"])


def _no_picture(what: str) -> UsageError:
    return UsageError(
        f"no image: {what}",
        where="images",
        fix="give a path, an image of Pillow's, or an array (H, W, 3) of uint8, RGB",
    )
