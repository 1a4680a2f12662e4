"""What a TinyMIM student may learn of its teacher: relations, the class token, features.

Ren, Wei, Zhang, Hu: "TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models",
CVPR 2023 (arXiv 2301.01296), §3.2.

Every target has the same face: a call that makes one loss of what teacher and student hold at its
``places``.

B images · N tokens, class token first · D a network's width · T the teacher's · R relation heads
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zoo.vit import Kind, Tap, initialise, taps

Relation = Literal["qk", "vv", "qq", "kk"]
Feature = Literal["q", "k", "v", "attention", "attention_residual", "ffn", "block", "output"]
TargetName = Relation | Feature | Literal["class_token"]
"""``qk`` … ``kk``: relations of tokens (Eq. 1-5).  ``class_token``: Eq. 6.  The others are features
(Eq. 7-8), named by their place in the block; ``block`` is the FFN feature after the residual, and
``output`` is what leaves the teacher's last block, whichever block is read otherwise."""
Place = Kind | Literal["output"]
Reading = Mapping[str, Tensor]
"""What a network holds at each ``Place``, (B, N, D)."""

RELATIONS: dict[str, tuple[Literal["q", "k", "v"], Literal["q", "k", "v"]]] = {
    "qk": ("q", "k"),
    "vv": ("v", "v"),
    "qq": ("q", "q"),
    "kk": ("k", "k"),
}
QKV: frozenset[Place] = frozenset({"q", "k", "v"})
OUTPUT: frozenset[Place] = frozenset({"output"})
_BETA = 2.0  # of the smooth L1 loss (Eq. 8)


def places(target: TargetName) -> frozenset[Place]:
    """Where a target reads both networks."""
    if target in RELATIONS:
        return frozenset(RELATIONS[target])
    return frozenset({_place(target)})


def _place(target: TargetName) -> Place:
    return "block" if target == "class_token" else target  # type: ignore[return-value]


def read(
    vit: VisionTransformer,
    images: Tensor,
    wanted: Iterable[Place],
    *,
    block: int,
    visible: Tensor | None = None,
) -> Reading:
    """What a network holds at the places of one block, each (B, N, D), and nothing beyond them run.

    images: normalised.  visible: (B, V) patches; None for all.
    """
    last = Tap(len(vit.blocks), "block")
    where = {place: last if place == "output" else Tap(block, place) for place in wanted}
    found = taps(vit, images, where.values(), visible=visible)
    return {place: found[tap] for place, tap in where.items()}


class RelationTarget(nn.Module):
    """How each token of one kind relates to those of another, per relation head.

    With softmax over keys the loss is KL(teacher ‖ student).  Without, the paper states none: ours
    is smooth L1 between the scaled products, as for features.
    """

    def __init__(self, name: str, *, heads: int, softmax: bool) -> None:
        super().__init__()
        self.pair: tuple[Place, Place] = RELATIONS[name]
        self.heads, self.softmax = heads, softmax

    def forward(self, teacher: Reading, student: Reading) -> Tensor:
        a, b = self.pair
        theirs, ours = (teacher[a], teacher[b]), (student[a], student[b])
        if self.softmax:
            return relation_loss(theirs, ours, self.heads)
        target, guess = (relation_logits(pair, self.heads) for pair in (theirs, ours))
        return _smooth_l1(guess, target)


class ClassTokenTarget(nn.Module):
    """KL(teacher ‖ student) of the class tokens (Eq. 6), read where the block is left.

    How a token becomes a distribution the paper does not say.  Ours: the teacher's is whitened by a
    LayerNorm without affine, the student's brought to the teacher's width by a linear layer, and
    each goes through a softmax over the T channels.
    """

    def __init__(self, width: int, teacher_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.project = _projection(width, teacher_width, generator)

    def forward(self, teacher: Reading, student: Reading) -> Tensor:
        target = F.log_softmax(_whiten(teacher["block"][:, 0]), dim=-1)
        guess = F.log_softmax(_at_least_fp32(self.project(student["block"][:, 0])), dim=-1)
        return F.kl_div(guess, target, reduction="batchmean", log_target=True)


class FeatureTarget(nn.Module):
    """Smooth L1 (β = 2) between token features, averaged over all tokens and channels (Eq. 7-8).

    The teacher's are whitened by a LayerNorm without affine; the student's go through a linear
    layer to the teacher's width.
    """

    def __init__(
        self, place: Place, width: int, teacher_width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.place = place
        self.project = _projection(width, teacher_width, generator)

    def forward(self, teacher: Reading, student: Reading) -> Tensor:
        return _smooth_l1(self.project(student[self.place]), _whiten(teacher[self.place]))


def make_target(
    name: TargetName,
    *,
    width: int,
    teacher_width: int,
    relation_heads: int,
    softmax: bool,
    generator: torch.Generator,
) -> nn.Module:
    """The target of this name.  generator: initialises its linear layer, if it has one."""
    if name in RELATIONS:
        return RelationTarget(name, heads=relation_heads, softmax=softmax)
    if name == "class_token":
        return ClassTokenTarget(width, teacher_width, generator)
    return FeatureTarget(_place(name), width, teacher_width, generator)


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


def _projection(width: int, teacher_width: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(width, teacher_width)
    initialise(linear, generator)
    return linear


def _whiten(tokens: Tensor) -> Tensor:
    tokens = _at_least_fp32(tokens)
    return F.layer_norm(tokens, tokens.shape[-1:])


def _smooth_l1(guess: Tensor, target: Tensor) -> Tensor:
    """0.5 d² / β up to |d| = β, |d| - β / 2 beyond."""
    return F.smooth_l1_loss(_at_least_fp32(guess), _at_least_fp32(target), beta=_BETA)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
