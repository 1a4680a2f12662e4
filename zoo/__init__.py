"""tinyzoo: small vision transformers that learn from big ones.

``zoo.load(model)`` gives a network, ``zoo.transform(model)`` makes its inputs of images, and
``zoo.features(model, images)`` does both and reads it.  The command line is ``zoo --help``.

A model is a model folder, ``hf-hub:org/name[@revision]``, ``org/name[@revision]`` or a name that
timm has weights for on the Hub.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError

if TYPE_CHECKING:
    import torch
    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor, nn

    from zoo.folder import Convnet, Model
    from zoo.tokens import Picture, Pooling, Transform

__all__ = ["load", "transform", "features", "ZooError"]

# Everything is imported inside: whoever only asks for help does not wait for torch.


def load(model: str | Path, **kwargs: Any) -> "VisionTransformer | nn.Module":
    """The network of a model, on the CPU and in eval mode, its files verified.

    Keywords as in ``zoo.folder.load_model`` (image_size, blocks, device) or, for a convnet,
    ``load_convnet`` (image_size, stride, device), which give the card and the preprocessing too.
    Raises UsageError, IntegrityError, NetworkError, DiskError.
    """
    from zoo.folder import holds_convnet, load_convnet, load_model
    from zoo.hub import locate

    folder = locate(str(model))
    if holds_convnet(folder):
        return load_convnet(folder, **kwargs).net
    return load_model(folder, **kwargs).vit


def transform(model: str | Path) -> "Transform":
    """From an image to an input of the network: the card's evaluation preprocessing.

    What is returned takes a path, an image of Pillow's or an array (H, W, 3) of uint8 in RGB, and
    gives (3, S, S) float32, normalised, S the side of the network's input in pixels.  EXIF
    orientation is ignored and alpha dropped, as in evaluation.  Raises UsageError, IntegrityError,
    NetworkError, DiskError; what is returned raises DataError for an image that cannot be read,
    and UsageError for anything else.
    """
    from zoo.tokens import transform_of

    return transform_of(model)


def features(
    model: "str | Path | Model | Convnet",
    images: "Tensor | Sequence[Picture]",
    *,
    pooling: "Pooling" = "mean",
    batch: int = 64,
    device: "torch.device | str" = "cpu",
) -> "Tensor":
    """Features of images, read after the last block that was trained and the final norm.

    A fine-tuned classifier that pools its tokens before their norm has no final norm: its norm is
    part of the head, and the tokens are those that leave the last block.

    model: a name, or what ``zoo.folder.load_model`` or ``load_convnet`` gave: for more calls than
    one.  images: a list of what ``zoo.transform`` takes, which is applied to each; or a normalised
    batch (B, 3, S, S) of floats.  pooling: ``mean`` of the patch tokens or ``cls``, the class
    token, both (B, D); ``tokens``, all of them, (B, 1 + P, D), class token first.  A convnet gives
    the mean of its last trained stage's cells, (B, C), or the cells, (B, K, C), row by row; it has
    no class token.  batch: images that go through the network at once.  device: where a named
    network is put; one that is loaded already stays where it is.

    Returns float32 on the network's device, without a gradient.  Raises UsageError, DataError (an
    image that cannot be read), IntegrityError, NetworkError, DiskError.
    """
    from zoo.tokens import features_of

    return features_of(model, images, pooling=pooling, batch=batch, device=device)
