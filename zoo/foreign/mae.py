"""MAE's weights: its pre-trained encoders, with or without the decoder.

Formats as MAE's ``main_pretrain.py`` writes them, and as released: a dict with the encoder's
tensors under ``model`` (``mae_pretrain_vit_{base,large,huge}.pth``), or with the decoder's among
them (the files for its visualisation, and its training checkpoints).  Weights do not say which
method made them: an encoder of another method in the same container cannot be told apart, unless
its positions are learned.
"""

import re
from collections.abc import Mapping

from zoo.foreign.found import Format, Found, Recognised, has_fixed_positions, require_network
from zoo.vit import VIT_B, VIT_H, VIT_L, ViTConfig

PART = "model"

EXPECTED = (
    "MAE's: a pre-trained encoder of ViT-B, L or H under the key model, with or without its "
    "decoder (mae_pretrain_vit_large.pth, mae_visualize_vit_large.pth)"
)

STATED_LICENSE = "CC-BY-NC-4.0 as MAE states for its release (the file's origin was not checked)"

_NETWORKS = {config.width: config for config in (VIT_B, VIT_L, VIT_H)}

_TRAINING = {"optimizer", "epoch", "scaler", "args"}  # beside the weights, in a checkpoint
_LAYER = r"(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])"
_DECODER = re.compile(
    r"mask_token|decoder_pos_embed|"
    rf"decoder_(?:embed|norm|pred|blocks\.\d{{1,3}}\.{_LAYER})\.(?:weight|bias)"
)
_CLASSIFIER = re.compile(r"(?:head|head_dist|fc_norm)\..+|dist_token")


def claims(found: Found) -> bool:
    """Whether the tensors stand under ``model``."""
    return found.seen.part == PART


def recognise(found: Found) -> Recognised:
    """Which of MAE's encoders it is.  Raises IntegrityError for anything else.

    Names and shapes agree with the network's to the last, the decoder aside.
    """
    config = encoder_config(found, "MAE", _NETWORKS)
    left_out = sorted(decoder_names(found))
    size = f"{config.width} × {config.depth}, {config.heads} heads, patch {config.patch}"
    decoder = f"with decoder: its {len(left_out)} tensors are left out"
    return Recognised(
        config=config,
        names={name: name for name in found.shapes if name not in left_out},
        format=f"MAE ViT ({size}), " + (decoder if left_out else "encoder only"),
        method="mae",
        licenses={"code": "CC-BY-NC-4.0", "weights": STATED_LICENSE},
        last_trained_block=config.depth,
        facts={
            "heads": f"{config.heads}, as MAE's class of this width has: weights cannot tell",
            "norm": "the final norm, trained with the encoder; it stands before any pooling "
            "(MAE's fine-tuning drops it, and pools before a norm of its own)",
        },
    )


def decoder_names(found: Found) -> set[str]:
    """The tensors of MAE's decoder, which nothing but pre-training needs."""
    return {name for name in found.shapes if _DECODER.fullmatch(name)}


def is_checkpoint(found: Found) -> bool:
    """Whether all that MAE's training writes stands beside the weights."""
    return found.seen.keys.keys() >= _TRAINING


def encoder_config(found: Found, whose: str, networks: Mapping[int, ViTConfig]) -> ViTConfig:
    """The network of a pre-trained encoder in MAE's container, by its width.

    Raises IntegrityError for another container, a fine-tuned classifier, a width that ``networks``
    lacks, other names or shapes, and positions that are not MAE's fixed ones.
    """
    seen, shapes = found.seen, found.shapes
    if not (seen.keys.keys() <= _TRAINING | {PART} and seen.entries == len(seen.keys)):
        raise found.unfit(f"not a file of {whose}'s", found.contents)
    refuse_classifier(found)
    positions = shapes.get("pos_embed", ())
    config = networks.get(positions[-1] if positions else 0)
    if config is None:
        known = ", ".join(map(str, networks))
        what = f"{whose}'s ViTs have width {known}; how many heads another has cannot be told"
        raise found.unfit(what, f"pos_embed {positions}")
    decoder = decoder_names(found)
    own = {name: shape for name, shape in shapes.items() if name not in decoder}
    require_network(found, f"{whose}'s ViT of width {config.width}", config, own)
    if not has_fixed_positions(config, found.read(["pos_embed"])["pos_embed"]):
        raise found.unfit(f"its positions are not the fixed sines of {whose}'s pre-training")
    return config


def refuse_classifier(found: Found) -> None:
    """Raise IntegrityError for a network that was fine-tuned for classification.

    Its pooled features go through a norm of their own, behind the pooling, in place of the final
    norm: another network than a model folder holds.
    """
    head = sorted(name for name in found.shapes if _CLASSIFIER.fullmatch(name))
    if head:
        raise found.unfit(
            "a classifier, fine-tuned with the code of MAE, TinyMIM or another",
            ", ".join(head),
            fix="give the pre-trained file it was fine-tuned from",
        )


FORMAT = Format(part=PART, expected=EXPECTED, claims=claims, recognise=recognise)
