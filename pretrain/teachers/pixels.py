"""No teacher: the pixels of each patch are its target, as in MAE.

What Img2Vec's ablation of the teacher compares with.
"""

from torch import Tensor, nn

from pretrain.masked import patchify
from pretrain.teachers.frozen import FrozenTokens
from zoo.images import Preprocess


def pixel_tokens(*, patch: int, image_size: int) -> FrozenTokens:
    """Tokens of 3·patch² channels, the normalised pixels of each patch."""

    def read(_: nn.Module, images: Tensor) -> Tensor:
        return patchify(images, patch)

    return FrozenTokens(
        nn.Identity(),
        read,
        Preprocess(image_size=image_size),
        record=None,
        cell=patch,
        width=3 * patch**2,
    )
