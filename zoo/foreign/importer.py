"""``zoo import``: another project's weights become a model folder, checked to the last tensor."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.card import Card, read_card
from zoo.errors import IntegrityError, UsageError
from zoo.files import is_plain_name, safe_join, sha256_of, sweep
from zoo.folder import CONFIG, RECORD, WEIGHTS, save_model, verify
from zoo.foreign.formats import EXPECTED, PARTS, recognise
from zoo.foreign.found import Found, Recognised
from zoo.foreign.quarantine import Admitted, admitted, require_pickle
from zoo.layout import read_layout
from zoo.tensors import as_fp32, read_shapes, read_tensors, require_finite


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
        size = f"{self.tensors} tensors, {self.parameters / 1e6:.1f} M numbers"
        return "\n".join(
            [
                f"model folder: {self.folder}" + ("" if self.new else "  (imported before)"),
                f"recognised:   {self.format}: {size}",
                f"source:       sha256 {self.source_sha256}",
                f"in Python:    zoo.load({str(self.folder)!r})",
                f"as a teacher: method.teacher.source={self.folder}",
            ]
        )


def import_file(file: Path, name: str, out: Path = Path("models")) -> Imported:
    """Make the model folder ``out / name`` of another project's file; all of it or nothing.

    Importing the same file again changes nothing.  Raises UsageError (no file, a name that is
    none, another model of this name), IntegrityError (the file is of no known format, is damaged
    or unsafe), DiskError.
    """
    folder = _folder_for(name, out)
    require_pickle(file, EXPECTED)
    sha256 = sha256_of(file)
    if folder.exists():
        _require_same_import(folder, sha256)
        return _imported(folder, new=False)
    with admitted(file, PARTS, EXPECTED) as held:
        found = _found(file, held)
        recognised = recognise(found)
        weights = _weights(found, recognised)
        card = _card(file, sha256, name, recognised)
        sweep(out)
        save_model(folder, recognised.config, weights, card)
    return _imported(folder, new=True)


def _found(file: Path, held: Admitted) -> Found:
    def read(names: Iterable[str]) -> dict[str, Tensor]:
        assert held.tensors is not None, "a file without tensors has no names to read"
        return read_tensors(held.tensors, names)

    return Found(
        file=file,
        seen=held.seen,
        shapes=read_shapes(held.tensors) if held.tensors else {},
        read=read,
        expected=EXPECTED,
    )


def _folder_for(name: str, out: Path) -> Path:
    try:
        if is_plain_name(name):
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


def _weights(found: Found, what: Recognised) -> dict[str, Tensor]:
    """The network's own tensors: weights of any float type as fp32, counters as int64."""
    stored = found.read(what.names.values())
    named = {ours: stored[theirs] for ours, theirs in what.names.items()}
    counters = {n: t for n, t in named.items() if n.endswith("num_batches_tracked")}
    weights = as_fp32(found.file, {n: t for n, t in named.items() if n not in counters})
    odd = [
        f"{name} is {tensor.dtype}"
        for name, tensor in counters.items()
        if tensor.dtype != torch.int64
    ]
    if odd:
        raise found.unfit("counters that are no whole numbers", ", ".join(odd))
    require_finite(found.file, weights)
    return {**named, **weights} | {name: torch.zeros_like(weights[name]) for name in what.zeroed}


def _card(file: Path, sha256: str, name: str, what: Recognised) -> Card:
    return Card(
        name=name,
        method=what.method,
        heads=what.config.heads,
        last_trained_block=what.last_trained_block,
        fresh_parameters=list(what.fresh),
        weights=what.weights,
        relation_heads=what.relation_heads,
        licenses=what.licenses,
        # Only the name, and of it only what can stand in Markdown: no path of somebody's machine.
        source={
            "file": re.sub(r"[^A-Za-z0-9_.+-]", "_", file.name)[:200],
            "sha256": sha256,
            "format": what.format,
            **what.facts,
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
