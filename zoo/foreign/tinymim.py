"""TinyMIM's weights: its pre-trained students.

Format as its ``main_pretrain.py`` writes it: MAE's container and names, 150 tensors, no decoder.
TinyMIM trains nothing of the last block beyond its qkv, and never the final norm: those parts are
saved as they were initialised, which tells its files from MAE's.
"""

from dataclasses import dataclass, replace

import torch

from zoo.foreign import mae
from zoo.foreign.found import Format, Found, Recognised
from zoo.vit import VIT_B, VIT_S, VIT_T, ViTConfig

EXPECTED = (
    "TinyMIM's: a pre-trained student of width 192, 384 or 768, 150 tensors under the key model "
    "(TinyMIM-PT-B.pth)"
)

_NOT_STATED = "not stated (TinyMIM's repository has no licence file: all rights reserved)"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Student:
    config: ViTConfig
    """With the heads of blocks 1 … 11 in pre-training: these are what was trained."""
    relation_heads: int
    """Of block 12, whose relations were distilled: the teacher's count."""
    finetuned_heads: int
    """Of every block, where upstream goes on with these weights."""


_STUDENTS = {
    student.config.width: student
    for student in (
        _Student(config=replace(VIT_T, heads=6), relation_heads=12, finetuned_heads=3),
        _Student(config=VIT_S, relation_heads=12, finetuned_heads=6),
        _Student(config=VIT_B, relation_heads=16, finetuned_heads=12),
    )
}
_TEACHER_BLOCKS = {"mae_vit_large": 18, "mae_vit_base": 12, "mae_vit_small": 12}

_STAR = ("dist_token", "conv1x1.0.weight")  # of TinyMIM*-T, after 1000 epochs of fine-tuning


def claims(found: Found) -> bool:
    """Whether it is TinyMIM*-T, says it is TinyMIM's, or has a last block never trained."""
    if all(name in found.shapes for name in _STAR):
        return True
    if not mae.claims(found) or mae.decoder_names(found):
        return False
    stated = found.seen.options.get("model", "").startswith("tinymim")
    # A network that was never trained at all is none of TinyMIM's.
    trained = mae.is_checkpoint(found) or not _as_initialised(found, ["blocks.0.norm2"])
    return stated or (trained and _as_initialised(found, _tail(VIT_B.depth)))


def recognise(found: Found) -> Recognised:
    """Which of TinyMIM's students it is.  Raises IntegrityError for anything else."""
    if all(name in found.shapes for name in _STAR):
        raise found.unfit(
            "TinyMIM*-T as it was fine-tuned: a distillation token, 12 heads in every block and an "
            "extra layer (192 → 1280) after the last one, which a plain ViT has not",
            f"pos_embed {found.shapes.get('pos_embed', ())}, {', '.join(_STAR)}",
            fix="give the pre-trained file, TinyMIM-PT-Tstar.pth",
        )
    networks = {width: student.config for width, student in _STUDENTS.items()}
    config = mae.encoder_config(found, "TinyMIM", networks)
    if not _as_initialised(found, _tail(config.depth)):
        raise found.unfit(
            "its last block was trained beyond its qkv, which TinyMIM's code does not do: how many "
            "heads that block has cannot be told",
        )
    student, tail = _STUDENTS[config.width], _tail(config.depth)
    zeroed = [layer for layer in tail if layer.endswith(("attn.proj", "mlp.fc2"))]
    teacher, license_ = _teacher(found)
    return Recognised(
        config=config,
        names={name: name for name in found.shapes},
        format=f"TinyMIM ViT ({config.width} × {config.depth}, {config.heads} heads, "
        f"patch {config.patch}), pre-trained student",
        method="tinymim",
        licenses={"code": _NOT_STATED, "weights": _NOT_STATED, "teacher": license_},
        last_trained_block=config.depth - 1,
        relation_heads=student.relation_heads,
        fresh=_parameters(tail),
        zeroed=_parameters(zeroed),
        facts={
            "heads": f"{config.heads} in blocks 1 … {config.depth - 1} and "
            f"{student.relation_heads} in the relations of block {config.depth}, as TinyMIM's "
            "pre-training class of this width has: weights cannot tell. Upstream's fine-tuning "
            f"takes {student.finetuned_heads} in every block",
            "norm": "the final norm, never trained (weights 1, biases 0); upstream's fine-tuning "
            "drops it, and pools before a norm of its own",
            "zeroed": f"{' and '.join(zeroed)}, which the file holds as they were drawn",
            "teacher": teacher,
        },
    )


def _tail(depth: int) -> list[str]:
    """The layers that no gradient reaches: the last block's behind its qkv, and the final norm."""
    last = f"blocks.{depth - 1}"
    return [*(f"{last}.{part}" for part in ("attn.proj", "norm2", "mlp.fc1", "mlp.fc2")), "norm"]


def _as_initialised(found: Found, layers: list[str]) -> bool:
    """Whether these have the biases 0, and as norms the weights 1, of a new network.

    Exactly: without a gradient, and without weight decay (these are vectors), nothing moves them.
    """
    biases = [f"{layer}.bias" for layer in layers]
    weights = [f"{layer}.weight" for layer in layers if "norm" in layer]
    if not all(name in found.shapes for name in [*biases, *weights]):
        return False
    held = found.read([*biases, *weights])
    return not any(held[name].any() for name in biases) and all(
        torch.equal(held[name], torch.ones_like(held[name])) for name in weights
    )


def _parameters(layers: list[str]) -> tuple[str, ...]:
    return tuple(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))


def _teacher(found: Found) -> tuple[str, str]:
    """The teacher by name, and the licence of its weights, as far as the file tells."""
    options = found.seen.options
    name, weights = options.get("teacher_model", ""), options.get("teacher_path", "")
    if name or weights:
        block = _TEACHER_BLOCKS.get(name)
        at = f", block {block}" if block else ""
        of = f", weights {weights}" if weights else ", weights not stated"
        said = f"{name or 'not stated'}{at}{of} (by the options in the file)"
        is_mae = weights.startswith("mae_pretrain_vit_")
        return said, mae.STATED_LICENSE if is_mae else "not stated"
    if found.file.name == "TinyMIM-PT-B.pth":
        said = "mae_vit_large, block 18, weights mae_pretrain_vit_large.pth (what TinyMIM's author "
        return f"{said}says of a file of this name)", mae.STATED_LICENSE
    return "not stated", "not stated"


FORMAT = Format(part=mae.PART, expected=EXPECTED, claims=claims, recognise=recognise)
