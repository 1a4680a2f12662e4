"""TinyMIM: a student learns the token relations of a teacher's block.

Ren, Wei, Zhang, Hu: "TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models",
CVPR 2023 (arXiv 2301.01296), §3.

B images · N tokens, class token included · D width · R relation heads
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.bounds import NotNegative, Rate
from pretrain.objective import Batch, Export, ParamGroup
from pretrain.optim import decay_matrices
from pretrain.teachers.vit import FrozenViT, ViTTeacher
from pretrain.views import TWO_VIEW_DRAWS, two_views
from zoo.images import normalise
from zoo.vit import Tap, ViTConfig, build_vit, set_drop_path, taps


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyMIM:
    """Relation distillation: QK and VV of one teacher block to the student's last block."""

    name: ClassVar[str] = "tinymim"

    teacher: ViTTeacher
    drop_path: Rate = 0.1
    """The same rate in every student block but the last (not scaled over depth)."""
    jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.4, 0.4, 0.4)
    """Brightness, contrast and saturation of the student's view; the teacher's is clean."""

    def build(
        self, student: ViTConfig, *, seed: int, device: torch.device
    ) -> "RelationDistillation":
        teacher = self.teacher.load(student, device)
        return RelationDistillation(student, teacher, self, seed=seed).to(device)


class RelationDistillation(nn.Module):
    """The objective: ``{"total", "qk", "vv"}``."""

    draws = TWO_VIEW_DRAWS
    teacher: FrozenViT

    def __init__(
        self, student: ViTConfig, teacher: FrozenViT, method: TinyMIM, *, seed: int
    ) -> None:
        super().__init__()
        self.config, self.jitter = student, method.jitter
        # Not a submodule: it is neither saved, nor trained, nor synchronised.
        self.__dict__["teacher"] = teacher
        self.student = build_vit(student, seed=seed)
        set_drop_path(self.student, [method.drop_path] * (student.depth - 1) + [0.0])
        self.fresh = never_trained(student.depth)
        for name in self.fresh:
            self.student.get_parameter(name).requires_grad_(False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        student_view, teacher_view = two_views(batch.images, batch.draws, self.jitter)
        q_t, k_t, v_t = self.teacher(teacher_view)
        q_s, k_s, v_s = self.read_student(normalise(student_view))
        heads = self.teacher.relation_heads
        qk = relation_loss((q_t, k_t), (q_s, k_s), heads)
        vv = relation_loss((v_t, v_t), (v_s, v_s), heads)
        return {"total": qk + vv, "qk": qk, "vv": vv}

    def read_student(self, images: Tensor) -> list[Tensor]:
        """Q, K and V of the student's last block, each (B, N, D)."""
        wanted = [Tap(self.config.depth, kind) for kind in ("q", "k", "v")]
        found = taps(self.student, images, wanted)
        return [found[tap] for tap in wanted]

    def param_groups(self, weight_decay: float) -> Iterable[ParamGroup]:
        return decay_matrices(self.named_parameters(), weight_decay)

    def export(self) -> Export:
        """The student with its last block made an identity: only that block's qkv was trained.

        Zero output projections add nothing to the residual stream, where random ones would spoil
        the features.
        """
        depth = self.config.depth
        weights = dict(self.student.state_dict())
        for name in _zeroed_in_export(depth):
            weights[name] = torch.zeros_like(weights[name])
        return Export(
            weights=weights,
            last_trained_block=depth - 1,
            fresh=self.fresh,
            facts={
                "teacher": asdict(self.teacher.record),
                "relation_heads": self.teacher.relation_heads,
            },
        )


def never_trained(depth: int) -> tuple[str, ...]:
    """What lies behind the last block's qkv: no gradient ever reaches it."""
    block = f"blocks.{depth - 1}"
    layers = [f"{block}.{part}" for part in ("attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
    return tuple(f"{layer}.{kind}" for layer in [*layers, "norm"] for kind in ("weight", "bias"))


def _zeroed_in_export(depth: int) -> tuple[str, ...]:
    return tuple(n for n in never_trained(depth) if ".attn.proj." in n or ".mlp.fc2." in n)


def relation_logits(pair: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """A Bᵀ / sqrt(D / R) for each relation head: (B, R, N, N) from two (B, N, D)."""
    a, b = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in pair)
    # Scaled before the product, which half precision could overflow.
    return (a * a.shape[-1] ** -0.5) @ b.transpose(-2, -1)


def relation_loss(
    teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor], heads: int
) -> Tensor:
    """KL(teacher ‖ student) of the relations, softmax over keys (Eq. 4 and 5).

    Summed over keys, averaged over batch × heads × queries; scalar, at least fp32.  log_softmax
    throughout: the log of a softmax is infinite where a probability underflows.
    """
    target, guess = (
        F.log_softmax(_at_least_fp32(relation_logits(pair, heads)), dim=-1)
        for pair in (teacher, student)
    )
    return F.kl_div(guess, target, reduction="none", log_target=True).sum(-1).mean()


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
