"""DINO's weights: which of its files this is, and which network is in it.

Formats as DINO's ``main_dino.py`` and ``utils.MultiCropWrapper`` write them, and as released: a
full checkpoint, or the teacher's backbone alone, flat.  Weights do not say which method made them:
a file of another method with the same names and shapes cannot be told apart.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.convnet import ConvnetConfig, empty_convnet
from zoo.errors import IntegrityError, UsageError
from zoo.foreign.quarantine import unfit
from zoo.foreign.unpickle import Seen
from zoo.tensors import require_match
from zoo.vit import ViTConfig, empty_vit, sincos_positions

PART = "teacher"
"""Of a full checkpoint.  DINO evaluates and releases the teacher, the student's moving average."""

EXPECTED = (
    "one of DINO's files: a ResNet-50 backbone (318 tensors, torchvision's names, no fc), a ViT "
    "backbone (cls_token, pos_embed, patch_embed.proj, blocks.0 … blocks.11, norm), or a full "
    "checkpoint (student, teacher, optimizer, epoch, args, dino_loss)"
)

_CHECKPOINT = {"student", "teacher", "optimizer", "epoch", "args", "dino_loss"}
_CHECKPOINT_MORE = {"fp16_scaler"}  # only where it was trained in half precision

_HEADS = {192: 3, 384: 6, 768: 12}  # DINO's vit_tiny, vit_small, vit_base, by width
_DEPTH = 12

# The wrapper of multi-crop training, inside or outside that of distributed training.
_PREFIX = re.compile(r"\A(?:module\.backbone|backbone\.module|backbone|module)\.")
_HEAD = re.compile(r"(?:module\.)?head\..+")
_BLOCK = re.compile(r"blocks\.(\d{1,4})\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """Which network a file holds, and where."""

    config: ConvnetConfig | ViTConfig
    names: dict[str, str]
    """Of every tensor: in timm's network → in the file."""
    format: str
    """The kind of file, in words."""


def recognise(file: Path, seen: Seen, shapes: Mapping[str, tuple[int, ...]]) -> Recognised:
    """What the tensors of a file are: name → shape.  Raises IntegrityError for anything but DINO's.

    Names and shapes agree with the network's to the last.
    """
    if seen.odd:
        raise unfit(file, "not all of it are weights", ", ".join(seen.odd), EXPECTED)
    if not shapes:
        raise unfit(file, "no weights where DINO's are", _contents(seen), EXPECTED)
    keys = set(seen.keys)
    of_checkpoint = _CHECKPOINT <= keys <= _CHECKPOINT | _CHECKPOINT_MORE
    if seen.part and not (of_checkpoint and seen.entries == len(keys)):
        raise unfit(file, "not a checkpoint of DINO's", _contents(seen), EXPECTED)
    names = backbone_names(file, shapes) if seen.part else {name: name for name in shapes}
    found = {ours: shapes[theirs] for ours, theirs in names.items()}
    if "layer1.0.conv1.weight" in found:
        config, kind = ConvnetConfig(architecture="resnet50"), "ResNet-50"
    elif "cls_token" in found:
        config = _vit_config(file, found)
        kind = f"ViT of width {config.width}, patch {config.patch}"
    else:
        raise unfit(file, "neither a ResNet-50 nor a ViT", _contents(seen), EXPECTED)
    _require_network(file, kind, config, found)
    what = "full checkpoint, its teacher" if seen.part else "backbone file"
    return Recognised(config=config, names=names, format=f"DINO {kind}, {what}")


def backbone_names(file: Path, names: Iterable[str]) -> dict[str, str]:
    """Name in the backbone → name in the checkpoint; those of the projection head are left out.

    ``module.`` and ``backbone.`` go, each once, in whichever order they stand.  Raises
    IntegrityError where two names become one.
    """
    found: dict[str, str] = {}
    for theirs in names:
        if _HEAD.fullmatch(theirs):
            continue
        ours = _PREFIX.sub("", theirs)
        if ours in found:
            twice = f"{found[ours]} and {theirs}"
            raise unfit(file, "names that differ in a prefix only", twice, EXPECTED)
        found[ours] = theirs
    return found


def require_learned_positions(file: Path, config: ViTConfig, positions: Tensor) -> None:
    """Raise IntegrityError for MAE's fixed positions (1, 1 + P, D): DINO learns its own."""
    fixed = sincos_positions(config.width, config.grid)[:, 1:]
    if torch.allclose(positions[:, 1:].float(), fixed, atol=1e-3):
        raise unfit(file, "its positions are fixed sines, as MAE's are", "", EXPECTED)


def _vit_config(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> ViTConfig:
    """Width, depth, patch and image size from shapes; heads, which shapes cannot tell, by width."""
    positions, patch = shapes.get("pos_embed", ()), shapes.get("patch_embed.proj.weight", ())
    blocks = {int(match[1]) for name in shapes if (match := _BLOCK.match(name))}
    sizes = f"pos_embed {positions}, patch_embed.proj.weight {patch}, {len(blocks)} blocks"
    if len(positions) != 3 or len(patch) != 4 or positions[1] < 2:
        raise unfit(file, "not a plain ViT", sizes, EXPECTED)
    heads = _HEADS.get(positions[2])
    if heads is None or blocks != set(range(_DEPTH)):
        known = ", ".join(map(str, _HEADS))
        raise unfit(file, f"DINO's ViTs have width {known} and {_DEPTH} blocks", sizes, EXPECTED)
    image_size = math.isqrt(positions[1] - 1) * patch[3]
    try:
        return ViTConfig(
            width=positions[2], depth=_DEPTH, heads=heads, patch=patch[3], image_size=image_size
        )
    except UsageError as error:
        raise unfit(file, error.what, sizes, EXPECTED) from error


def _require_network(
    file: Path,
    kind: str,
    config: ConvnetConfig | ViTConfig,
    found: Mapping[str, tuple[int, ...]],
) -> None:
    convnet = isinstance(config, ConvnetConfig)
    net = empty_convnet(config.architecture, {}) if convnet else empty_vit(config)
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    try:
        require_match(file, found, expected)
    except IntegrityError as error:
        raise IntegrityError(
            f"not DINO's {kind}: {error.what.rpartition(': ')[2]}",
            where=error.where,
            fix=f"give {EXPECTED}",
        ) from error


def _contents(seen: Seen) -> str:
    if seen.kind != "dict":
        return f"a {seen.kind}"
    if not seen.entries:
        return "an empty dict"
    if seen.tensors and not seen.part:
        more = " …" if seen.tensors > len(seen.names) else ""
        return f"{seen.tensors} tensors: {', '.join(seen.names)}{more}"
    more = " …" if seen.entries > len(seen.keys) else ""
    keys = ", ".join(f"{key} ({kind})" for key, kind in seen.keys.items())
    return f"a dict of {seen.entries}: {keys}{more}"
