"""MAE's linear probe: an objective for the one loop, and what its head makes of kept features.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022), §A.1.

B images · D width of a pooled vector · C classes
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from eval.backbone import Backbone, Dtype, Pooling, open_backbone
from eval.nearest import full_precision
from eval.probe_protocols import LinearRules, batch_for
from pretrain.checkpoint import TrainState
from pretrain.data import Data, RandomCrop
from pretrain.distributed import World
from pretrain.index import ImageIndex
from pretrain.launch import Sources, run_recipe
from pretrain.loop import Training
from pretrain.objective import Batch, Export, Objective, ParamGroup
from pretrain.optim import Optim, decay_matrices
from pretrain.recipe import Recipe, as_record
from pretrain.run import RunFolder
from pretrain.views import FLIP_DRAWS, flip
from zoo.errors import UsageError
from zoo.files import atomic_write
from zoo.images import Preprocess
from zoo.tensors import read_tensors

HEAD = "head.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleDrawCrop(RandomCrop):
    """A random-resized crop as TensorFlow programs of the field drew it, and MAE's probe does.

    Area and ratio are drawn once, whatever comes of it; a side longer than the image's is cut to
    it, which changes area and ratio.  torchvision draws up to ten times and then takes the middle.
    """

    def box(self, pixels: np.ndarray) -> tuple[int, int, int, int]:
        height, width = pixels.shape[:2]
        share, where_y, where_x = torch.rand(3).tolist()
        low, high = (math.log(ratio) for ratio in self.ratio)
        ratio = math.exp(low + (high - low) * torch.rand(()).item())
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * share)
        w = min(max(round(math.sqrt(area * ratio)), 1), width)
        h = min(max(round(math.sqrt(area / ratio)), 1), height)
        return int(where_y * (height - h + 1)), int(where_x * (width - w + 1)), h, w


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeCrops(Data):
    """A training set of a probe; it may move, as long as it is the same."""

    source: str = field(metadata={"runtime": True})
    crop_scale: tuple[float, float] = (0.08, 1.0)

    def crop(self, image_size: int) -> SingleDrawCrop:
        return SingleDrawCrop(image_size=image_size, scale=self.crop_scale, ratio=self.crop_ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearMethod:
    """What a head is trained on."""

    name: ClassVar[str] = "linear"

    protocol: str
    """Its digest."""
    source: str = field(metadata={"runtime": True})
    """The model, as ``open_backbone`` takes it."""
    model_digest: str
    transform: Preprocess
    dtype: Dtype
    """Of the frozen network; the head is fp32."""
    pooling: Pooling
    classes: int
    """C: folders of training images."""

    def build(self, student: "Input", *, seed: int, device: torch.device) -> "LinearProbe":
        backbone = open_backbone(
            self.source, device=device, transform=self.transform, dtype=self.dtype
        )
        return LinearProbe(backbone, self.pooling, self.classes, seed=seed).to(device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """What the loop asks of the network that it trains for: here, of the frozen one."""

    image_size: int


class Head(nn.Module):
    """(B, D) to logits (B, C): batch normalisation without affine, then one linear layer."""

    def __init__(self, width: int, classes: int, *, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features.float()))


class LinearProbe(nn.Module):
    """The objective: ``{"total", "accuracy"}``, of a rank's own forward pass.

    So are the statistics of the normalisation, as in MAE's code: no rank knows another's.
    """

    draws = FLIP_DRAWS
    backbone: Backbone

    def __init__(self, backbone: Backbone, pooling: Pooling, classes: int, *, seed: int) -> None:
        super().__init__()
        # No submodule: it is not saved, not trained, and train() does not reach it.
        self.__dict__["backbone"] = backbone
        self.pooling: Pooling = pooling
        self.head = Head(backbone.width, classes, seed=seed)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None, "the training set has class folders"
        images01 = flip(batch.images, batch.draws[:, 0]) / 255
        logits = self.head(self.backbone.pool(images01, self.pooling))
        right = (logits.argmax(1) == batch.labels).float().mean()
        return {"total": F.cross_entropy(logits, batch.labels), "accuracy": right}

    def param_groups(self, weight_decay: float) -> Iterable[ParamGroup]:
        return decay_matrices(self.named_parameters(), weight_decay)

    def export(self) -> Export:
        """The head."""
        return Export(weights=self.head.state_dict(), last_trained_block=None)


def linear_recipe(
    rules: LinearRules,
    backbone: Backbone,
    source: str,
    index: ImageIndex,
    *,
    pooling: Pooling,
    world: World,
    workers: int,
) -> Recipe:
    """All that makes a head.  Raises UsageError for too few images, or ranks that do not divide."""
    batch = batch_for(len(index), rules.most_batch)
    if batch % world.size or batch // world.size < 2:
        raise UsageError(
            f"a batch of {batch} (of {len(index):,} training images) among {world.size} ranks",
            where=rules.id,
            fix="start a power of two of them, fewer than half the batch",
        )
    wide = backbone.has_cls and backbone.width >= 1024
    training = Training(
        epochs=rules.epochs_from_width_1024 if wide else rules.epochs,
        warmup_epochs=rules.warmup_epochs,
        global_batch=batch,
        rank_batch=min(rules.norm_batch, batch // world.size),
        optim=Optim(
            algorithm="lars", lr_per_256=rules.lr * 256 / batch, weight_decay=rules.weight_decay
        ),
        seed=rules.seed,
        precision="fp32",
        compile=False,
    )
    method = LinearMethod(
        protocol=rules.digest,
        source=source,
        model_digest=backbone.digest,
        transform=backbone.preprocess,
        dtype=backbone.dtype,
        pooling=pooling,
        classes=len(index.classes),
    )
    return Recipe(
        name=rules.name,
        student=cast(Any, Input(image_size=backbone.preprocess.image_size)),
        method=cast(Any, method),
        # An evaluation stops at the first image that cannot be read.
        data=ProbeCrops(source=f"folder:{index.root}", workers=workers, max_bad=0),
        training=training,
    )


def train_head(recipe: Recipe, index: ImageIndex, cache: Path, world: World) -> dict[str, Tensor]:
    """The head's weights, on every rank; trained, or continued, or found in the cache.

    Raises whatever a run raises, PreemptedError and DivergedError among it.
    """
    record = [as_record(recipe, runtime=False), index.fingerprint, world.size]
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]
    out = cache / "probes" / key
    run_recipe(recipe, out, world, finish=_keep_head)
    return read_tensors(out / HEAD)


def _keep_head(
    recipe: Recipe, run: RunFolder, data: Sources, objective: Objective, state: TrainState
) -> None:
    weights = {
        name: t.detach().cpu().contiguous() for name, t in objective.export().weights.items()
    }
    atomic_write(run.path / HEAD, save(weights))


@torch.no_grad()
def top_classes(
    weights: dict[str, Tensor], features: Iterable[Tensor], top: int = 5
) -> tuple[Tensor, Tensor]:
    """(N, up to top) int64, columns of the head by falling logit; of equal ones the lower.

    And (N,) float32: the softmax of the first.
    """
    classes, width = weights["linear.weight"].shape
    head = Head(width, classes, seed=0)
    head.load_state_dict(weights)
    head.eval()
    with full_precision(torch.device("cpu")):
        logits = torch.cat([head(block) for block in features])
    order = logits.sort(dim=1, descending=True, stable=True).indices
    return order[:, :top], logits.softmax(1).amax(1)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What a result says of a head beside its protocol."""
    training, method = recipe.training, cast(LinearMethod, recipe.method)
    return {
        "pooling": method.pooling,
        "epochs": training.epochs,
        "batch": training.global_batch,
        "norm_batch": training.rank_batch,
        "lr": training.optim.peak_lr(training.global_batch),
    }
