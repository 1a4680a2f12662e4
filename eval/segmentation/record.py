"""What a run's network is, beside its recipe: enough to build it where the model is gone."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from eval.segmentation.recipe import Segmentation
from pretrain.recipe import override
from pretrain.run import RunFolder
from zoo.errors import IntegrityError, UsageError
from zoo.files import atomic_json
from zoo.images import Preprocess
from zoo.vit import ViTConfig

_FILE = "network.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A backbone's size, its inputs, where it came from, and the classes it was taught."""

    student: ViTConfig
    preprocess: Preprocess
    """Of the model: mean and deviation of what the network sees."""
    model: str
    model_digest: str
    origin: str
    """How it was pre-trained: ``tinymim``, ``mae``, …; empty where nobody says."""
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    """Colours of the classes, RGB."""


def write_network(run: RunFolder, network: Network) -> None:
    """Raises DiskError."""
    atomic_json(run.path / _FILE, asdict(network))


def read_run(path: Path) -> tuple[Segmentation, Network]:
    """The recipe and the network of a run folder.  Raises UsageError, IntegrityError."""
    recipe, network = path / "recipe.json", path / _FILE
    if not network.is_file() or not recipe.is_file():
        raise UsageError(
            "this is not the folder of a segmentation run",
            where=f"{path}: neither {recipe.name} nor {_FILE}"
            if not recipe.is_file()
            else f"{path}: no {_FILE}",
            fix="give the run folder that zoo eval MODEL ade20k-upernet named",
        )
    try:
        found = TypeAdapter(Network).validate_json(network.read_bytes())
        return _recipe(json.loads(recipe.read_bytes())), found
    except (ValueError, KeyError, TypeError, UsageError, ValidationError) as error:
        raise IntegrityError(
            "the run's record cannot be read",
            where=f"{recipe}, {network}: {(str(error).splitlines() or [''])[0]}",
            fix="restore it from a backup, or train anew in another folder (--run)",
        ) from error


def _recipe(record: dict[str, Any]) -> Segmentation:
    """The inverse of ``pretrain.recipe.as_record``."""
    plain = {k: v for k, v in record.items() if "." not in k and k != "method"}
    texts = [f"{key}={json.dumps(value)}" for key, value in record.items() if "." in key]
    return override(Segmentation(**plain), texts)
