"""The model folder: weights and card, the only handshake between the rooms.

``config.json`` (timm's layout) · ``model.safetensors`` · ``README.md`` · ``zoo.json``
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zoo.card import BaseRecord, Card, TeacherRecord, record_of
from zoo.classes import name_classes
from zoo.convnet import (
    ConvnetConfig,
    Stage,
    build_convnet,
    classifier_of,
    cut_after,
    empty_convnet,
    require_grid,
    stage_at,
)
from zoo.errors import UsageError
from zoo.files import atomic_folder, atomic_json
from zoo.hubcache import repository_at
from zoo.images import Preprocess
from zoo.layout import (
    build_as_timm,
    class_names_of,
    classes_of,
    convnet_of,
    empty_from_layout,
    image_size_of,
    is_convnet,
    license_of,
    preprocess_of,
    read_layout,
    timm_config,
)
from zoo.page import readme
from zoo.tensors import read_weights_of, require_finite, require_match, require_weights_of
from zoo.verify import CONFIG, RECORD, WEIGHTS, remembered_sha256, verify
from zoo.vit import ViTConfig, adopt_weights, config_of, empty_vit

_HEAD = re.compile(r"(head|head_dist)\..*")
_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What is known of a network, of whichever kind."""

    folder: Path
    digest: str
    """sha256 over weights and configuration."""
    preprocess: Preprocess
    """How images become its input."""
    license: str
    """Of the weights, as the folder states it."""
    card: Card | None
    """None where the folder was not made by tinyzoo."""

    @property
    def name(self) -> str:
        """Of the card; else the repository it was pulled from, or the folder's."""
        return self.card.name if self.card else repository_at(self.folder) or self.folder.name

    @property
    def ancestors(self) -> dict[str, str]:
        """Licences of the weights it was made from, its teachers' and its base's, by name."""
        licenses = self.card.ancestors if self.card else {}
        parts = {part.partition(" "): text for part, text in licenses.items()}
        return {name or word: text for (word, _, name), text in parts.items()}

    def as_teacher(
        self,
        *,
        block: int | None = None,
        stride: int | None = None,
        relation_heads: int | None = None,
    ) -> TeacherRecord:
        """What a student's card says of it, read at a block, or at a convnet's stage."""
        return TeacherRecord(
            name=self.name,
            digest=self.digest,
            block=block,
            license=self.license,
            relation_heads=relation_heads,
            stride=stride,
            ancestors=self.ancestors,
        )

    def as_base(self) -> BaseRecord:
        """What the card says of it that was fine-tuned from it."""
        return BaseRecord(
            name=self.name,
            digest=self.digest,
            license=self.license,
            method=self.card.method if self.card else "",
            ancestors=self.card.ancestors if self.card else {},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Model(_Known):
    """A ViT with what is known of it."""

    vit: VisionTransformer
    """In eval mode, without a classification head; of a classifier that pools its tokens before
    their norm (``fc_norm``), without that norm too, which is part of the head."""
    config: ViTConfig

    @property
    def last_trained_block(self) -> int:
        return (self.card and self.card.last_trained_block) or self.config.depth


@dataclass(frozen=True, kw_only=True, slots=True)
class AnyViT(_Known):
    """A ViT of timm's that need not be plain: it may have register tokens, or no class token."""

    net: VisionTransformer
    """In eval mode, without a classification head, as ``Model.vit``; whole."""

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        return self.net.patch_embed.patch_size[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Convnet(_Known):
    """A convnet, cut after one of its stages, with what is known of it."""

    net: nn.Module
    """In eval mode; channels last in memory."""
    stage: Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier(_Known):
    """A network of timm's, of any kind, with its classifier."""

    net: nn.Module
    """In eval mode: (B, 3, S, S) to logits (B, classes)."""
    classes: int
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the logits; empty where the folder names none."""


def save_model(
    folder: Path,
    config: ViTConfig | ConvnetConfig,
    weights: Mapping[str, Tensor],
    card: Card,
    *,
    labels: Sequence[str] = (),
    descriptions: Sequence[str] = (),
) -> Card:
    """Write a model folder, all of it or nothing; returns the card with digests filled in.

    weights: timm's key names.  labels: names of the classes of a ViT with a classifier, in the
    order of its logits; its weights hold ``fc_norm.*`` and ``head.*`` and no ``norm.*``, as
    ``zoo.vit.empty_vit`` builds it.  descriptions: in words, one to a class.  Raises DiskError,
    IntegrityError (NaN weights, or with labels others than that network's), UsageError.
    """
    require_finite(folder / WEIGHTS, weights)
    named = name_classes(labels, descriptions)
    if named.names:
        _require_classifier(folder / WEIGHTS, config, weights, len(named.names))
        card = replace(card, classes=len(named.names))
    layout = timm_config(config, card.name, named)
    parameters = sum(tensor.numel() for tensor in weights.values())
    with atomic_folder(folder) as temp:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(plain, temp / WEIGHTS, metadata={"format": "pt"})
        atomic_json(temp / CONFIG, layout)
        (temp / "README.md").write_text(readme(card, layout, parameters))
        files = {file.name: record_of(file) for file in sorted(temp.iterdir())}
        digest = _digest(files[WEIGHTS].sha256, layout)
        card = replace(card, files=files, digest=digest)
        (temp / RECORD).write_text(card.to_json())
    return card


def _require_classifier(
    path: Path, config: ViTConfig | ConvnetConfig, weights: Mapping[str, Tensor], classes: int
) -> None:
    if isinstance(config, ConvnetConfig):
        raise UsageError(
            "only a ViT's classifier can be saved", where=str(path), fix="fine-tune a ViT"
        )
    due = empty_vit(config, classes).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in due.items()}
    require_match(path, {name: tuple(t.shape) for name, t in weights.items()}, expected)


def _digest(weights_sha256: str, layout: Mapping[str, Any]) -> str:
    # 3 and 6 heads share the same weight bytes: the configuration is part of the identity.
    network = {key: layout.get(key) for key in ("architecture", "model_args")}
    text = json.dumps([weights_sha256, network], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_model(
    folder: Path,
    *,
    image_size: int | None = None,
    blocks: int | None = None,
    device: torch.device | str = "cpu",
) -> Model:
    """Read a model folder, ours or any of timm's plain ViTs.

    image_size: resample the positions to another input size, in pixels.  blocks: read no block
    beyond this one (1-based; the final norm is dropped with them).  Weights are checked against
    the record, then name by name and for NaN.  Raises IntegrityError, UsageError.
    """
    card = verify(folder)
    layout = read_layout(folder / CONFIG)
    vit = empty_from_layout(layout, folder / CONFIG)
    config = config_of(vit)
    require_weights_of(vit, folder / WEIGHTS, _HEAD)
    if blocks is not None and blocks < 1:
        raise UsageError(
            f"blocks are counted from 1: there is no block {blocks}",
            where=str(folder),
            fix=f"choose 1 … {config.depth}",
        )
    if blocks is not None and blocks < config.depth:
        vit.blocks = vit.blocks[:blocks]
        vit.norm = torch.nn.Identity()
    weights = read_weights_of(vit, folder / WEIGHTS, device)
    if image_size is not None and image_size != config.image_size:
        config = replace(config, image_size=image_size)
        _resize_positions(vit, weights, config)
    _drop_pooled_norm(adopt_weights(vit, weights).eval(), layout, folder)
    return Model(vit=vit, config=config, **_known(folder, layout, card, config.image_size))


def load_any_vit(
    folder: Path, *, image_size: int | None = None, device: torch.device | str = "cpu"
) -> AnyViT:
    """Read a model folder that holds a ViT of timm's, plain or not, checked as in ``load_model``.

    image_size: resample the positions to another input size, in pixels.  Raises IntegrityError,
    UsageError.
    """
    card = verify(folder)
    layout = read_layout(folder / CONFIG)
    vit = empty_from_layout(layout, folder / CONFIG)
    require_weights_of(vit, folder / WEIGHTS, _HEAD)
    adopt_weights(vit, read_weights_of(vit, folder / WEIGHTS, device)).eval()
    _drop_pooled_norm(vit, layout, folder)
    if image_size is not None:
        vit.set_input_size(img_size=(image_size, image_size))
    return AnyViT(net=vit, **_known(folder, layout, card, vit.patch_embed.img_size[0]))


def load_convnet(
    folder: Path,
    *,
    stride: int | None = None,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Convnet:
    """Read a model folder that holds a convnet, ours or timm's, cut after the stage of ``stride``.

    stride: in pixels; null for the last trained stage.  image_size: null for what the folder
    states.  All weights are checked as in ``load_model``.  Raises IntegrityError, UsageError.
    """
    card = verify(folder)
    layout = read_layout(folder / CONFIG)
    architecture, arguments = convnet_of(layout)
    empty = empty_convnet(architecture, arguments)
    stage = stage_at(empty, stride or (card.stride if card else None))
    size = image_size or image_size_of(layout)
    require_grid(empty, stage, size)
    require_weights_of(empty, folder / WEIGHTS, classifier_of(empty))
    # A real one, now that the weights are known to fit: some networks keep tables (of blur
    # filters, of positions) that are in no file.
    net = cut_after(build_convnet(architecture, arguments, seed=0), stage)
    weights = read_weights_of(net, folder / WEIGHTS, device)
    net.load_state_dict(weights, strict=True, assign=True)
    net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Convnet(net=net, stage=stage, **_known(folder, layout, card, size))


def load_classifier(folder: Path) -> Classifier:
    """Read a model folder with its classifier, onto the CPU, checked as in ``load_model``.

    The logits are those of ``timm.create_model("local-dir:…", pretrained=True)``.  Raises
    IntegrityError (also for names of classes that do not fit), UsageError (no classifier, or a
    network that timm cannot build).
    """
    card = verify(folder)
    layout = read_layout(folder / CONFIG)
    classes = classes_of(layout, folder / CONFIG)
    if not classes:
        raise UsageError(
            "this model has no classifier", where=str(folder), fix="use zoo.features, or fine-tune"
        )
    require_weights_of(build_as_timm(folder, "meta"), folder / WEIGHTS, _NOTHING)
    net = build_as_timm(folder, "cpu")  # a real one, as for a convnet, now that it fits
    net.load_state_dict(read_weights_of(net, folder / WEIGHTS, "cpu"), strict=True, assign=True)
    side = getattr(getattr(net, "patch_embed", None), "img_size", None)  # a ViT's own size
    size = side[0] if side else image_size_of(layout)
    labels = class_names_of(layout, folder / CONFIG).names
    known = _known(folder, layout, card, size)
    return Classifier(net=net.eval(), classes=classes, labels=labels, **known)


def count_classes(folder: Path) -> int:
    """Classes of a model folder's classifier; 0 where there is none.  Raises IntegrityError."""
    return classes_of(read_layout(folder / CONFIG), folder / CONFIG)


def read_config(folder: Path) -> ViTConfig:
    """The ViT that a model folder describes, without its weights.

    Raises IntegrityError, UsageError.
    """
    return config_of(empty_from_layout(read_layout(folder / CONFIG), folder / CONFIG))


def read_patch(folder: Path) -> int:
    """Side of a patch of the ViT that a model folder describes, plain or not, in pixels.

    Raises IntegrityError, UsageError.
    """
    vit = empty_from_layout(read_layout(folder / CONFIG), folder / CONFIG)
    return vit.patch_embed.patch_size[0]


def holds_plain_vit(folder: Path) -> bool:
    """Whether a model folder holds a plain ViT.  Raises IntegrityError."""
    try:
        read_config(folder)
    except UsageError:
        return False
    return True


def holds_convnet(folder: Path) -> bool:
    """Whether a model folder holds a convnet, and not a ViT.  Raises IntegrityError."""
    return is_convnet(read_layout(folder / CONFIG))


def read_preprocess(folder: Path) -> Preprocess:
    """How images become the input of a model folder's network, without its weights.

    The folder is checked against its record.  Raises IntegrityError, UsageError.
    """
    verify(folder)
    layout = read_layout(folder / CONFIG)
    if is_convnet(layout):
        return preprocess_of(layout, image_size_of(layout))
    return preprocess_of(layout, read_config(folder).image_size)


def _known(
    folder: Path, layout: dict[str, Any], card: Card | None, image_size: int
) -> dict[str, Any]:
    return {
        "folder": folder,
        "digest": _digest(remembered_sha256(folder / WEIGHTS), layout),
        "preprocess": preprocess_of(layout, image_size),
        "license": card.licenses.get("weights", "not stated") if card else license_of(layout),
        "card": card,
    }


def _drop_pooled_norm(vit: VisionTransformer, layout: dict[str, Any], folder: Path) -> None:
    """Take off a norm behind the pooling where it was trained with a classifier.

    It has only ever seen the mean of an image's tokens: it says nothing of a single token.
    Without a classifier it is what timm made of the final norm, and stays.
    """
    if isinstance(vit.norm, nn.Identity) and classes_of(layout, folder / CONFIG):
        vit.fc_norm = nn.Identity()


def _resize_positions(
    vit: VisionTransformer, weights: dict[str, Tensor], config: ViTConfig
) -> None:
    grid = (config.grid, config.grid)
    weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], list(grid))
    vit.pos_embed = torch.nn.Parameter(weights["pos_embed"].to("meta"))
    vit.patch_embed.set_input_size((config.image_size, config.image_size))
