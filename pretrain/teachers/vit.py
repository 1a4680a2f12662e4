"""Plain-ViT teachers: frozen, cut at the block that is read."""

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretrain.optim import Count
from zoo.card import TeacherRecord
from zoo.errors import UsageError
from zoo.folder import load_model
from zoo.hub import locate
from zoo.images import Preprocess, normalise
from zoo.vit import Tap, ViTConfig, divisors, taps


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTTeacher:
    """Where a teacher comes from and which of its blocks is read."""

    source: str
    """A model folder, ``hf-hub:org/name[@revision]``, or a timm name with weights on the Hub."""
    block: Count | None = None
    """1-based; null for the last one."""
    relation_heads: Count | None = None
    """Null: what the teacher's card records, else its own attention heads."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 holds the weights themselves in bf16: half the memory, no autocast."""

    def load(self, student: ViTConfig, device: torch.device) -> "FrozenViT":
        """Fetch, verify and freeze.  Raises UsageError, IntegrityError, NetworkError."""
        model = load_model(
            locate(self.source), image_size=student.image_size, blocks=self.block, device=device
        )
        config = model.config
        block = self.block or config.depth
        if block > config.depth:
            raise UsageError(
                f"the teacher has no block {block}: it has {config.depth}",
                where="method.teacher.block",
                fix=f"choose a block of 1 … {config.depth}",
            )
        if config.patch != student.patch:
            raise UsageError(
                f"the teacher's patches are {config.patch} px, the student's {student.patch} px: "
                "their tokens do not correspond",
                where=f"student.patch, teacher {self.source}",
                fix=f"set student.patch={config.patch}, or choose another teacher",
            )
        recorded = model.card.relation_heads if model.card and block == config.depth else None
        heads = self.relation_heads or recorded or config.heads
        _require_divides(heads, config.width, student.width)
        record = TeacherRecord(
            name=model.name,
            digest=model.digest,
            block=block,
            license=model.license,
            relation_heads=heads,
        )
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return FrozenViT(model.vit.to(dtype), model.preprocess, record=record, relation_heads=heads)


def _require_divides(heads: int, teacher_width: int, student_width: int) -> None:
    if teacher_width % heads or student_width % heads:
        valid = [d for d in divisors(teacher_width) if student_width % d == 0]
        raise UsageError(
            f"{heads} relation heads do not divide both widths "
            f"(teacher {teacher_width}, student {student_width})",
            where="method.teacher.relation_heads",
            fix=f"choose one of {', '.join(map(str, valid))}",
        )


class FrozenViT(nn.Module):
    """A ViT in eval mode, whatever ``train()`` is called, that never takes a gradient."""

    def __init__(
        self,
        vit: VisionTransformer,
        preprocess: Preprocess,
        *,
        record: TeacherRecord,
        relation_heads: int,
    ) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.preprocess, self.record, self.relation_heads = preprocess, record, relation_heads
        self.dtype = next(vit.parameters()).dtype

    def train(self, mode: bool = True) -> "FrozenViT":
        return super().train(False)

    @torch.no_grad()  # not inference_mode: the student's loss saves these tensors for backward
    def forward(self, images01: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V of the read block, each (B, N, D), for images (B, 3, S, S) in [0, 1]."""
        images = normalise(images01, self.preprocess.mean, self.preprocess.std).to(self.dtype)
        wanted = [Tap(self.record.block, kind) for kind in ("q", "k", "v")]
        # Weights held in bf16 need no autocast, which would only add casts.
        as_is = contextlib.nullcontext()
        pure = self.dtype == torch.bfloat16
        with torch.autocast(images.device.type, enabled=False) if pure else as_is:
            found = taps(self.vit, images, wanted)
        q, k, v = (found[tap] for tap in wanted)
        return q, k, v
