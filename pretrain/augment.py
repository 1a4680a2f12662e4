"""How supervised training varies an image on the host: timm's transforms, on Pillow's images.

They draw from numpy's, Python's and torch's default generators, which ``pretrain/data.py`` seeds
for every sample.  What mixes images, or works on normalised ones, happens on the device.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
from PIL import Image
from pydantic import Field
from timm.data.auto_augment import RandAugment, posterize
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose

from zoo.errors import UsageError
from zoo.images import IMAGENET_MEAN

# timm passes over the parts that it cannot read.
_POLICY = re.compile(r"rand(-([mnw]\d+|mmax\d+|mstd\d+(\.\d+)?|p\d+(\.\d+)?|inc[01]))*")

Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """RandAugment and mirroring beside the crop, as MAE and DeiT fine-tune and train.

    Both also state a colour jitter; timm applies none beside RandAugment, and neither do we.
    """

    policy: str | None = "rand-m9-mstd0.5-inc1"
    """timm's name of a RandAugment: magnitude 9, its deviation 0.5.  Null for none."""
    flip: Probability = 0.5

    def transform(
        self, image_size: int, *, scale: tuple[float, float], ratio: tuple[float, float]
    ) -> "Augmented":
        """The sample transform.  image_size in pixels; scale and ratio of the crop.

        Raises UsageError for a policy that timm does not know.
        """
        if self.policy is not None and not _POLICY.fullmatch(self.policy):
            raise _unknown(self.policy)
        try:
            steps = create_transform(
                image_size,
                is_training=True,
                scale=scale,
                ratio=ratio,
                hflip=self.flip,
                color_jitter=0.0,
                auto_augment=self.policy,
                interpolation="bicubic",
                mean=IMAGENET_MEAN,  # grey to fill with
                normalize=False,
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise _unknown(str(self.policy)) from error
        assert isinstance(steps, Compose)
        for step in steps.transforms:
            for operation in step.ops if isinstance(step, RandAugment) else ():
                if operation.aug_fn is posterize:
                    operation.aug_fn = _posterize
        return Augmented(steps=steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmented:
    """A sample transform of timm's."""

    steps: Compose

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 to (3, S, S) uint8."""
        return cast(Tensor, self.steps(Image.fromarray(pixels)))


def _posterize(image: Image.Image, bits: int, **rest: Any) -> Image.Image:
    """timm asks for 0 bits at its greatest magnitude; Pillow refuses since its version 13.

    Before, it gave a black image: the published runs have met some, and so may ours.
    """
    return posterize(image, bits, **rest) if bits else Image.new(image.mode, image.size)


def _unknown(policy: str) -> UsageError:
    return UsageError(
        f"timm knows no RandAugment {policy!r}",
        where="data.augment.policy",
        fix="write it as rand-m9-mstd0.5-inc1, or null for none",
    )
