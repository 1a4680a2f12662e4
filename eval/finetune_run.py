"""``zoo finetune``: a model and a folder of labelled images in, a classifier and a page out."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.finetune import require_no_head, standard_error
from eval.finetune_page import write_page
from eval.finetune_plan import plan_recipe, val_share
from pretrain.checkpoint import newest_valid, read_notes
from pretrain.data import open_source, require_same_classes
from pretrain.distributed import choose_device
from pretrain.index import ImageIndex, open_index
from pretrain.launch import pretrain
from pretrain.recipe import Recipe, override
from pretrain.run import RunFolder
from pretrain.split import make_split, read_split, write_split
from zoo.catalog import folder_here
from zoo.errors import DataError, UsageError
from zoo.files import is_there, typed_path
from zoo.folder import holds_convnet, read_config
from zoo.hub import locate

SPLIT_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is to be run, and where."""

    recipe: Recipe
    run: RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What came of it."""

    export: Path
    """The classifier after the last epoch."""
    best: Path
    """After the epoch that did best on the very images it is judged by."""
    page: Path
    images: int
    """For validation."""
    last: dict[str, Any]
    """Epoch, step and scores."""
    best_validation: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {
            "export": str(self.export),
            "export_best": str(self.best),
            "page": str(self.page),
            "validation_images": self.images,
            "standard_error": standard_error(self.last["scores"]["top1"], self.images),
            "last": self.last,
            "best": self.best_validation,
        }

    def text(self) -> str:
        last, best = self.last["scores"]["top1"], self.best_validation["scores"]["top1"]
        error, epoch = standard_error(last, self.images), self.best_validation["epoch"]
        return "\n".join(
            [
                f"top-1 {last:.2f} ± {error:.2f} %  last epoch, n = {self.images:,}",
                f"top-1 {best:.2f} %  best epoch ({epoch:g}), chosen on the same images",
                f"model folder: {self.export}",
                f"its best:     {self.best}",
                f"page:         {self.page}",
            ]
        )


def plan_task(
    model: str,
    data: Path,
    *,
    overrides: list[str],
    out: Path | None = None,
    from_scratch: bool = False,
    new_head: bool = False,
    reindex: bool = False,
    ranks: int = 1,
    write: bool = True,
) -> Task:
    """Look at model and data, set validation images aside where there are none, and plan.

    write: also write down which these are, without which the plan cannot be run.  Raises
    UsageError, DataError, IntegrityError, NetworkError, DiskError.
    """
    folder, data = locate(model), typed_path(data).resolve()
    if holds_convnet(folder):
        raise UsageError(
            "only plain ViTs are fine-tuned here, and this is a convnet",
            where=str(folder),
            fix="give a ViT: zoo list shows them",
        )
    student = read_config(folder)
    kind = "scratch" if from_scratch else "finetune"
    name = slug(f"{kind}-{name_of(folder, model)}-{data.name}")
    run = RunFolder((out or Path("runs") / name).absolute())
    whole = _open_labelled(data, reindex=reindex)
    new_head = new_head or from_scratch
    require_no_head(folder, len(whole.classes), new_head=new_head)
    source, validation, images = _sources(data, whole, run, write=write)
    recipe = plan_recipe(
        name,
        student=student,
        init=None if from_scratch else lasting_name(folder, model),
        source=source,
        validation=validation,
        images=images,
        classes=len(whole.classes),
        new_head=new_head,
        ranks=ranks,
    )
    return Task(recipe=_warmed(override(recipe, overrides), overrides), run=run)


def _warmed(recipe: Recipe, overrides: list[str]) -> Recipe:
    """With a warm-up that fits a run made shorter: a tenth of it, unless that was said too."""
    training = recipe.training
    if any(text.startswith("training.warmup_") for text in overrides):
        return recipe
    warmup = min(training.warmup_epochs, training.epochs / 10)
    return replace(recipe, training=replace(training, warmup_epochs=warmup))


def finetune(task: Task, *, device: str = "auto") -> Report | None:
    """Run it, or continue it; None on every rank but the first.  Raises any ZooError."""
    pretrain(task.recipe, task.run.path, device=device)
    if int(os.environ.get("RANK", "0")):
        return None
    validation = open_source(task.recipe.data.validation or "")
    path = newest_valid(task.run.checkpoints, lambda _: None)
    assert path is not None, "the run has just ended with one"
    _, notes = read_notes(path)
    page = write_page(task.run, task.recipe, validation, notes, device=choose_device(device))
    return Report(
        export=task.run.export,
        best=task.run.best,
        page=page,
        images=len(validation),
        last=notes["validation"],
        best_validation=notes["best"],
    )


def _open_labelled(data: Path, *, reindex: bool) -> ImageIndex:
    """The images to train on, or to take both kinds from.  Raises DataError."""
    parted = data / "train"
    if not parted.is_dir() and (data / "val").is_dir():
        raise DataError(
            "there is a val/ folder and no train/",
            where=str(data),
            fix="give a folder that holds both, or one with the class folders themselves",
        )
    index = open_index(parted if parted.is_dir() else data, reindex=reindex)
    if "." in index.classes:
        loose = int((index.labels == index.classes.index(".")).sum())
        raise DataError(
            f"{loose:,} images lie beside the class folders, and are of no class",
            where=str(index.root),
            fix="move them into a class folder, or away",
        )
    return index


def _sources(data: Path, whole: ImageIndex, run: RunFolder, *, write: bool) -> tuple[str, str, int]:
    """Where a recipe finds images to train on and to validate with; how many the former are."""
    if (data / "train").is_dir() and (data / "val").is_dir():
        require_same_classes(whole, open_index(data / "val"))
        return f"folder:{data / 'train'}", f"folder:{data / 'val'}", len(whole)
    place = run.path / "split.json"
    if is_there(place) and any(run.checkpoints.glob("step-*")):
        split = read_split(place)
        if split.root != str(whole.root):
            raise UsageError(
                f"this folder's run began with other images: {split.root}",
                where=str(run.path),
                fix="give the same data to continue, or another folder with --out",
            )
    else:
        split = make_split(whole, share=val_share(len(whole)), seed=SPLIT_SEED)
        if write:
            write_split(split, place)
    return f"split:{place}#train", f"split:{place}#val", len(split.train)


def name_of(folder: Path, model: str) -> str:
    """A model's own name: of its folder, or of the run that it is the export of."""
    if not is_there(typed_path(model)):
        return model
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name.startswith("export") else resolved.name


def lasting_name(folder: Path, model: str) -> str:
    """What leads to the model from any current directory."""
    here = is_there(typed_path(model)) or folder_here(model)
    return str(folder.resolve()) if here else model


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:100]
