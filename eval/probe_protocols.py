"""The protocols of frozen features, to the last detail that moves a number.

``in1k-…`` train on ImageNet-1k's training images and score its validation images; the same rules on
a user's own ``train/`` and ``val/`` have no prefix.  A protocol never changes: another rule is
another version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from eval.classes import VAL_IMAGES, class_order_sha256
from eval.pinned import Pinned
from zoo.errors import UsageError

TRAIN_IMAGES = 1_281_167
"""Of ImageNet-1k."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules(Pinned):
    """What every probe pins."""

    data: Literal["imagenet-1k", "own"]
    features: str = "last trained block or stage, after the final norm"
    transform: str = "card"
    """Of the features that are kept and of the validation images: the card's evaluation transform,
    unless overridden; the resolved one stands in the result."""
    seed: int = 0

    def pinned(self) -> dict[str, Any]:
        """Every rule of the protocol, its kind, and the data set where there is one."""
        rules = Pinned.pinned(self)  # super() does not go with slots
        rules["kind"] = type(self).__name__
        if self.data == "imagenet-1k":
            rules |= {"train_images": TRAIN_IMAGES, "val_images": VAL_IMAGES}
            rules["class_order_sha256"] = class_order_sha256()
        return rules


@dataclass(frozen=True, kw_only=True, slots=True)
class KNNRules(Rules):
    """DINO's weighted nearest neighbours (Caron et al. 2021, §F)."""

    neighbours: int = 20
    """Of the value; the others stand in the details."""
    also: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    similarity: str = "cosine, fp32; equal ones by place in the training set"
    votes: str = "exp(similarity / temperature), fp32; equal ones by class number"
    top5: str = "classes with a vote"


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearRules(Rules):
    """MAE's linear probe (He et al. 2022, §A.1): augmented images through a frozen network."""

    epochs: int = 90
    epochs_from_width_1024: int = 50
    warmup_epochs: int = 10
    schedule: str = "linear from 0, half a cosine to 0, per step; the last step is scored"
    optimizer: str = "LARS: momentum 0.9, trust 0.001; the bias at the plain rate"
    lr: float = 6.4
    """At the peak: 0.1 x 16,384 / 256.  At smaller batches too: the steps are then as many, and a
    step of LARS is a share of the weights' norm.  Scaled with the batch, few images teach nothing.
    """
    weight_decay: float = 0.0
    most_batch: int = 16_384
    batch_rule: str = "the largest power of two <= images / 64; at least 32, at most most_batch"
    norm: str = "BatchNorm without affine, eps 1e-6, momentum 0.1, over a rank's forward pass"
    norm_batch: int = 512
    """Images in a forward pass of one rank, or a rank's whole share of a batch if that is less."""
    init: str = "truncated normal 0.01, bias 0"
    crop: str = (
        "one draw of area in [0.08, 1] and log-uniform ratio in [3/4, 4/3], sides clipped to the "
        "image; bicubic; mirrored with probability 1/2"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRules(Rules):
    """Many heads on one pass of kept features, in the manner of DINOv2 (Oquab et al. 2023)."""

    lrs: tuple[float, ...] = (
        *(4e-5, 8e-5, 2e-4, 4e-4, 8e-4, 2e-3, 4e-3, 8e-3, 2e-2, 4e-2, 8e-2, 2e-1, 4e-1),
    )
    """At the start: DINOv2's 1e-5 … 0.1, times 1024 / 256.  At smaller batches the same."""
    poolings: tuple[str, ...] = ("cls", "mean", "cls+mean")
    """Those that the network has; cls+mean side by side."""
    optimizer: str = "SGD: momentum 0.9, weight decay 0"
    schedule: str = "half a cosine to 0, per step"
    most_steps: int = 12_500
    most_epochs: int = 100
    """Where the images are few."""
    most_batch: int = 1024
    batch_rule: str = "the largest power of two <= images / 64; at least 32, at most most_batch"
    augmentation: str = "none: the features of the evaluation transform"
    init: str = "normal 0.01, bias 0; the same for every learning rate"
    chosen_on: str = "a tenth of the training images, drawn at random, on which no head is trained"


_KNN = "DINO's weighted kNN, k = 20"
_LINEAR = "MAE's linear probe: LARS, affine-free BatchNorm, augmented images"
_SWEEP = "Linear heads of 13 learning rates and 3 poolings; chosen on held-out training images"

_ALL: tuple[KNNRules | LinearRules | SweepRules, ...] = (
    KNNRules(name="knn", data="own", about=_KNN),
    LinearRules(name="linear", data="own", about=_LINEAR),
    SweepRules(name="linear-sweep", data="own", about=_SWEEP),
    KNNRules(name="in1k-knn", data="imagenet-1k", about=_KNN),
    LinearRules(name="in1k-linear", data="imagenet-1k", about=_LINEAR),
    SweepRules(name="in1k-linear-sweep", data="imagenet-1k", about=_SWEEP),
)

PROBE_PROTOCOLS: Mapping[str, KNNRules | LinearRules | SweepRules] = MappingProxyType(
    {rules.id: rules for rules in _ALL}
)
"""By name and version."""


def find_probe(name: str) -> KNNRules | LinearRules | SweepRules:
    """The protocol of a name, its newest version, or of a name with a version.

    Raises UsageError that lists the known ones.
    """
    newest = {rules.name: rules for rules in sorted(_ALL, key=lambda rules: rules.version)}
    if found := PROBE_PROTOCOLS.get(name) or newest.get(name):
        return found
    raise UsageError(
        f"no benchmark is called {name!r}", fix=f"choose one of: {', '.join(PROBE_PROTOCOLS)}"
    )


def batch_for(images: int, most: int) -> int:
    """The batch of a probe's training: for ImageNet-1k the published one.

    The largest power of two that is at most a 64th of the images; 32 at least, where there are so
    many, and ``most`` at most.
    """
    wanted = min(most, max(images // 64, 32), images)
    return 1 << (wanted.bit_length() - 1)
