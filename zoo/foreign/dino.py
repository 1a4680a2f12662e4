"""DINO's weights: which of its files this is, and which network is in it.

Formats as DINO's ``main_dino.py`` and ``utils.MultiCropWrapper`` write them, and as released: a
full checkpoint, or the teacher's backbone alone, flat.  Weights do not say which method made them:
a file of another method with the same names and shapes cannot be told apart.
"""

import math
import re
from collections.abc import Iterable

from zoo.convnet import ConvnetConfig
from zoo.errors import UsageError
from zoo.foreign.found import (
    Format,
    Found,
    Recognised,
    Shapes,
    has_fixed_positions,
    require_network,
)
from zoo.vit import ViTConfig

PART = "teacher"
"""Of a full checkpoint.  DINO evaluates and releases the teacher, the student's moving average."""

EXPECTED = (
    "DINO's: a ResNet-50 backbone (318 tensors, torchvision's names, no fc), a ViT "
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


_LICENSES = {
    "code": "Apache-2.0",
    "weights": "Apache-2.0 as DINO states for its release (the file's origin was not checked)",
}


def claims(found: Found) -> bool:
    """Whether it is a flat file, or has a teacher among other things."""
    return found.seen.part in ("", PART)


def recognise(found: Found) -> Recognised:
    """What the tensors of a file are.  Raises IntegrityError for anything but DINO's.

    Names and shapes agree with the network's to the last.
    """
    seen, shapes = found.seen, found.shapes
    keys = set(seen.keys)
    of_checkpoint = _CHECKPOINT <= keys <= _CHECKPOINT | _CHECKPOINT_MORE
    if seen.part and not (of_checkpoint and seen.entries == len(keys)):
        raise found.unfit("not a checkpoint of DINO's", found.contents)
    names = backbone_names(found, shapes) if seen.part else {name: name for name in shapes}
    own = {ours: shapes[theirs] for ours, theirs in names.items()}
    if "layer1.0.conv1.weight" in own:
        config, kind = ConvnetConfig(architecture="resnet50"), "ResNet-50"
    elif "cls_token" in own:
        config = _vit_config(found, own)
        kind = f"ViT of width {config.width}, patch {config.patch}"
    else:
        raise found.unfit("neither a ResNet-50 nor a ViT", found.contents)
    require_network(found, f"DINO's {kind}", config, own)
    if isinstance(config, ViTConfig):
        _require_learned_positions(found, config, names["pos_embed"])
    what = "full checkpoint, its teacher" if seen.part else "backbone file"
    return Recognised(
        config=config,
        names=names,
        format=f"DINO {kind}, {what}",
        method="dino",
        licenses=dict(_LICENSES),
        weights="ema",  # the teacher; DINO's backbone files are the teacher's too
        last_trained_block=config.depth if isinstance(config, ViTConfig) else None,
    )


def backbone_names(source: Found, names: Iterable[str]) -> dict[str, str]:
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
            raise source.unfit("names that differ in a prefix only", twice)
        found[ours] = theirs
    return found


def _require_learned_positions(found: Found, config: ViTConfig, name: str) -> None:
    """Raise IntegrityError for MAE's fixed positions: DINO learns its own."""
    if has_fixed_positions(config, found.read([name])[name]):
        raise found.unfit("its positions are fixed sines, as MAE's are, and not in MAE's container")


def _vit_config(found: Found, shapes: Shapes) -> ViTConfig:
    """Width, depth, patch and image size from shapes; heads, which shapes cannot tell, by width."""
    positions, patch = shapes.get("pos_embed", ()), shapes.get("patch_embed.proj.weight", ())
    blocks = {int(match[1]) for name in shapes if (match := _BLOCK.match(name))}
    sizes = f"pos_embed {positions}, patch_embed.proj.weight {patch}, {len(blocks)} blocks"
    if len(positions) != 3 or len(patch) != 4 or positions[1] < 2:
        raise found.unfit("not a plain ViT", sizes)
    heads = _HEADS.get(positions[2])
    if heads is None or blocks != set(range(_DEPTH)):
        known = ", ".join(map(str, _HEADS))
        raise found.unfit(f"DINO's ViTs have width {known} and {_DEPTH} blocks", sizes)
    image_size = math.isqrt(positions[1] - 1) * patch[3]
    try:
        return ViTConfig(
            width=positions[2], depth=_DEPTH, heads=heads, patch=patch[3], image_size=image_size
        )
    except UsageError as error:
        raise found.unfit(error.what, sizes) from error


FORMAT = Format(part=PART, expected=EXPECTED, claims=claims, recognise=recognise)
