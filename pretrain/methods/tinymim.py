"""TinyMIM: a student learns of one block of a masked autoencoder, by default its token relations.

Ren, Wei, Zhang, Hu: "TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models",
CVPR 2023 (arXiv 2301.01296), §3.  What can be learned instead: ``pretrain/distillation.py``; what
each choice is worth in the paper: ``configs/ablations.py``.

B images · N tokens, class token included · V visible patches · D width
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pretrain.bounds import Count, NotNegative, Rate
from pretrain.distillation import (
    OUTPUT,
    QKV,
    RELATIONS,
    Place,
    Reading,
    TargetName,
    make_target,
    places,
    read,
)
from pretrain.masked import (
    Decoder,
    mask_order,
    masked_loss,
    pixel_decoder,
    pixel_targets,
    require_decoder_sizes,
    visible_patches,
)
from pretrain.objective import Batch, Export, Observation, ParamGroup
from pretrain.observe import observe_vit
from pretrain.optim import decay_matrices
from pretrain.teachers.vit import FrozenViT, ViTTeacher
from pretrain.views import TWO_VIEW_DRAWS, two_views
from zoo.errors import UsageError
from zoo.images import normalise
from zoo.vit import Tap, ViTConfig, build_vit, set_drop_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """MAE's loss beside the distillation: the masked patches' pixels of the student's view."""

    weight: NotNegative = 0.0
    """0: no decoder."""
    decoder_width: Count = 512
    decoder_depth: Count = 8
    decoder_heads: Count = 16
    normalise_pixels: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyMIM:
    """Distillation of one teacher block to the student's last block."""

    name: ClassVar[str] = "tinymim"

    teacher: ViTTeacher
    targets: tuple[TargetName, ...] = ("qk", "vv")
    """The total is the sum of their losses."""
    softmax: bool = True
    """Over the keys of relations; without it they are compared as they are."""
    mask_ratio: Rate = 0.0
    """Share of the patches that neither network sees; 0 is the raw image."""
    full_teacher: bool = False
    """With a mask: the teacher sees all patches, and of its tokens those count that the student
    sees.  Of a relation these are rows and columns."""
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    drop_path: Rate = 0.1
    """The same rate in every student block but the last (not scaled over depth)."""
    jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.4, 0.4, 0.4)
    """Brightness, contrast and saturation of the student's view; the teacher's is clean."""

    def build(self, student: ViTConfig, *, seed: int, device: torch.device) -> "Distillation":
        """Raises UsageError, IntegrityError, NetworkError."""
        self._require_sense(student)
        relations = any(name in RELATIONS for name in self.targets)
        teacher = self.teacher.load(student, device, reads=self.reads, relations=relations)
        return Distillation(student, teacher, self, seed=seed).to(device)

    @property
    def reads(self) -> frozenset[Place]:
        """Where the targets read a block."""
        return frozenset[Place]().union(*map(places, self.targets))

    def _require_sense(self, student: ViTConfig) -> None:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UsageError(
                "a target is named twice" if self.targets else "there is nothing to learn",
                where=f"method.targets: {', '.join(self.targets) or 'empty'}",
                fix="name each target once, for example method.targets=[qk,vv]",
            )
        if not self.softmax and not {*self.targets} & RELATIONS.keys():
            raise UsageError(
                "a softmax is over the keys of relations, and there is no relation to learn",
                where=f"method.softmax, method.targets: {', '.join(self.targets)}",
                fix="leave method.softmax out, or name a relation such as qk",
            )
        if self.mask_ratio and visible_patches(student, self.mask_ratio) < 1:
            raise UsageError(
                f"a mask ratio of {self.mask_ratio} leaves no visible patch of {student.patches}",
                where="method.mask_ratio",
                fix="choose a lower one",
            )
        for needs_mask, key in (
            (self.full_teacher, "method.full_teacher"),
            (self.reconstruction.weight > 0, "method.reconstruction.weight"),
        ):
            if needs_mask and not self.mask_ratio:
                raise UsageError(
                    "without a mask there is nothing that only the teacher could see, or that "
                    "could be reconstructed",
                    where=key,
                    fix="set method.mask_ratio=0.75, or leave it out",
                )
        if self.reconstruction.weight:
            sizes = self.reconstruction
            require_decoder_sizes(
                sizes.decoder_width, sizes.decoder_heads, owner="method.reconstruction"
            )


class Distillation(nn.Module):
    """The objective: ``total`` and each target's loss by its name."""

    teacher: FrozenViT

    def __init__(
        self, student: ViTConfig, teacher: FrozenViT, method: TinyMIM, *, seed: int
    ) -> None:
        super().__init__()
        self.config, self.method = student, method
        self.draws = TWO_VIEW_DRAWS + (student.patches if method.mask_ratio else 0)
        # Not a submodule: it is neither saved, nor trained, nor synchronised.
        self.__dict__["teacher"] = teacher
        self.student = build_vit(student, seed=seed)
        set_drop_path(self.student, [method.drop_path] * (student.depth - 1) + [0.0])
        generator = torch.Generator().manual_seed(seed + 2)  # the decoder has seed + 1
        self.targets = nn.ModuleDict(
            {
                name: make_target(
                    name,
                    width=student.width,
                    teacher_width=teacher.width,
                    relation_heads=teacher.relation_heads,
                    softmax=method.softmax,
                    generator=generator,
                )
                for name in method.targets
            }
        )
        self.decoder = _decoder(student, method.reconstruction, seed=seed)
        self._reads = method.reads if self.decoder is None else method.reads | OUTPUT
        self.fresh = never_trained(student.depth, method.reads) if self.decoder is None else ()
        for name in self.fresh:
            self.student.get_parameter(name).requires_grad_(False)

    def train(self, mode: bool = True) -> "Distillation":
        """The teacher's stochastic depth rests where the student's does."""
        self.teacher.train(mode)
        return super().train(mode)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        student_view, teacher_view = two_views(batch.images, batch.draws, self.method.jitter)
        images = normalise(student_view)
        order = self._mask(batch.draws)
        visible = None if order is None else order[:, : self.visible_patches]
        theirs = self.read_teacher(teacher_view, visible)
        ours = self.read_student(images, visible)
        losses = {name: target(theirs, ours) for name, target in self.targets.items()}
        total = torch.stack(list(losses.values())).sum()
        if self.decoder is not None and order is not None:
            losses["reconstruction"] = self._reconstruct(images, ours["output"], order)
            total = total + self.method.reconstruction.weight * losses["reconstruction"]
        return {"total": total, **losses}

    def _mask(self, draws: Tensor) -> Tensor | None:
        """(B, P): the patches in random order, the visible ones first; None where all are."""
        if not self.method.mask_ratio:
            return None
        return mask_order(draws[:, TWO_VIEW_DRAWS:])

    @property
    def visible_patches(self) -> int:
        return visible_patches(self.config, self.method.mask_ratio)

    def read_teacher(self, images01: Tensor, visible: Tensor | None = None) -> Reading:
        """What the teacher holds, for images in [0, 1]: of the class token and the visible patches.

        visible: (B, V) patches; None for all.
        """
        if visible is None or not self.method.full_teacher:
            return self.teacher(images01, visible=visible)
        full: Reading = self.teacher(images01)
        rows = torch.cat([torch.zeros_like(visible[:, :1]), visible + 1], dim=1).unsqueeze(-1)
        return {k: t.gather(1, rows.expand(-1, -1, t.shape[-1])) for k, t in full.items()}

    def read_student(self, images: Tensor, visible: Tensor | None = None) -> Reading:
        """What the student's last block holds, for normalised images."""
        return read(self.student, images, self._reads, block=self.config.depth, visible=visible)

    def _reconstruct(self, images: Tensor, tokens: Tensor, order: Tensor) -> Tensor:
        assert self.decoder is not None
        target = pixel_targets(
            images, self.config.patch, self.method.reconstruction.normalise_pixels
        )
        guess = self.decoder(self.student.norm(tokens), order)
        return masked_loss(guess, target, order[:, self.visible_patches :])

    def observe(self, images01: Tensor) -> Observation:
        """The targets' losses on whole images of which both networks have the same view."""
        images = normalise(images01)
        theirs, ours = self.read_teacher(images01), self.read_student(images)
        errors = {name: target(theirs, ours) for name, target in self.targets.items()}
        return observe_vit(self.student, images, last=self._last_trained(), errors=errors)

    def _last_trained(self) -> Tap:
        """Where the features of the exported network are in the one that trains."""
        depth = self.config.depth
        if f"blocks.{depth - 1}.attn.proj.weight" in self.fresh:
            return Tap(max(depth - 1, 1), "block")
        behind = f"blocks.{depth - 1}.mlp.fc2.weight" in self.fresh
        return Tap(depth, "attention_residual" if behind else "block")

    def param_groups(self, weight_decay: float) -> Iterable[ParamGroup]:
        return decay_matrices(self.named_parameters(), weight_decay)

    def export(self) -> Export:
        """The student; a branch of its last block that was never trained adds nothing.

        Zero output projections leave the residual stream as it is, where random ones would spoil
        the features: after relations alone the whole block is an identity.
        """
        depth = self.config.depth
        weights = dict(self.student.state_dict())
        for name in self.fresh:
            if ".attn.proj." in name or ".mlp.fc2." in name:
                weights[name] = torch.zeros_like(weights[name])
        whole = f"blocks.{depth - 1}.attn.proj.weight" not in self.fresh
        facts: dict[str, Any] = {"teacher": asdict(self.teacher.record)}
        if self.teacher.record.relation_heads:
            facts["relation_heads"] = self.teacher.record.relation_heads
        return Export(
            weights=weights,
            last_trained_block=depth if whole else depth - 1,
            fresh=self.fresh,
            facts=facts,
        )


def never_trained(depth: int, reads: frozenset[Place] = QKV) -> tuple[str, ...]:
    """What no gradient reaches: the final norm, of the last block what lies behind ``reads``."""
    parts = []
    if reads <= QKV:
        parts += ["attn.proj"]
    if reads <= QKV | {"attention", "attention_residual"}:
        parts += ["norm2", "mlp.fc1", "mlp.fc2"]
    layers = [*(f"blocks.{depth - 1}.{part}" for part in parts), "norm"]
    return tuple(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))


def _decoder(student: ViTConfig, method: Reconstruction, *, seed: int) -> Decoder | None:
    if not method.weight:
        return None
    return pixel_decoder(
        student,
        width=method.decoder_width,
        depth=method.decoder_depth,
        heads=method.decoder_heads,
        seed=seed,
    )
