"""SimCLR: two views of an image resemble each other more than any two images.  For convnets.

Chen, Kornblith, Norouzi, Hinton: "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020 (arXiv 2002.05709), §2.  Here it makes small self-supervised convnets:
teachers for Img2Vec where DINO's ResNet-50 is too large or not at hand.

B images · S image side in pixels · C channels of the trained stage · Z projection width
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pretrain.bounds import Count, NotNegative, Positive
from pretrain.objective import Batch, Export, Observation, ParamGroup
from pretrain.optim import decay_matrices
from pretrain.views import STRONG_VIEW_DRAWS, strong_view
from zoo.convnet import (
    ConvnetConfig,
    build_convnet,
    empty_convnet,
    read_stage,
    require_grid,
    stage_at,
)
from zoo.errors import UsageError
from zoo.images import normalise


@dataclass(frozen=True, kw_only=True, slots=True)
class SimCLR:
    """Contrast within the rank's own batch, on the pooled map of one stage."""

    name: ClassVar[str] = "simclr"

    temperature: Positive = 0.2
    projection_width: Count = 128
    stride: Count | None = None
    """Of the stage that is trained, in pixels; null for the last."""
    least_side: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Least side of a view's crop, as a share of the sample's."""
    jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.8, 0.8, 0.8)
    """Brightness, contrast and saturation."""
    grey: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Probability of a view without colour."""

    def build(self, student: ConvnetConfig, *, seed: int, device: torch.device) -> "Contrast":
        return Contrast(student, self, seed=seed).to(device)


class Contrast(nn.Module):
    """The objective: ``{"total", "agreement"}``, the loss and how often the right view is nearest.

    Batch normalisation sees both views at once.
    """

    draws = 2 * STRONG_VIEW_DRAWS

    def __init__(self, student: ConvnetConfig, method: SimCLR, *, seed: int) -> None:
        super().__init__()
        self.method = method
        self.trunk = Trunk(student, stride=method.stride, seed=seed)
        channels = self.trunk.stage.channels
        self.projection = nn.Sequential(
            _linear(channels, channels, seed=seed + 1),
            nn.ReLU(),
            _linear(channels, method.projection_width, seed=seed + 2),
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if len(batch.images) < 2:
            raise UsageError(
                "contrast needs two images at once",
                where="training.rank_batch",
                fix="set training.rank_batch to 2 or more; hundreds are usual",
            )
        images01 = batch.images / 255
        views = [
            strong_view(
                images01,
                draws,
                least_side=self.method.least_side,
                jitter=self.method.jitter,
                grey=self.method.grey,
            )
            for draws in batch.draws.split(STRONG_VIEW_DRAWS, dim=1)
        ]
        one, other = self.projection(self.trunk(torch.cat(views))).chunk(2)
        loss, agreement = contrastive_loss(one, other, self.method.temperature)
        return {"total": loss, "agreement": agreement}

    def observe(self, images01: Tensor) -> Observation:
        return Observation(features=self.trunk(images01))

    def param_groups(self, weight_decay: float) -> Iterable[ParamGroup]:
        return decay_matrices(self.named_parameters(), weight_decay)

    def export(self) -> Export:
        """The convnet; the projection has done its work."""
        return self.trunk.export()


class Trunk(nn.Module):
    """Images in, the pooled map of one stage out.  Raises UsageError for a stride it has not,
    or an image size that the stage's cells do not tile.

    stride: of the stage, in pixels; null for the last.  What lies beyond the stage stays as it was
    drawn.
    """

    def __init__(self, config: ConvnetConfig, *, stride: int | None, seed: int) -> None:
        super().__init__()
        self.net = build_convnet(config.architecture, config.arguments, seed=seed)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stage = stage_at(self.net, stride)
        empty = empty_convnet(config.architecture, config.arguments)
        require_grid(empty, self.stage, config.image_size)
        reached = {id(p) for p in self._reached(config.image_size)}
        beyond = {n: p for n, p in self.net.named_parameters() if id(p) not in reached}
        for parameter in beyond.values():
            parameter.requires_grad_(False)
        self.fresh = tuple(beyond)
        """Names of parameters beyond the stage."""

    def _reached(self, image_size: int) -> Iterable[nn.Parameter]:
        """The parameters that the stage depends on, found by asking autograd."""
        self.net.eval()
        probe = torch.zeros(1, 3, image_size, image_size)
        read_stage(self.net, probe, self.stage).sum().backward()
        reached = [p for p in self.net.parameters() if p.grad is not None]
        self.net.zero_grad(set_to_none=True)
        self.net.train()
        return reached

    def forward(self, images01: Tensor) -> Tensor:
        """(B, C) for images (B, 3, S, S) in [0, 1]."""
        images = normalise(images01).contiguous(memory_format=torch.channels_last)
        return read_stage(self.net, images, self.stage).mean((2, 3))

    def export(self) -> Export:
        """The whole convnet, and how far it was trained."""
        return Export(
            weights=self.net.state_dict(),
            last_trained_block=None,
            fresh=self.fresh,
            facts={"stride": self.stage.stride},
        )


def contrastive_loss(one: Tensor, other: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent (Eq. 1) of two views (B, Z) each, and the share of views nearest to their twin.

    Each of the 2·B views picks its twin among the 2·B − 1 others, by cosine over temperature.
    """
    views = F.normalize(torch.cat([one, other]).float(), dim=1)
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    with torch.autocast(views.device.type, enabled=False):  # over 0.1, half precision shows
        logits = (views @ views.T / temperature).masked_fill(itself, -torch.inf)
    twin = torch.arange(len(views), device=views.device).roll(len(one))
    return F.cross_entropy(logits, twin), (logits.argmax(1) == twin).float().mean()


def _linear(width: int, out: int, *, seed: int) -> nn.Linear:
    """A linear layer as torch initialises it, from a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, out)
