"""``zoo import``: another project's weights become a model folder, checked to the last tensor."""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.card import Card, read_card
from zoo.errors import IntegrityError, UsageError
from zoo.files import safe_join, sha256_of, sweep
from zoo.folder import CONFIG, RECORD, WEIGHTS, save_model, verify
from zoo.foreign import dino
from zoo.foreign.quarantine import admitted, require_pickle, unfit
from zoo.layout import read_layout
from zoo.tensors import as_fp32, read_shapes, read_tensors, require_finite
from zoo.vit import ViTConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_LICENSES = {
    "code": "Apache-2.0",
    "weights": "Apache-2.0 as DINO states for its release (the file's origin was not checked)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import left behind."""

    folder: Path
    new: bool
    """False where the same file had been imported before."""
    format: str
    """What the file was recognised as."""
    architecture: str
    """timm's name."""
    tensors: int
    parameters: int
    """Numbers in all tensors, counters and statistics of normalisation included."""
    digest: str
    """The model's."""
    source_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {**asdict(self), "folder": str(self.folder)}

    def text(self) -> str:
        """What it is and what to do with it."""
        is_vit = self.architecture.startswith("vit_")
        load = "zoo.folder.load_model" if is_vit else "zoo.folder.load_convnet"
        size = f"{self.tensors} tensors, {self.parameters / 1e6:.1f} M numbers"
        return "\n".join(
            [
                f"model folder: {self.folder}" + ("" if self.new else "  (imported before)"),
                f"recognised:   {self.format}: {size}",
                f"source:       sha256 {self.source_sha256}",
                f"in Python:    {load}(Path({str(self.folder)!r}))",
                f"as a teacher: method.teacher.source={self.folder}",
            ]
        )


def import_file(file: Path, name: str, out: Path = Path("models")) -> Imported:
    """Make the model folder ``out / name`` of one of DINO's files; all of it or nothing.

    Importing the same file again changes nothing.  Raises UsageError (no file, a name that is
    none, another model of this name), IntegrityError (the file is not DINO's, is damaged or
    unsafe), DiskError.
    """
    folder = _folder_for(name, out)
    require_pickle(file, dino.EXPECTED)
    sha256 = sha256_of(file)
    if folder.exists():
        _require_same_import(folder, sha256)
        return _imported(folder, new=False)
    with admitted(file, dino.PART, dino.EXPECTED) as found:
        shapes = read_shapes(found.tensors) if found.tensors else {}
        recognised = dino.recognise(file, found.seen, shapes)
        weights = _weights(file, found.tensors, recognised)
        card = _card(file, sha256, name, recognised)
        sweep(out)
        save_model(folder, recognised.config, weights, card)
    return _imported(folder, new=True)


def _folder_for(name: str, out: Path) -> Path:
    try:
        if _NAME.fullmatch(name):
            return safe_join(out, name)
    except IntegrityError:
        pass  # a name of a device, or a link out of the folder
    raise UsageError(
        f"not a name for a model: {name[:120]!r}",
        where="--as",
        fix="use letters, digits, dots, dashes and underscores, such as dino-rn50",
    )


def _require_same_import(folder: Path, sha256: str) -> None:
    """Raise unless the folder is an intact import of a file of this sha256."""
    record = folder / RECORD
    try:
        if record.is_file() and read_card(record).source.get("sha256") == sha256:
            verify(folder)
            return
    except IntegrityError as error:
        raise IntegrityError(
            f"a model of this name is there already, damaged: {error.what}",
            where=error.where,
            fix="remove the folder and import again, or choose another name with --as",
        ) from error
    raise UsageError(
        "another model has this name already",
        where=str(folder),
        fix="choose another name with --as or another place with --out, or remove the folder",
    )


def _weights(file: Path, tensors: Path | None, what: dino.Recognised) -> dict[str, Tensor]:
    """The network's own tensors: weights of any float type as fp32, counters as int64."""
    assert tensors is not None, "recognise() admits no file without tensors"
    stored = read_tensors(tensors, what.names.values())
    named = {ours: stored[theirs] for ours, theirs in what.names.items()}
    counters = {n: t for n, t in named.items() if n.endswith("num_batches_tracked")}
    weights = as_fp32(file, {n: t for n, t in named.items() if n not in counters})
    odd = [
        f"{name} is {tensor.dtype}"
        for name, tensor in counters.items()
        if tensor.dtype != torch.int64
    ]
    if odd:
        raise unfit(file, "counters that are no whole numbers", ", ".join(odd), dino.EXPECTED)
    require_finite(file, weights)
    if isinstance(what.config, ViTConfig):
        dino.require_learned_positions(file, what.config, weights["pos_embed"])
    return {**named, **weights}


def _card(file: Path, sha256: str, name: str, what: dino.Recognised) -> Card:
    vit = what.config if isinstance(what.config, ViTConfig) else None
    return Card(
        name=name,
        method="dino",
        heads=vit and vit.heads,
        last_trained_block=vit and vit.depth,
        weights="ema",  # the teacher; DINO's backbone files are the teacher's too
        licenses=dict(_LICENSES),
        # Only the name, and of it only what can stand in Markdown: no path of somebody's machine.
        source={
            "file": re.sub(r"[^A-Za-z0-9_.+-]", "_", file.name)[:200],
            "sha256": sha256,
            "format": what.format,
        },
    )


def _imported(folder: Path, *, new: bool) -> Imported:
    card = read_card(folder / RECORD)
    shapes = read_shapes(folder / WEIGHTS)
    return Imported(
        folder=folder,
        new=new,
        format=card.source["format"],
        architecture=read_layout(folder / CONFIG)["architecture"],
        tensors=len(shapes),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        digest=card.digest,
        source_sha256=card.source["sha256"],
    )
