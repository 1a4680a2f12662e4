"""Plain-ViT teachers: frozen, cut at the block that is read."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pretrain.bounds import Count, Rate
from pretrain.distillation import OUTPUT, QKV, Place, read
from pretrain.teachers.frozen import Frozen, FrozenTokens, Precision
from zoo.card import TeacherRecord
from zoo.errors import UsageError
from zoo.folder import Model, holds_plain_vit, load_any_vit, load_model, read_patch
from zoo.hub import locate
from zoo.images import Preprocess
from zoo.tokens import block_tokens
from zoo.vit import ViTConfig, divisors, final_norm, set_drop_path


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTTeacher:
    """Where a teacher comes from and which of its blocks is read."""

    source: str
    """A model folder, ``hf-hub:org/name[@revision]``, or a timm name with weights on the Hub."""
    block: Count | None = None
    """1-based; null for the last one."""
    relation_heads: Count | None = None
    """Null: what the teacher's card records, else its own attention heads."""
    drop_path: Rate = 0.0
    """Of every block that runs whole; the published recipes have none (Table 13)."""
    precision: Precision = "fp32"

    def load(
        self,
        student: ViTConfig,
        device: torch.device,
        *,
        reads: frozenset[Place] = QKV,
        relations: bool = True,
    ) -> "FrozenViT":
        """Fetch, verify and freeze.

        reads: the places of the block that will be asked for.  relations: whether relation heads
        have to divide both widths.  Raises UsageError, IntegrityError, NetworkError.
        """
        blocks = None if "output" in reads else self.block
        model = load_model(
            locate(self.source), image_size=student.image_size, blocks=blocks, device=device
        )
        config = model.config
        if self.block and self.block > config.depth:
            raise UsageError(
                f"the teacher has no block {self.block}: it has {config.depth}",
                where="method.teacher.block",
                fix=f"choose a block of 1 … {config.depth}",
            )
        block = config.depth if reads == OUTPUT else self.block or config.depth
        if config.patch != student.patch:
            raise UsageError(
                f"the teacher's patches are {config.patch} px, the student's {student.patch} px: "
                "their tokens do not correspond",
                where=f"student.patch, teacher {self.source}",
                fix=f"set student.patch={config.patch}, or choose another teacher",
            )
        recorded = model.card.relation_heads if model.card and block == config.depth else None
        heads = self.relation_heads or recorded or config.heads
        if relations:
            _require_divides(heads, config.width, student.width)
        _require_trained(model, block, reads)
        set_drop_path(model.vit, [self.drop_path] * len(model.vit.blocks))
        return FrozenViT(
            model.vit,
            model.preprocess,
            record=model.as_teacher(block=block, relation_heads=heads if relations else None),
            relation_heads=heads,
            reads=reads,
            precision=self.precision,
        )


def _require_trained(model: Model, block: int, reads: frozenset[Place]) -> None:
    """A TinyMIM student's last block may add nothing: then its branches were never trained."""
    fresh = model.card.fresh_parameters if model.card else []
    ends = {"attention": "attn.proj.weight", "ffn": "mlp.fc2.weight"}
    untrained = [
        name
        for name, end in ends.items()
        if name in reads
        and (block > model.last_trained_block or f"blocks.{block - 1}.{end}" in fresh)
    ]
    if untrained:
        raise UsageError(
            f"the {' and '.join(untrained)} of block {block} of this teacher was never trained: "
            "there is nothing to learn from it",
            where=f"method.targets, teacher {model.name}",
            fix=f"set method.teacher.block={max(block - 1, 1)}, or choose other targets",
        )


def _require_divides(heads: int, teacher_width: int, student_width: int) -> None:
    if teacher_width % heads or student_width % heads:
        valid = [d for d in divisors(teacher_width) if student_width % d == 0]
        raise UsageError(
            f"{heads} relation heads do not divide both widths "
            f"(teacher {teacher_width}, student {student_width})",
            where="method.teacher.relation_heads",
            fix=f"choose one of {', '.join(map(str, valid))}",
        )


class FrozenViT(Frozen):
    """A ViT that gives what it holds at some places of one block, each (B, N, D)."""

    def __init__(
        self,
        vit: VisionTransformer,
        preprocess: Preprocess,
        *,
        record: TeacherRecord,
        relation_heads: int,
        reads: frozenset[Place] = QKV,
        precision: Precision = "fp32",
    ) -> None:
        assert record.block is not None
        look = functools.partial(read, wanted=reads, block=record.block)
        super().__init__(vit, look, preprocess, precision=precision)
        self.width: int = vit.embed_dim
        self.record, self.relation_heads = record, relation_heads
        self.train()

    def train(self, mode: bool = True) -> "FrozenViT":
        """In eval mode as ever, but for stochastic depth, whose rate the recipe gives."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, DropPath):
                part.training = mode
        return self


def vit_tokens(
    folder: Path, *, image_size: int | None, precision: Precision, device: torch.device
) -> FrozenTokens:
    """A ViT's patch tokens after its final norm, read after its last trained block.

    Raises IntegrityError, UsageError.
    """
    _require_tiles(folder, read_patch(folder), image_size)
    if not holds_plain_vit(folder):
        return _any_vit_tokens(folder, image_size, precision, device)
    model = load_model(folder, image_size=image_size, device=device)
    last = model.last_trained_block

    def read(net: VisionTransformer, images: Tensor) -> Tensor:
        return block_tokens(net, images, last)[:, 1:]

    return FrozenTokens(
        model.vit,
        read,
        model.preprocess,
        record=model.as_teacher(block=last),
        cell=model.config.patch,
        width=model.config.width,
        precision=precision,
    )


def _any_vit_tokens(
    folder: Path, image_size: int | None, precision: Precision, device: torch.device
) -> FrozenTokens:
    """As timm reads it: the class token and registers, if it has any, left out."""
    model = load_any_vit(folder, image_size=image_size, device=device)

    def read(net: VisionTransformer, images: Tensor) -> Tensor:
        tokens = net.forward_features(images)[:, net.num_prefix_tokens :]
        return tokens if final_norm(net) is net.norm else net.fc_norm(tokens)

    return FrozenTokens(
        model.net,
        read,
        model.preprocess,
        record=model.as_teacher(block=len(model.net.blocks)),
        cell=model.patch,
        width=model.net.embed_dim,
        precision=precision,
    )


def _require_tiles(folder: Path, patch: int, image_size: int | None) -> None:
    if image_size is not None and image_size % patch:
        below = max(1, image_size // patch) * patch
        raise UsageError(
            f"the teacher's patches of {patch} px do not tile an image of {image_size} px",
            where=f"image size, teacher {folder.name}",
            fix=f"choose an image size such as {below} or {below + patch}, or another teacher",
        )
