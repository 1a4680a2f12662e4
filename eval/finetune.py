"""Fine-tuning: a pre-trained ViT and a new classifier, trained together on labelled images.

The recipe of He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (arXiv
2111.06377), §A.1 "End-to-end fine-tuning", which TinyMIM shares: mean of the patch tokens of the
last block, a norm of its own behind the pooling, layer-wise learning rates, Mixup and CutMix.

B images · N tokens · D width · C classes
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eval.validation import score
from pretrain.augment import Probability
from pretrain.bounds import NotNegative, Rate
from pretrain.export import code_version
from pretrain.index import ImageIndex
from pretrain.objective import Batch, Export, Heldout, ParamGroup
from zoo.card import Score
from zoo.classes import name_classes
from zoo.errors import UsageError
from zoo.folder import Model, count_classes, load_model, read_config
from zoo.hub import locate
from zoo.images import Preprocess
from zoo.vit import ViTConfig, build_vit, empty_vit, set_drop_path

PROTOCOL = "finetune-val@1"
"""Top-1 on a run's own validation images, by the evaluation transform of its card."""
HEAD = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
"""What a pre-trained network does not have."""
_DROPPED = ("norm.", "fc_norm.", "head.")
"""Of a pre-trained network: its norm saw every token, ours sees their mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finetune:
    """Fine-tuning of all weights, with labels."""

    name: ClassVar[str] = "finetune"

    init: str | None
    """A model folder or name; null begins as pre-training did, to compare with."""
    classes: Annotated[int, Field(ge=2)]
    new_head: bool = False
    """Whether a base that is a classifier already may lose its head."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    """Learning rate of a block over that of the block behind it."""
    drop_path: Rate = 0.1
    """Of the last block; linear from 0 at the first."""
    mixup: NotNegative = 0.8
    """α of the Beta distribution that images are blended by; 0 for no Mixup."""
    cutmix: NotNegative = 1.0
    """α of the Beta distribution of the area that is pasted; 0 for no CutMix."""
    smoothing: Rate = 0.1
    """Share of a label that is spread over all classes."""
    erase: Probability = 0.25
    """How many images get a rectangle of noise."""

    def build(self, student: ViTConfig, *, seed: int, device: torch.device) -> "Classification":
        model = None
        if self.init is not None:
            require_no_head(locate(self.init), self.classes, new_head=self.new_head)
            model = read_base(self.init, student)
        return Classification(student, model, self, seed=seed, device=device).to(device)


class Classification(nn.Module):
    """The objective: ``{"total"}``, cross-entropy; it validates."""

    draws = 0
    """Mirroring and RandAugment are the sample transform's (``data.augment``)."""

    def __init__(
        self,
        student: ViTConfig,
        model: Model | None,
        method: Finetune,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config, self.method = student, method
        self.base = None if model is None else model.as_base()
        # What the exported card will say, so that evaluation sees the same pixels.
        self.preprocess = Preprocess(image_size=student.image_size)
        self.net = begin(student, model, method.classes, seed=seed)
        set_drop_path(self.net, torch.linspace(0, method.drop_path, student.depth).tolist())
        self._erase = RandomErasing(method.erase, mode="pixel", device=str(device))
        self._mix = _mixup(method)
        self._heldout: Heldout | None = None
        self._labels: tuple[str, ...] = ()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, targets = self._vary(batch)  # type: ignore  # torch does not type its decorator
        return {"total": SoftTargetCrossEntropy()(self.logits(images).float(), targets)}

    @torch.compiler.disable  # the draws are Python's and numpy's: compiled, they would be constants
    @torch.no_grad()
    def _vary(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) normalised, erased and mixed; (B, C) how much of each class is in them."""
        assert batch.labels is not None, "open() has seen class folders"
        images = self.preprocess.normalise(batch.images).contiguous()
        images = self._erase(images)
        if self._mix:
            return self._mix(images, batch.labels)
        certain = F.one_hot(batch.labels, self.method.classes).float()
        return images, certain * (1 - self.method.smoothing) + (
            self.method.smoothing / self.method.classes
        )

    def logits(self, images: Tensor) -> Tensor:
        """(B, C) float32 of (B, 3, S, S) normalised; under autocast too, where halves would tie."""
        pooled = self.net.forward_head(self.net.forward_features(images), pre_logits=True)
        with torch.autocast(images.device.type, enabled=False):
            return self.net.head(pooled.float())

    def param_groups(self, weight_decay: float) -> Iterable[ParamGroup]:
        return layer_groups(
            {name: p.ndim for name, p in self.named_parameters()},
            depth=self.config.depth,
            layer_decay=self.method.layer_decay,
            weight_decay=weight_decay,
        )

    def export(self) -> Export:
        """The whole classifier, with the names of its classes."""
        return Export(
            weights=self.net.state_dict(),
            last_trained_block=self.config.depth,
            facts={"base": asdict(self.base)} if self.base else {},
            labels=self._labels,
        )

    def open(self, train: ImageIndex, heldout: Heldout) -> None:
        """Raises UsageError for another number of classes, and for batches Mixup cannot pair."""
        if len(train.classes) != self.method.classes:
            raise UsageError(
                f"{len(train.classes):,} class folders for a classifier of {self.method.classes:,}",
                where=str(train.root),
                fix=f"set method.classes={len(train.classes)}, or give the data it is meant for",
            )
        if self._mix and heldout.batch % 2:
            raise UsageError(
                f"Mixup pairs the images of a batch, and {heldout.batch} is odd",
                where="training.rank_batch",
                fix="choose an even rank_batch, or method.mixup=0 and method.cutmix=0",
            )
        self._labels = name_classes(train.classes).names
        self._heldout = heldout

    def validate(self) -> dict[str, float]:
        assert self._heldout is not None, "open() comes first"
        return score(self.logits, self._heldout, self.preprocess)

    def scores(self, validation: Mapping[str, Any]) -> list[Score]:
        assert self._heldout is not None
        images = self._heldout.images
        top1 = validation["scores"]["top1"]
        return [
            Score(
                protocol=PROTOCOL,
                metric="top-1",
                value=top1,
                standard_error=standard_error(top1, len(images)),
                samples=len(images),
                data=images.root.name,
                data_fingerprint=images.fingerprint,
                # The best of several on these very images flatters itself: the score says so.
                settings={
                    "epoch": validation["epoch"],
                    "chosen": validation.get("chosen", "last"),
                },
                transform=asdict(self.preprocess),
                dtype="float32",
                code_version=code_version(),
            )
        ]


def standard_error(percent: float, samples: int) -> float:
    """Of a share of so many images, in percent."""
    return (percent * (100 - percent) / samples) ** 0.5


def require_no_head(folder: Path, classes: int, *, new_head: bool) -> None:
    """Raise UsageError where a classifier would be lost that nobody offered to give up."""
    there = count_classes(folder)
    if not there or new_head:
        return
    width = read_config(folder).width
    raise UsageError(
        f"the model is a classifier of {there:,} classes already, and the data has {classes:,}",
        where=f"head.weight {there, width}, to be {classes, width}; "
        f"head.bias {(there,)}, to be {(classes,)}",
        fix="repeat with --new-head (in a recipe: method.new_head=true) to replace its head, or "
        "give the model it was made from",
    )


def read_base(source: str, student: ViTConfig) -> Model:
    """The pre-trained network, its positions resampled to the student's image size.

    Raises UsageError where it is not of the student's size, and as ``load_model`` does.
    """
    model = load_model(locate(source), image_size=student.image_size)
    given, wanted = asdict(model.config), asdict(student)
    if differing := [key for key in wanted if given[key] != wanted[key]]:
        raise UsageError(
            "the network to begin from is not of the recipe's size: "
            + ", ".join(f"{key} {given[key]}, not {wanted[key]}" for key in differing),
            where=f"method.init={source}",
            fix="set " + ", ".join(f"student.{key}={given[key]}" for key in differing),
        )
    return model


def begin(config: ViTConfig, model: Model | None, classes: int, *, seed: int) -> VisionTransformer:
    """The classifier before its first step, on the CPU.

    Parameters that the base's card calls fresh, and the head, are drawn as timm and MAE do.  Of no
    base, the body is what pre-training begins with.
    """
    net = empty_vit(config, classes).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(math.nan)  # whatever is forgotten below shows at once
    body = build_vit(config, seed=seed) if model is None else model.vit
    weights = {n: t for n, t in body.state_dict().items() if not n.startswith(_DROPPED)}
    if model is not None:
        weights |= _with_statistics(weights, model.preprocess, Preprocess(image_size=1))
    left = net.load_state_dict(weights, strict=False)
    assert tuple(left.missing_keys) == HEAD, left
    assert not left.unexpected_keys, left
    generator = torch.Generator().manual_seed(seed + 1)  # another stream than build_vit's
    fresh = model.card.fresh_parameters if model is not None and model.card else []
    for name in (name for name in fresh if name in weights):
        initialise_fresh(name, net.get_parameter(name), generator, std=0.02)
    for name in HEAD:
        initialise_fresh(name, net.get_parameter(name), generator, std=2e-5)
    return net.requires_grad_(True)  # positions too, which pre-training keeps fixed


def initialise_fresh(
    name: str, parameter: Tensor, generator: torch.Generator, *, std: float
) -> None:
    """As timm begins a block: matrices N(0, std²) cut off at ±2, norms 1, biases 0."""
    if parameter.ndim > 1:
        nn.init.trunc_normal_(parameter, std=std, generator=generator)
    elif name.endswith("weight"):
        nn.init.ones_(parameter)
    else:
        nn.init.zeros_(parameter)


def _with_statistics(
    weights: Mapping[str, Tensor], theirs: Preprocess, ours: Preprocess
) -> dict[str, Tensor]:
    """A patch projection that gives, for images normalised our way, what it gave for theirs.

    Exact: either is an affine function of the pixels, and patches are not padded.
    """
    if (theirs.mean, theirs.std) == (ours.mean, ours.std):
        return {}
    kernel, bias = (weights[f"patch_embed.proj.{kind}"].double() for kind in ("weight", "bias"))
    mean, std, their_mean, their_std = (
        torch.tensor(values, dtype=torch.float64)
        for values in (ours.mean, ours.std, theirs.mean, theirs.std)
    )
    scale, shift = (x.view(1, 3, 1, 1) for x in (std / their_std, (mean - their_mean) / their_std))
    return {
        "patch_embed.proj.weight": (kernel * scale).float(),
        "patch_embed.proj.bias": (bias + (kernel * shift).sum((1, 2, 3))).float(),
    }


def layer_groups(
    dimensions: Mapping[str, int], *, depth: int, layer_decay: float, weight_decay: float
) -> list[ParamGroup]:
    """MAE's layer-wise learning rates: ``layer_decay ** (depth + 1 - layer)``, by name.

    dimensions: of every parameter.  Vectors, class token and positions have no weight decay.
    """
    groups: dict[tuple[int, bool], list[str]] = {}
    for name, dimension in dimensions.items():
        bare = dimension <= 1 or name.endswith(("pos_embed", "cls_token"))
        groups.setdefault((layer_of(name, depth), bare), []).append(name)
    return [
        ParamGroup(
            names=tuple(names),
            lr_scale=layer_decay ** (depth + 1 - layer),
            weight_decay=0.0 if bare else weight_decay,
        )
        for (layer, bare), names in sorted(groups.items())
    ]


def layer_of(name: str, depth: int) -> int:
    """0 for what embeds, i + 1 for ``blocks.i``, depth + 1 for norm and head."""
    parts = name.removeprefix("net.").split(".")
    if parts[0] in {"cls_token", "pos_embed", "patch_embed"}:
        return 0
    return int(parts[1]) + 1 if parts[0] == "blocks" else depth + 1


def _mixup(method: Finetune) -> Mixup | None:
    if not (method.mixup or method.cutmix):
        return None
    return Mixup(
        mixup_alpha=method.mixup,
        cutmix_alpha=method.cutmix,
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=method.smoothing,
        num_classes=method.classes,
    )
