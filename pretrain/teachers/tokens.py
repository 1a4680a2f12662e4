"""Img2Vec's teacher: any frozen network, read as one feature vector per place of the image."""

from dataclasses import dataclass

import torch

from pretrain.bounds import Count
from pretrain.teachers.convnet import convnet_tokens
from pretrain.teachers.frozen import FrozenTokens, Precision
from pretrain.teachers.pixels import pixel_tokens
from pretrain.teachers.vit import vit_tokens
from zoo.errors import UsageError
from zoo.folder import holds_convnet
from zoo.hub import locate
from zoo.vit import ViTConfig

PIXELS = "pixels"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTeacher:
    """Where a teacher comes from and at which stage it is read."""

    source: str
    """A model folder, ``hf-hub:org/name[@revision]``, a timm name with weights on the Hub: a
    convnet or a ViT of timm's.  ``pixels``: no teacher, the patches' own pixels."""
    stride: Count | None = None
    """Of a convnet's stage, in pixels; null for its last.  A ViT is read after its final norm."""
    precision: Precision = "fp32"

    def load(self, student: ViTConfig, device: torch.device) -> FrozenTokens:
        """Fetch, verify and freeze.  Raises UsageError, IntegrityError, NetworkError."""
        if self.source == PIXELS:
            if self.stride not in (None, student.patch):
                raise UsageError(
                    f"pixels have no stage of stride {self.stride}",
                    where="method.teacher.stride",
                    fix="set method.teacher.stride=null",
                )
            return pixel_tokens(patch=student.patch, image_size=student.image_size)
        return open_tokens(
            self.source,
            stride=self.stride,
            image_size=student.image_size,
            precision=self.precision,
            device=device,
        )


def open_tokens(
    source: str,
    *,
    stride: int | None = None,
    image_size: int | None = None,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
) -> FrozenTokens:
    """Any model as spatial tokens.  image_size: in pixels; null for the model's own.

    Raises UsageError, IntegrityError, NetworkError.
    """
    folder, place = locate(source), torch.device(device)
    if holds_convnet(folder):
        return convnet_tokens(
            folder, stride=stride, image_size=image_size, precision=precision, device=place
        )
    teacher = vit_tokens(folder, image_size=image_size, precision=precision, device=place)
    if stride not in (None, teacher.cell):
        raise UsageError(
            f"a ViT has no stage of stride {stride}: its tokens are patches of {teacher.cell} px",
            where=f"stride, {source}",
            fix="leave it out, or choose a convnet",
        )
    return teacher
