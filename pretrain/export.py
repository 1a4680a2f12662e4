"""What a finished run becomes: model folders, and what a number of theirs is read beside."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.changes import read_changes
from pretrain.checkpoint import TrainState
from pretrain.index import ImageIndex
from pretrain.objective import Objective, Validated
from pretrain.recipe import Recipe, as_record
from pretrain.run import RunFolder
from pretrain.shards import ShardSet
from zoo.card import TEACHER, BaseRecord, Card, ChangeRecord, TeacherRecord
from zoo.folder import save_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """The images of a run."""

    train: ImageIndex | ShardSet
    validation: ImageIndex | None


def export_all(
    recipe: Recipe, run: RunFolder, data: Sources, objective: Objective, state: TrainState
) -> None:
    """``export/``: the last weights.  ``export-best/``, where there was validation: the best."""
    notes, changes = state.notes, read_changes(run.changes)
    # Taken before the best weights go through the same module.
    last = Exported(name=recipe.name, weights=state.exported(), validation=notes.get("validation"))
    if state.best is not None:
        validation = {**notes["best"], "chosen": "best"}
        best = Exported(name=f"{recipe.name}-best", weights=state.best, validation=validation)
        _export(recipe, run.best, data, objective, state, best, changes)
    _export(recipe, run.export, data, objective, state, last, changes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """Weights that become a model folder."""

    name: str
    weights: dict[str, Tensor]
    """Of the objective."""
    validation: dict[str, Any] | None
    """Epoch, step and scores, where there are any."""


def _export(
    recipe: Recipe,
    folder: Path,
    data: Sources,
    objective: Objective,
    state: TrainState,
    what: Exported,
    changes: list[ChangeRecord],
) -> None:
    state.objective.load_state_dict(what.weights)
    made = objective.export()
    facts = made.facts
    teacher = TeacherRecord(**facts["teacher"]) if "teacher" in facts else None
    licenses = {"code": "Apache-2.0", "weights": "not stated"}
    if teacher:
        lineage = {teacher.name: teacher.license, **teacher.ancestors}
        licenses |= {f"{TEACHER} {name}": license_ for name, license_ in lineage.items()}
    base = BaseRecord(**facts["base"]) if "base" in facts else None
    if base:
        licenses |= base.licenses
    scores = []
    if isinstance(objective, Validated) and what.validation:
        scores = objective.scores(what.validation)
    card = Card(
        name=what.name,
        method=recipe.method.name,
        heads=recipe.student.heads,
        last_trained_block=made.last_trained_block,
        fresh_parameters=list(made.fresh),
        weights="ema" if state.average else "raw",
        relation_heads=facts.get("relation_heads"),
        stride=facts.get("stride"),
        teacher=teacher,
        base=base,
        recipe=as_record(recipe),
        changes=changes,
        steps=what.validation["step"] if what.validation else state.step,
        data_fingerprint=data.train.fingerprint,
        code_version=code_version(),
        environment=environment(),
        scores=scores,
        licenses=licenses,
    )
    save_model(folder, recipe.student, made.weights, card, labels=made.labels)


def code_version() -> str:
    return f"tinyzoo {importlib.metadata.version('tinyzoo')}"


def environment(device: torch.device | None = None) -> dict[str, str]:
    """What a number should be read beside.  device: that was used; CUDA where there is any."""
    on_cuda = device.type == "cuda" if device else torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": importlib.metadata.version("timm"),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "threads": str(torch.get_num_threads()),
    }
