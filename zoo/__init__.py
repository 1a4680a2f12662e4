"""tinyzoo: small vision transformers that learn from big ones.

``zoo.load(model)`` gives a network; the command line is ``zoo --help``.
"""

from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

__all__ = ["load", "ZooError"]


def load(model: str, **kwargs: Any) -> "VisionTransformer | nn.Module":
    """The network of a model folder, ``hf-hub:org/name[@revision]`` or timm name, in eval mode.

    Keywords as in ``zoo.folder.load_model`` (image_size, blocks, device) or, for a convnet,
    ``load_convnet`` (image_size, stride, device), which give the card and the preprocessing too.
    Raises UsageError, IntegrityError, NetworkError.
    """
    # Imported here: whoever only asks for help does not wait for torch.
    from zoo.folder import holds_convnet, load_convnet, load_model
    from zoo.hub import locate

    folder = locate(model)
    if holds_convnet(folder):
        return load_convnet(folder, **kwargs).net
    return load_model(folder, **kwargs).vit
