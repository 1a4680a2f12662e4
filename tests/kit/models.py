"""Small model folders that the tests make for themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from zoo.card import Card
from zoo.convnet import ConvnetConfig, build_convnet
from zoo.folder import save_model
from zoo.vit import ViTConfig, build_vit, empty_vit

TEACHER = ViTConfig(width=48, depth=2, heads=6, patch=8, image_size=32)
LABELS = ("ant", "bumble bee", "cow's parsley")
CONVNET = ConvnetConfig(
    architecture="resnet18", channels=(8, 12, 16, 20), layers=(1, 1, 1, 1), image_size=32
)


def make_model(
    folder: Path, config: ViTConfig = TEACHER, *, seed: int = 0, relation_heads: int | None = None
) -> Path:
    """A model folder with fresh weights; ``relation_heads`` as a distilled model records them."""
    card = Card(
        name=folder.name,
        method="mae",
        heads=config.heads,
        last_trained_block=config.depth,
        relation_heads=relation_heads,
    )
    save_model(folder, config, build_vit(config, seed=seed).state_dict(), card)
    return folder


def make_classifier(
    folder: Path,
    labels: Sequence[str] = LABELS,
    *,
    seed: int = 0,
    descriptions: Sequence[str] = (),
    **card: Any,
) -> Path:
    """A model folder as fine-tuning writes one: named classes, every weight random."""
    weights = classifier_weights(len(labels), seed=seed)
    said = {"heads": TEACHER.heads, "last_trained_block": TEACHER.depth, **card}
    record = Card(name=folder.name, method="finetune", **said)
    save_model(folder, TEACHER, weights, record, labels=labels, descriptions=descriptions)
    return folder


def classifier_weights(classes: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Of a ViT of TEACHER's size that pools its patch tokens and then norms them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.1 + (tensor.ndim == 1)
        for name, tensor in empty_vit(TEACHER, classes).state_dict().items()
    }


def make_convnet(
    folder: Path, config: ConvnetConfig = CONVNET, *, seed: int = 0, stride: int | None = None
) -> Path:
    """A model folder with a fresh convnet, trained up to ``stride`` if its card is believed."""
    card = Card(name=folder.name, method="none", heads=None, last_trained_block=None, stride=stride)
    save_model(
        folder,
        config,
        build_convnet(config.architecture, config.arguments, seed=seed).state_dict(),
        card,
    )
    return folder


def make_timm(folder: Path, architecture: str, *, seed: int = 0, **arguments: Any) -> Path:
    """A model folder as timm writes it, the network's weights random to the last one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = timm.create_model(architecture, **arguments)
        for parameter in net.parameters():  # timm begins a classifier with zeros
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    save_for_hf(net, str(folder), model_args=arguments, safe_serialization=True)
    return folder
