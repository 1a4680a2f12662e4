"""Training by mmengine's Runner, in a run folder: begin, or continue, up to the last iteration."""

import contextlib
import gc
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from mmseg.registry import MODELS
from torch import Tensor, nn

from eval.segmentation.between import STATE, Between, Job, Steps, bare
from eval.segmentation.config import (
    Setting,
    dataset,
    loader,
    network,
    optimization,
    train_pipeline,
)
from eval.segmentation.packages import quiet
from eval.segmentation.plan import Task
from eval.segmentation.recipe import Segmentation
from eval.segmentation.record import Network, write_network
from eval.segmentation.weights import backbone_weights, require_taken
from pretrain.changes import refuse_changes
from pretrain.checkpoint import newest_valid, read_notes
from pretrain.distributed import World, lost_rank
from pretrain.export import environment
from pretrain.log import RunLog
from pretrain.recipe import differences
from pretrain.run import RunFolder
from pretrain.signals import StopSignals
from zoo.errors import DataError, IntegrityError, UsageError
from zoo.files import disk_errors

DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError)
"""What reading a file that is no checkpoint of ours ends with."""


def fit(task: Task, world: World, progress: Steps) -> Path:
    """Train to the end, or the rest of the way; returns the last checkpoint.

    Raises UsageError, DataError, IntegrityError, DivergedError, PreemptedError, DiskError,
    LostRankError.
    """
    require_possible(task.recipe, world, depth=task.model.config.depth)
    said: list[str] = []
    path = world.from_main(_newest(task.run, said) if world.is_main else None)
    step, notes = read_notes(path) if path else (0, {})
    notes = _notes(task, world, notes, said)
    if world.is_main:
        write_network(task.run, task.network())
    progress.step = step
    if step < task.recipe.training.iterations:
        with StopSignals() as signals, contextlib.closing(_log(task, world, step, notes)) as log:
            for line in [*said, f"continuing from iteration {step:,}"] if step else said:
                log.say(line)
            job = Job(
                recipe=task.recipe,
                run=task.run,
                world=world,
                val=task.val,
                log=log,
                signals=signals,
                notes=notes,
                progress=progress,
            )
            _train(task, world, job, path)
        path = world.from_main(_newest(task.run, said) if world.is_main else None)
    assert path is not None, "the run has just ended with one"
    return path


def load_network(recipe: Segmentation, made: Network, checkpoint: Path) -> nn.Module:
    """The network of a verified checkpoint, in eval mode, on the CPU.  Raises IntegrityError."""
    with quiet():
        net = revert_sync_batchnorm(MODELS.build(network(recipe, Setting(network=made))))
    net.load_state_dict(read_state(checkpoint)["state_dict"], strict=True)
    return net.eval()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """mmengine's state, read without running anything of it.

    Raises IntegrityError: mmengine itself would go on to unpickle whatever is there.
    """
    try:
        state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
        if not isinstance(state["state_dict"], dict):
            raise ValueError("its weights are no table of tensors")
        return state
    except DAMAGE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise IntegrityError(
            "a checkpoint that holds more than tensors and plain values",
            where=f"{checkpoint / STATE}: {why}",
            fix="remove this checkpoint: an earlier one is used in its place",
        ) from error


def require_shared(batch: int, ranks: int) -> None:
    """Raise UsageError for a batch that the ranks cannot share evenly."""
    if batch % ranks:
        raise UsageError(
            f"{batch} crops cannot be shared by {ranks} ranks",
            where="training.global_batch",
            fix=f"choose a multiple of {ranks}",
        )


def require_possible(recipe: Segmentation, world: World, *, depth: int) -> None:
    """Raise UsageError for what mmengine would fail at in its own words, or train on silently."""
    training = recipe.training
    on_cuda = world.device.type == "cuda"
    require_shared(training.global_batch, world.size)
    if world.size > 1 and recipe.method.taps[-1] < depth:
        raise UsageError(
            f"blocks behind the last tap, {recipe.method.taps[-1]} of {depth}, get no gradient, "
            "which several ranks cannot have",
            where="method.taps",
            fix=f"read the last block, {depth}, too; or train on one rank",
        )
    if training.global_batch == 1 or (
        not on_cuda and training.global_batch == world.size and world.size > 1
    ):
        raise UsageError(
            "batch normalisation needs two crops or more: a pooled map of one crop is one number",
            where=f"training.global_batch={training.global_batch} on {world.size} rank(s); "
            "SyncBN counts over ranks on CUDA only",
            fix=f"set training.global_batch={2 * world.size} or more",
        )
    if training.precision != "float32" and not on_cuda:
        raise UsageError(
            f"mmengine trains in {training.precision} on CUDA only",
            where="training.precision",
            fix="set training.precision=float32",
        )
    if get_device() != world.device.type:
        raise UsageError(
            f"mmengine would train on {get_device()}, which it takes wherever it is",
            where=f"--device {world.device.type}",
            fix="hide it: CUDA_VISIBLE_DEVICES= zoo eval …",
        )


def _scratch(run: RunFolder) -> Path:
    """What mmengine writes beside what we ask it for."""
    return run.path / ".mmengine"


def _newest(run: RunFolder, said: list[str]) -> Path | None:
    return newest_valid(run.checkpoints, said.append)


def _log(task: Task, world: World, step: int, notes: dict[str, Any]) -> RunLog:
    return RunLog(
        task.run.path,
        offset=notes.get("log_bytes", 0),
        step=step,
        steps=task.recipe.training.iterations,
        batch=task.recipe.training.global_batch,
        active=world.is_main,
    )


def _notes(task: Task, world: World, earlier: dict[str, Any], said: list[str]) -> dict[str, Any]:
    """What checkpoints will carry; refuses to continue a run that began otherwise."""
    identity = {
        "model_digest": task.model.digest,
        "train_fingerprint": task.train.fingerprint,
        "val_fingerprint": task.val.fingerprint,
        "ranks": world.size,
    }
    trained_on = {
        "images": len(task.train),
        "complete": task.train.complete,
        "missing": task.train.missing,
    }
    now = environment(world.device)
    if earlier:
        refuse_changes(task.run.path, earlier["identity"], identity)
        if changed := differences(earlier["environment"], now):
            said.append("the environment has changed: " + "; ".join(changed))
    # Each rank counts what it skips; rank 0 goes on from the sum.
    skipped = earlier.get("skipped_crops", 0) if world.is_main else 0
    facts = {"identity": identity, "environment": now, "trained_on": trained_on}
    return {**earlier, **facts, "skipped_crops": skipped}


def _train(task: Task, world: World, job: Job, checkpoint: Path | None) -> None:
    if checkpoint:
        read_state(checkpoint)
    weights = task.run.path / "backbone.pth"
    begin = backbone_weights(
        task.model.config,
        None if task.recipe.from_scratch else task.model,
        backbone=task.recipe.method.backbone,
        grid=task.recipe.method.crop // task.model.config.patch,
        seed=task.recipe.training.seed,
    )
    if world.is_main:
        with disk_errors(weights):
            torch.save(begin, weights)  # mmengine reads it back; whoever kills us here begins anew
    world.barrier()
    try:
        _run(task, world, job, begin, weights, checkpoint)
    finally:
        if world.is_main:
            weights.unlink(missing_ok=True)
            shutil.rmtree(_scratch(task.run), ignore_errors=True)


def _run(
    task: Task,
    world: World,
    job: Job,
    begin: dict[str, Tensor],
    weights: Path,
    checkpoint: Path | None,
) -> None:
    with quiet(), _own_words(), lost_rank(world), disk_errors(task.run.path):
        runner = _Runner(
            task.recipe, **_arguments(task, world, weights, job.progress.step, checkpoint)
        )
        runner.register_hook(_Taken(begin, begun=checkpoint is not None))
        runner.register_hook(Between(job))
        runner.train()
    world.barrier()
    del runner
    gc.collect()  # its loaders' workers end with it


class _Runner(Runner):
    """mmengine's, which keeps its words to itself: ours are in ``log.jsonl``."""

    def __init__(self, recipe: Segmentation, **arguments: Any) -> None:
        self._recipe = recipe
        super().__init__(**arguments)

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> Any:
        speed_up(model, self._recipe)  # first: gradients are laid out as their weights are then
        return super().wrap_model(model_wrapper_cfg, model)

    def build_logger(self, log_level: Any = "ERROR", log_file: Any = None, **kw: Any) -> MMLogger:
        return MMLogger.get_instance(name=self._experiment_name, log_level="ERROR")


def _arguments(
    task: Task, world: World, weights: Path, step: int, checkpoint: Path | None
) -> dict[str, Any]:
    """Of mmengine's Runner."""
    recipe = task.recipe
    on_cuda = world.device.type == "cuda"
    setting = Setting(network=task.network(), ranks=world.size, on_cuda=on_cuda, weights=weights)
    data = dataset(task.train, train_pipeline(recipe, strict=True))
    config: dict[str, Any] = {
        "model": network(recipe, setting),
        "train_dataloader": loader(recipe, setting, data, training=True),
        "train_cfg": {
            "type": "IterBasedTrainLoop",
            "max_iters": recipe.training.iterations,
            "val_interval": recipe.training.iterations,
        },
        **optimization(recipe, setting),
        "default_hooks": {
            "param_scheduler": {"type": "ParamSchedulerHook"},
            **dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")),
        },
        "env_cfg": {"cudnn_benchmark": on_cuda},
        "default_scope": "mmseg",
        "visualizer": {"type": "Visualizer"},
        # Workers draw from this seed: after a restart not what they drew at the start.
        "randomness": {"seed": recipe.training.seed + step},
        "launcher": "none" if world.size == 1 else "pytorch",
        "work_dir": str(_scratch(task.run)),
        "load_from": str(checkpoint / STATE) if checkpoint else None,
        "resume": checkpoint is not None,
    }
    # Not the whole of it: each checkpoint would hold it as formatted text, and we have our own.
    rest = Config({"model_wrapper_cfg": _wrapper(world)} if world.size > 1 else {})
    return {**config, "cfg": rest, "experiment_name": recipe.name}


def _wrapper(world: World) -> dict[str, Any]:
    on_cpu = {"device_ids": None} if world.device.type == "cpu" else {}
    return {"type": "MMDistributedDataParallel", "broadcast_buffers": False, **on_cpu}


def speed_up(net: nn.Module, recipe: Segmentation) -> None:
    """Memory layout and compilation, as the recipe asks."""
    if recipe.training.channels_last:
        for part in (net.neck, net.decode_head, net.auxiliary_head):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.training.compile:
        net.backbone.compile()  # type: ignore[operator]
        net.neck.compile()  # type: ignore[operator]


class _Taken(Hook):
    """Before the first iteration: that mmengine put the pre-trained weights where they belong."""

    priority = "VERY_HIGH"

    def __init__(self, weights: dict[str, Tensor], *, begun: bool) -> None:
        self.weights, self.begun = weights, begun

    def before_train(self, runner: Runner) -> None:
        if not self.begun:
            require_taken(bare(runner.model).backbone, self.weights)  # type: ignore[arg-type]


@contextlib.contextmanager
def _own_words() -> Iterator[None]:
    """A loader worker's DataError arrives wrapped in its traceback: keep its own three lines."""
    try:
        yield
    except DataError as error:
        lines = error.what.splitlines()
        starts = [n for n, line in enumerate(lines) if line.startswith("zoo.errors.DataError: ")]
        if not starts:
            raise
        what = lines[starts[-1]].partition(": ")[2]
        rest = [line.strip() for line in lines[starts[-1] + 1 :]]
        told = {k: v for k, _, v in (line.partition(": ") for line in rest)}
        raise DataError(what, where=told.get("where", ""), fix=told.get("to do", "")) from None
