"""The run folder's checkpoints: written whole, verified on reading, newest valid one first.

``checkpoints/step-N/``: model, optimizer, average and best weights as safetensors, ``state.json``
and a ``manifest.json`` with the digest of each.  Safetensors do not notice a flipped bit; the
manifest does.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.optim import WeightAverage
from zoo.errors import IntegrityError, UsageError
from zoo.files import atomic_folder, atomic_json, require_space, sha256_of, sweep
from zoo.tensors import read_tensors

_STEP = re.compile(r"step-(\d+)")
_STATE, _MANIFEST = "state.json", "manifest.json"


@dataclass(kw_only=True, slots=True)
class TrainState:
    """All that makes the next step what it would have been: no random state, see ``data.py``."""

    objective: nn.Module
    optimizer: Optimizer
    average: WeightAverage | None
    best: dict[str, Tensor] | None = None
    """On rank 0, what would have been exported after the best epoch so far."""
    step: int = 0
    """Optimizer steps taken."""
    notes: dict[str, Any] = field(default_factory=dict)
    """JSON: the log's position and unfinished row, the recipe, the world."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything to save, by file."""
        files = {
            "model": dict(self.objective.state_dict()),
            "optimizer": _optimizer_tensors(self.optimizer),
        }
        if self.average:
            files["average"] = self.average.averages
        if self.best:
            files["best"] = self.best
        return files

    @property
    def size(self) -> int:
        """Bytes of ``tensors()``."""
        return sum(t.nbytes for tensors in self.tensors().values() for t in tensors.values())

    def exported(self) -> dict[str, Tensor]:
        """The objective's state as it would be exported now; a copy, on the CPU."""
        averages = self.average.averages if self.average else {}
        now = {**self.objective.state_dict(), **averages}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in now.items()}

    def load(self, files: Mapping[str, Mapping[str, Tensor]], step: int, notes: dict) -> None:
        """Take over what ``tensors()`` gave, in place.  Raises UsageError for another network's."""
        _require_same_network(self.objective.state_dict(), files["model"], step)
        self.objective.load_state_dict(files["model"], strict=True)
        _load_optimizer(self.optimizer, files["optimizer"])
        if self.average:
            # Where averaging was allowed to begin just now, it begins with the weights.
            averages = files.get("average", files["model"])
            for name, tensor in self.average.averages.items():
                tensor.copy_(averages[name])
        self.best = dict(files["best"]) if "best" in files else None
        self.step, self.notes = step, notes


def _require_same_network(
    now: Mapping[str, Tensor], saved: Mapping[str, Tensor], step: int
) -> None:
    shapes, earlier = ({n: tuple(t.shape) for n, t in d.items()} for d in (now, saved))
    differing = [name for name in shapes | earlier if shapes.get(name) != earlier.get(name)]
    if not differing:
        return
    name = differing[0]
    raise UsageError(
        f"the checkpoint is another network's: {len(differing)} of {len(shapes | earlier)} tensors "
        "differ",
        where=f"step-{step}: {name} is {earlier.get(name, 'missing')}, "
        f"the recipe's is {shapes.get(name, 'missing')}",
        fix="what shapes the network cannot change within a run: start anew (--out)",
    )


def _named_parameters(optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [
        pair
        for group in optimizer.param_groups
        for pair in zip(group["names"], group["params"], strict=True)
    ]


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in _named_parameters(optimizer)
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(_named_parameters(optimizer))
    for place, tensor in tensors.items():
        name, _, key = place.rpartition(".")  # no optimizer has a dot in its keys
        parameter = parameters[name]
        optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)


def save_checkpoint(folder: Path, state: TrainState, *, keep: int) -> Path:
    """Write ``folder/step-N`` whole, then drop all but the newest ``keep``.

    Raises DiskError; then nothing earlier is lost and no temporary stays.
    """
    files = state.tensors()

    def write(place: Path) -> None:
        for name, tensors in files.items():
            plain = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
            save_file(plain, place / f"{name}.safetensors")

    return write_checkpoint(folder, state.step, state.notes, write, size=state.size, keep=keep)


def write_checkpoint(
    folder: Path,
    step: int,
    notes: Mapping[str, Any],
    write: Callable[[Path], None],
    *,
    size: int,
    keep: int,
) -> Path:
    """``save_checkpoint`` of whatever ``write`` puts into the folder it is given.

    size: bytes of it, about.  Raises DiskError, as there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, 2 * size)
    final = folder / f"step-{step}"
    with atomic_folder(final) as temp:
        write(temp)
        atomic_json(temp / _STATE, {"step": step, "notes": notes})
        atomic_json(temp / _MANIFEST, _manifest(temp))
    for old in _newest_first(folder)[keep:]:
        # Under a name that is swept: a kill while it goes leaves no half of a checkpoint.
        going = old.with_name(f".tmp-{os.getpid()}-{old.name}")
        old.rename(going)
        shutil.rmtree(going)
    return final


def _newest_first(folder: Path) -> list[Path]:
    """By step number: neither file times nor text order can be trusted."""
    found = [(int(m[1]), p) for p in folder.glob("step-*") if (m := _STEP.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_valid(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are all what its manifest says; None where there is none.

    Damaged ones are reported and passed over.  Raises IntegrityError where all are damaged:
    starting over would hide the loss.
    """
    sweep(folder)
    damaged = []
    for path in _newest_first(folder):
        problem = _problem(path)
        if problem is None:
            return path
        damaged.append(f"{path.name}: {problem}")
        report(f"checkpoint {path.name} is damaged ({problem}): using an earlier one")
    if damaged:
        raise IntegrityError(
            "every checkpoint of this run is damaged",
            where=f"{folder}: " + "; ".join(damaged),
            fix="restore one from a backup, or start anew in another folder (--out)",
        )
    return None


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(file for file in folder.iterdir() if file.name != _MANIFEST)
    return {f.name: {"sha256": sha256_of(f), "size": f.stat().st_size} for f in files}


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        stated, found = json.loads((path / _MANIFEST).read_bytes()), _manifest(path)
        for name in sorted(stated.keys() | found.keys()):
            if name not in found:
                return f"{name} is missing"
            if stated.get(name) != found[name]:
                return f"{name} has other bytes than its manifest states"
    except (OSError, ValueError, AttributeError) as error:
        return f"unreadable: {error}"
    return None


def read_notes(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and notes of a verified checkpoint."""
    state = json.loads((path / _STATE).read_bytes())
    return state["step"], state["notes"]


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Continue from a verified checkpoint."""
    files = {file.stem: read_tensors(file) for file in path.glob("*.safetensors")}
    step, notes = read_notes(path)
    state.load(files, step, notes)
