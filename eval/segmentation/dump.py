"""A run as a configuration file that mmsegmentation's own tools train and test with."""

from pathlib import Path
from pprint import pformat

import torch

from eval.segmentation.config import Setting, whole_config
from eval.segmentation.plan import Task
from eval.segmentation.train import require_shared
from eval.segmentation.weights import backbone_weights
from zoo.errors import UsageError
from zoo.files import atomic_write, disk_errors


def dump(task: Task, place: Path, *, ranks: int) -> dict[str, str]:
    """Write ``place`` (.py) and beside it the backbone's weights (.pth); returns where they are.

    ranks: GPUs that will train, which share the batch.  Raises UsageError, DiskError.
    """
    if place.suffix != ".py":
        raise UsageError(
            "a configuration of mmengine's is a Python file",
            where=f"--dump-config {place}",
            fix=f"write --dump-config {place.with_suffix('.py')}",
        )
    recipe = task.recipe
    require_shared(recipe.training.global_batch, ranks)
    weights = place.with_name(f"{place.stem}-backbone.pth").absolute()
    tensors = backbone_weights(
        task.model.config,
        None if recipe.from_scratch else task.model,
        backbone=recipe.method.backbone,
        grid=recipe.method.crop // task.model.config.patch,
        seed=recipe.training.seed,
    )
    with disk_errors(weights):
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, weights)
    setting = Setting(network=task.network(), ranks=ranks, on_cuda=True, weights=weights)
    config = whole_config(recipe, setting, task.train, task.val)
    lines = [f"{key} = {pformat(value, sort_dicts=False)}" for key, value in config.items()]
    atomic_write(place, "\n".join(lines) + "\n")
    return {"configuration": str(place), "weights": str(weights)}
