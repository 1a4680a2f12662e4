"""Convolutional networks by their timm name: teachers of Img2Vec, read at one of their stages.

B images · C channels · G cells along one side · S image side in pixels
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zoo.errors import UsageError
from zoo.vit import MOST


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvnetConfig:
    """A convnet that timm knows.  Raises UsageError for a name that is none."""

    heads: ClassVar[None] = None
    """No attention: what a ViT's card must state, a convnet's leaves out."""

    architecture: str
    """timm's name, without a weights tag."""
    channels: tuple[int, ...] | None = None
    """Per stage, of a ResNet; null for the architecture's own."""
    layers: tuple[int, ...] | None = None
    """Blocks per stage, of a ResNet; null for the architecture's own."""
    image_size: int = 224
    """Side of the input, in pixels: for preprocessing, any multiple of the stride will do."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= MOST["image_size"]:
            raise UsageError(
                f"no convnet takes images of {self.image_size:,} px",
                where=f"{type(self).__name__}.image_size",
                fix=f"choose 1 … {MOST['image_size']:,}",
            )
        if not timm.is_model(self.architecture) or self.architecture.startswith("vit_"):
            raise UsageError(
                f"timm has no convnet called {self.architecture[:80]!r}",
                where=f"{type(self).__name__}.architecture",
                fix="choose one of timm.list_models(), such as resnet50",
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """What timm's constructor is given beside the name."""
        stated = {"channels": self.channels, "layers": self.layers}
        return {name: list(value) for name, value in stated.items() if value is not None}


class Stage(NamedTuple):
    """A place where a convnet can be read."""

    place: int
    """As timm counts its features."""
    stride: int
    """Side of a cell, in pixels of the input."""
    channels: int


def empty_convnet(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network without memory for its weights (meta device) and without a classifier.

    Raises UsageError where timm cannot build it, or gives no feature maps of it.
    """
    reason: object = "it gives no feature maps"
    try:
        # timm would fetch a name such as hf-hub:… or read a folder.
        if not timm.is_model(architecture):
            raise ValueError("no network of this name")
        with torch.device("meta"):
            net = timm.create_model(architecture, num_classes=0, **arguments)
        maps = hasattr(net, "forward_intermediates") and hasattr(net, "feature_info")
        if maps and not isinstance(net, VisionTransformer):
            return net
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        reason = error  # sizes that do not fit together, or a network without these arguments
    raise UsageError(
        f"{architecture[:80]!r} is not a convnet that can be read stage by stage",
        where=f"timm: {reason}",
        fix="use a convnet of timm, such as resnet50",
    )


def build_convnet(architecture: str, arguments: Mapping[str, Any], *, seed: int) -> nn.Module:
    """A new network without a classifier, as timm initialises it.  Raises UsageError."""
    empty_convnet(architecture, arguments)  # the errors, before the work
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(architecture, num_classes=0, **arguments)


def stages(net: nn.Module) -> list[Stage]:
    """Where the network can be read, from the input on."""
    return [
        Stage(place, info["reduction"], info["num_chs"])
        for place, info in enumerate(net.feature_info)  # type: ignore[arg-type]  # timm's list
    ]


def stage_at(net: nn.Module, stride: int | None) -> Stage:
    """The last stage of this stride; without one, the last of all.  Raises UsageError."""
    found = [stage for stage in stages(net) if stride in (None, stage.stride)]
    if not found:
        known = sorted({stage.stride for stage in stages(net)})
        raise UsageError(
            f"this convnet has no stage of stride {stride}",
            where=type(net).__name__,
            fix=f"choose one of {', '.join(map(str, known))}",
        )
    return found[-1]


def read_stage(net: nn.Module, images: Tensor, stage: Stage) -> Tensor:
    """The stage's map (B, C, G, G) for images (B, 3, S, S), normalised; nothing beyond it runs."""
    found = net.forward_intermediates(  # type: ignore[operator]  # timm's method
        images, indices=[stage.place], stop_early=True, intermediates_only=True
    )
    return found[0]


def cut_after(net: nn.Module, stage: Stage) -> nn.Module:
    """Drop what lies beyond the stage, in place."""
    net.prune_intermediate_layers([stage.place], prune_head=True)  # type: ignore[operator]
    return net


def classifier_of(net: nn.Module) -> re.Pattern[str]:
    """Names of the classifier's tensors that a published file may hold beside the network's."""
    stated = net.pretrained_cfg.get("classifier") or "fc"  # type: ignore[union-attr]  # timm's dict
    names = [stated] if isinstance(stated, str) else list(stated)
    return re.compile(rf"({'|'.join(map(re.escape, ['fc', *names]))})\.(weight|bias)")


def require_grid(net: nn.Module, stage: Stage, image_size: int) -> int:
    """Cells along one side for this input, G.  Raises UsageError where they do not tile it."""
    net.eval()  # in training, batch normalisation refuses a map of one cell
    probe = torch.empty(1, 3, image_size, image_size, device="meta")
    below = max(1, image_size // stage.stride) * stage.stride
    fix = f"choose an image size such as {below} or {below + stage.stride}, or another stage"
    grid, reason = 0, ""
    try:
        if image_size >= stage.stride:
            grid = read_stage(net, probe, stage).shape[-1]
    except (AssertionError, RuntimeError, ValueError) as error:  # one that takes one size only
        reason = f": {str(error).partition(chr(10))[0]}"
        fix = "choose the network's own image size"
    if grid * stage.stride == image_size:
        return grid
    if image_size % stage.stride == 0 and not reason:
        fix = f"choose another network or stage: this one's map has {grid} cells a side"
    raise UsageError(
        f"cells of {stage.stride} px do not tile an image of {image_size} px{reason}",
        where=f"{type(net).__name__} at stride {stage.stride}",
        fix=fix,
    )
