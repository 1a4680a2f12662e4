"""The recipe of a segmentation run: everything that moves its number, typed, with units.

UPerNet (Xiao et al. 2018, arXiv 1807.10221) on a ViT, as MAE (He et al. 2022, §A.4) and TinyMIM
(Ren et al. 2023, §4) report ADE20K; sizes and schedule are those of mmsegmentation's MAE recipe.

A level is one of the four feature maps, the finest first.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pretrain.bounds import Count, NotNegative, Positive, Rate

if TYPE_CHECKING:  # tables are made without importing torch
    from zoo.vit import ViTConfig

Backbone = Literal["mae", "plain"]
"""``mae``: the ViT with a relative position bias and a scale for each branch, both new, and a fixed
grid, as MAE's and TinyMIM's figures have it.  ``plain``: the ViT as it was pre-trained."""
Precision = Literal["float32", "bfloat16", "float16"]

IGNORED = 255
"""In a mask: a pixel without a label."""
LONG_SIDE = 4
"""Of a resized image: at most so many times its short side."""
LAYER_DECAY = {"mae-b": 0.65, "tinymim-b": 0.75, "small": 0.8}
"""Learning rate of a block over that of the block behind it.  B: of mmsegmentation's MAE recipe and
of TinyMIM's.  ``small``, for S and T, is ours: TinyMIM published 0.8 for its T* alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UPerNet:
    """The network."""

    name: ClassVar[str] = "upernet"

    backbone: Backbone = "mae"
    crop: Count = 512
    """Side of what the network sees, in pixels; a multiple of the patch."""
    taps: tuple[Count, Count, Count, Count] = (4, 6, 8, 12)
    """Blocks (1-based) whose output becomes a level: at 4, 2, 1 and ½ times the patch grid."""
    drop_path: Rate = 0.1
    """Of the last block; linear from 0 at the first."""
    layer_scale: Positive = 1.0
    """What the ``mae`` backbone's branch scales begin with."""
    head_channels: Count = 768
    """Of UPerHead, whatever the size of the ViT."""
    head_dropout: Rate = 0.1
    auxiliary_channels: Count = 256
    """Of the auxiliary FCNHead, one convolution on level 2 (counted from 0)."""
    auxiliary_weight: NotNegative = 0.4
    """Of its loss; the head's own has 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegTraining:
    """How it is trained."""

    iterations: Count = 160_000
    global_batch: Count = 16
    """Crops in one iteration, over all ranks."""
    lr: Positive = 1e-4
    """Of the heads, at its peak."""
    weight_decay: NotNegative = 0.05
    decay_tokens: bool = True
    """Whether class token and positions have weight decay.  mmsegmentation means to spare them and
    does not: it looks for their names without ``backbone.``; the published figures have it so."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    warmup_iterations: Annotated[int, Field(ge=0)] = 1500
    """Linear from a millionth of the rate; after it the rate falls linearly to 0."""
    short_side: Count = 512
    """Images are resized to it (the long side to at most 4 times it), times 0.5 … 2 at random."""
    most_of_one_class: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A crop with a larger share of one class is drawn anew, ten times at most."""
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Precision = "float32"
    """bfloat16 and float16 are mmengine's autocast; the published recipe says amp and trains in
    float32."""
    channels_last: bool = field(default=False, metadata={"runtime": True})
    """Memory layout of neck and heads: faster on CUDA in half precision."""
    compile: bool = field(default=False, metadata={"runtime": True})
    """torch.compile, of backbone and neck."""
    log_every: Count = field(default=50, metadata={"runtime": True})
    """Iterations."""
    validate_every: Count = field(default=16_000, metadata={"runtime": True})
    save_every: Count = field(default=2_000, metadata={"runtime": True})
    keep_checkpoints: Annotated[int, Field(ge=2)] = field(default=2, metadata={"runtime": True})
    workers: Annotated[int, Field(ge=0)] = field(default=4, metadata={"runtime": True})
    """Processes that decode, of each rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Testing:
    """How it is scored: one scale, sliding windows."""

    __test__: ClassVar[bool] = False  # not pytest's

    short_side: Count = 512
    """Images are resized to it (the long side to at most 4 times it), keeping their shape."""
    stride: Count = 341
    """Between windows, in pixels: two thirds of the crop."""
    windows: Count | None = field(default=None, metadata={"runtime": True})
    """Through the network at once; null for 16 on CUDA, and 2 elsewhere: more are no faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmentation:
    """Everything that makes a segmentation network and its score."""

    name: str
    protocol: str
    """Name and version, such as ``ade20k-upernet@1``."""
    model: str
    """A model folder or name: the backbone's weights."""
    from_scratch: bool = False
    """Begin with new weights in the model's place, to compare with."""
    data: str = field(metadata={"runtime": True})
    """A folder in ADE20K's layout; it may move, what is in it may not change."""
    method: UPerNet = field(default_factory=UPerNet)
    training: SegTraining = field(default_factory=SegTraining)
    testing: Testing = field(default_factory=Testing)


def recipe_for(
    student: "ViTConfig", origin: str, *, backbone: Backbone
) -> tuple[UPerNet, SegTraining]:
    """The protocol's settings for a ViT of this size that was pre-trained by this method.

    Taps are at a third, a half, two thirds and all of the depth; drop path 0.1, of an L 0.2.
    """
    depth = student.depth
    taps = tuple(max(1, round(depth * share)) for share in (1 / 3, 1 / 2, 2 / 3, 1))
    network = UPerNet(
        backbone=backbone,
        taps=taps,  # type: ignore[arg-type]
        drop_path=0.2 if student.width >= 1024 else 0.1,
    )
    return network, replace(SegTraining(), layer_decay=layer_decay_of(student, origin))


def layer_decay_of(student: "ViTConfig", origin: str) -> float:
    """The protocol's, which depends on size and on how the model was pre-trained."""
    if student.width < 768:
        return LAYER_DECAY["small"]
    return LAYER_DECAY["tinymim-b" if origin == "tinymim" else "mae-b"]
