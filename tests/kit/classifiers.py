"""Small classifiers of ImageNet's 1000 classes, and small sets of its family to score them on."""

import json
import time
from pathlib import Path
from typing import Any

from evalsets import THREE, plain_files, val_files, write_tree
from models import make_timm
from torch import Tensor

from eval import classify
from eval.classes import synsets_of
from eval.corruptions import SEVERITIES, TYPES
from eval.predictions import load_predictions
from zoo.folder import Classifier

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
SHARD = 7


def make_classifier(folder: Path, *, seed: int = 0, classes: int = 1000, **changes: Any) -> Path:
    """A model folder of timm's: a tiny ViT with random weights."""
    arguments = {**SMALL, "num_classes": classes, **changes}
    return make_timm(folder, "vit_tiny_patch16_224", seed=seed, **arguments)


def small_shards() -> None:
    """So that a set of thirty images has several, and two ranks have some each."""
    classify.SHARD = SHARD


def make_val(root: Path) -> Path:
    """30 validation images of three classes, in class folders."""
    return write_tree(root, val_files())


def make_family(root: Path) -> Path:
    """Every set of ImageNet's family, by the name it unpacks under; none of them complete."""
    make_val(root / "ILSVRC2012" / "val")
    write_tree(root / "imagenetv2-matched-frequency-format-val", plain_files(("0", "2", "10")))
    for subset in ("a", "r"):
        write_tree(root / f"imagenet-{subset}", plain_files(synsets_of(subset)[:3]))
    write_tree(root / "sketch", plain_files(THREE))
    write_tree(root / "ImageNet-C", corrupted_files())
    return root


def corrupted_files(types: tuple[str, ...] = TYPES) -> dict[str, bytes]:
    """``TYPE/SEVERITY/SYNSET/ILSVRC2012_val_*.JPEG``: four images in each part."""
    some = dict(list(val_files(THREE[:2]).items())[8:12])
    return {
        f"{kind}/{severity}/{name}": data
        for kind in types
        for severity in SEVERITIES
        for name, data in some.items()
    }


def slow_small_shards() -> None:
    """The same, with time between the batches in which a process may be killed."""
    small_shards()
    forward = classify.logits_of

    def slowly(model: Classifier, inputs: Tensor, dtype: str) -> Tensor:
        time.sleep(0.05)
        return forward(model, inputs, dtype)

    classify.logits_of = slowly


def rows(out: Path) -> dict[str, tuple]:
    """What every result file says but for clocks, and what each image was taken for."""
    found = {}
    for file in sorted(out.glob("*.json")):
        record = json.loads(file.read_text())
        for clock in ("seconds", "ranks", "environment"):
            record.pop(clock)
        guesses = load_predictions(out / record["predictions"])
        columns = guesses.samples, guesses.labels, guesses.top5, guesses.confidence
        found[file.name] = (record, *(column.tolist() for column in columns))
    return found
