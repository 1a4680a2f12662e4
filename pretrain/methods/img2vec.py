"""Img2Vec: predict a frozen teacher's features at the masked places of an image.

Pan, Liu, Wang, Yuan, Wang, Li, Liu: "Img2Vec: A Teacher of High Token-Diversity Helps Masked
AutoEncoders" (arXiv 2304.12535).  What the paper leaves open is decided here, and said where it is.

B images · P patches · V visible patches · K teacher cells · D encoder width · E decoder width ·
T teacher width
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pretrain.bounds import Count, NotNegative, Positive
from pretrain.masked import (
    CellMask,
    Decoder,
    patch_order,
    patches_of_cells,
    require_decoder_sizes,
)
from pretrain.objective import Batch, Export, Observation, ParamGroup
from pretrain.observe import observe_vit
from pretrain.optim import decay_matrices
from pretrain.targets import TargetNorm, TargetScale
from pretrain.teachers.frozen import FrozenTokens
from pretrain.teachers.tokens import TokenTeacher
from pretrain.views import FLIP_DRAWS, flip
from zoo.errors import UsageError
from zoo.images import normalise
from zoo.vit import LAYER_NORM_EPS, Tap, ViTConfig, build_vit, divisors, initialise, taps


@dataclass(frozen=True, kw_only=True, slots=True)
class Img2Vec:
    """Masked prediction of a teacher's features, with a global loss beside it.

    Every part of the paper is one override away from being off: ``teacher.source=pixels``,
    ``features=last``, ``global_weight=0``, ``mask_unit=16``, ``mask_ratio``, ``decoder_depth``.
    """

    name: ClassVar[str] = "img2vec"

    teacher: TokenTeacher
    decoder_width: Count
    decoder_depth: Count
    decoder_heads: Count
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of mask cells that are hidden, rounded up to a whole number of them."""
    mask_unit: Count | None = None
    """Side of a mask cell, in pixels; null for the teacher's own cell."""
    features: Literal["mean", "norm_each", "last"] = "mean"
    """What the decoder sees: the mean of all blocks' outputs (as they are, or each normalised
    without affine parameters first), or the last block's.  The final norm follows in each case."""
    grid: Literal["pool", "replicate"] = "pool"
    """Where a teacher's cell holds several patches: their decoded mean predicts the cell, or each
    of them does."""
    positions: Literal["masked", "all"] = "masked"
    """Which predictions count."""
    targets: TargetScale = "layernorm"
    patch_head: Literal["mlp", "linear"] = "mlp"
    head_hidden: Count | None = None
    """Width between the two layers of a head; null for the encoder's, at least 512."""
    beta: Positive = 2.0
    """Where smooth-L1 turns from quadratic to linear, in units of the targets."""
    global_weight: NotNegative = 0.5
    """Of the global loss; 0 leaves it and its head out."""
    global_features: Literal["fused", "last"] = "fused"
    """What the global head sees: the mean over visible patches of what the decoder sees, or of the
    last block's output."""

    def build(
        self, student: ViTConfig, *, seed: int, device: torch.device
    ) -> "MaskedFeaturePrediction":
        require_decoder_sizes(self.decoder_width, self.decoder_heads)
        teacher = self.teacher.load(student, device)
        _require_whole_patches(student, teacher.cell, self.teacher.source)
        return MaskedFeaturePrediction(student, teacher, self, seed=seed).to(device)


def _require_whole_patches(student: ViTConfig, cell: int, source: str) -> None:
    if cell % student.patch == 0:
        return
    fitting = [p for p in divisors(cell) if student.image_size % p == 0]
    nearest = min(fitting, key=lambda p: max(p / student.patch, student.patch / p))
    raise UsageError(
        f"a cell of the teacher is {cell} px and holds no whole patches of {student.patch} px: "
        "their tokens do not correspond",
        where=f"student.patch, teacher {source}",
        fix=f"set student.patch={nearest}, or choose another teacher or stage",
    )


class MaskedFeaturePrediction(nn.Module):
    """The objective: ``{"total", "patch"}``, and ``"global"`` unless its weight is zero."""

    teacher: FrozenTokens
    patches_of_mask: Tensor
    patches_of_cell: Tensor

    def __init__(
        self, student: ViTConfig, teacher: FrozenTokens, method: Img2Vec, *, seed: int
    ) -> None:
        super().__init__()
        self.config, self.method = student, method
        # Not a submodule: it is neither saved, nor trained, nor synchronised.
        self.__dict__["teacher"] = teacher
        unit = method.mask_unit or teacher.cell
        self.mask = CellMask(student=student, unit=unit, ratio=method.mask_ratio)
        self.draws = FLIP_DRAWS + self.mask.cells
        self.encoder = build_vit(student, seed=seed)
        self.decoder = Decoder(
            student,
            width=method.decoder_width,
            depth=method.decoder_depth,
            heads=method.decoder_heads,
            leave=nn.Identity(),
            seed=seed,
        )
        hidden = method.head_hidden or max(student.width, 512)
        linear = method.patch_head == "linear"
        generator = torch.Generator().manual_seed(seed + 2)  # encoder and decoder have their own
        self.patch_head = _head(
            method.decoder_width, None if linear else hidden, teacher.width, generator
        )
        self.patch_target = TargetNorm(method.targets, teacher.width)
        if method.global_weight:
            self.global_head = _head(student.width, hidden, teacher.width, generator)
            self.global_target = TargetNorm(method.targets, teacher.width)
        for name, side in (("patches_of_mask", unit), ("patches_of_cell", teacher.cell)):
            patches = patches_of_cells(student.grid, side // student.patch)
            self.register_buffer(name, patches, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images01 = flip(batch.images, batch.draws[:, 0]) / 255
        order = patch_order(batch.draws[:, FLIP_DRAWS:], self.patches_of_mask)
        features = self.teacher(images01).float()
        fused, last = self.encode(normalise(images01), order[:, : self.mask.visible_patches])
        losses = {"patch": self.patch_loss(self.decoder(fused, order), order, features)}
        losses["total"] = losses["patch"]
        if self.method.global_weight:
            seen = fused if self.method.global_features == "fused" else last
            losses["global"] = self.global_loss(seen, features)
            losses["total"] = losses["patch"] + self.method.global_weight * losses["global"]
        return losses

    def encode(self, images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """The fused feature and the last block's output, both normed, each (B, 1 + V, D).

        images: (B, 3, S, S), normalised.  visible: (B, V) patch indices.
        """
        depth = self.config.depth
        wanted = [Tap(number, "block") for number in range(1, depth + 1)]
        found = taps(self.encoder, images, wanted, visible=visible)
        outputs = [found[tap] for tap in wanted]
        last = self.encoder.norm(outputs[-1])
        if self.method.features == "last":
            return last, last
        if self.method.features == "norm_each":
            width = (self.config.width,)
            outputs = [F.layer_norm(tokens, width, eps=LAYER_NORM_EPS) for tokens in outputs]
        return self.encoder.norm(torch.stack(outputs).mean(0)), last

    def patch_loss(self, decoded: Tensor, order: Tensor, features: Tensor) -> Tensor:
        """Smooth-L1 at the masked places (or all), mean over channels; scalar, fp32.

        decoded: (B, P, E) in row order.  order: (B, P), its first V patches were visible.
        features: (B, K, T), the teacher's.
        """
        counts = torch.ones(order.shape, device=order.device)
        if self.method.positions == "masked":
            counts = counts.scatter(1, order[:, : self.mask.visible_patches], 0.0)
        target = self.patch_target(features)
        cells = self.patches_of_cell  # (K, patches a cell)
        if self.method.grid == "pool":
            # A cell that is hidden in part is predicted by its hidden patches.
            share = counts[:, cells].unsqueeze(-1)
            held = share.sum(2)
            guess = self.patch_head((decoded[:, cells] * share).sum(2) / held.clamp_min(1))
            counts = (held[..., 0] > 0).float()
        else:
            place = cells.flatten().argsort() // cells.shape[1]  # the cell of each patch
            guess, target = self.patch_head(decoded), target[:, place]
        errors = F.smooth_l1_loss(guess.float(), target, beta=self.method.beta, reduction="none")
        # Image by image: where cells are hidden in part, their number varies.
        return ((errors.mean(-1) * counts).sum(1) / counts.sum(1)).mean()

    def global_loss(self, seen: Tensor, features: Tensor) -> Tensor:
        """Smooth-L1 from the mean visible patch to the teacher's pooled embedding; scalar, fp32.

        seen: (B, 1 + V, D), class token first.  features: (B, K, T); pooled as they are, which is
        the teacher's own image embedding, and then scaled: the mean of scaled tokens would have
        less variance, and weigh less.
        """
        target = self.global_target(features.mean(1))
        guess = self.global_head(seen[:, 1:].mean(1)).float()
        return F.smooth_l1_loss(guess, target, beta=self.method.beta)

    def observe(self, images01: Tensor) -> Observation:
        last = Tap(self.config.depth, "block")
        return observe_vit(self.encoder, normalise(images01), last=last)

    def param_groups(self, weight_decay: float) -> Iterable[ParamGroup]:
        return decay_matrices(self.named_parameters(), weight_decay)

    def export(self) -> Export:
        """The encoder, an ordinary ViT: the mean of blocks served pre-training alone."""
        record = self.teacher.record
        return Export(
            weights=self.encoder.state_dict(),
            last_trained_block=self.config.depth,
            facts={"teacher": asdict(record)} if record else {},
        )


def _head(width: int, hidden: int | None, out: int, generator: torch.Generator) -> nn.Sequential:
    """Linear–ReLU–Linear, or one Linear where there is no hidden width."""
    head = (
        nn.Sequential(nn.Linear(width, out))
        if hidden is None
        else nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
    )
    initialise(head, generator)
    return head
