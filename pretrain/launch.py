"""From a recipe to a run: set up, resume, train, and hand over what came of it."""

import contextlib
import functools
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from pretrain.changes import require_known
from pretrain.checkpoint import TrainState, save_checkpoint
from pretrain.data import STREAM, open_source, require_same_classes
from pretrain.distributed import World, start_world
from pretrain.export import Sources, code_version, environment, export_all
from pretrain.index import ImageIndex
from pretrain.live import FixedImages, LiveSignal, Probe, StreamedImages
from pretrain.loader import Loader
from pretrain.log import RunLog
from pretrain.loggers import require_packages
from pretrain.loop import Job, Training, train
from pretrain.objective import Heldout, Objective, Observed, Validated
from pretrain.optim import WeightAverage, build_optimizer
from pretrain.recipe import Recipe, as_record
from pretrain.resume import COUNTS, Known, resume
from pretrain.run import RunFolder, memory_errors
from pretrain.shards import ShardSet, open_shards
from pretrain.signals import StopSignals
from pretrain.stream import BUFFER
from pretrain.stream_loader import StreamLoader
from zoo.errors import UsageError
from zoo.images import Preprocess


def pretrain(
    recipe: Recipe,
    out: Path,
    *,
    reindex: bool = False,
    device: str = "auto",
    probe: Probe | None = None,
    allow: Collection[str] | None = None,
) -> Path:
    """Run a recipe in the folder ``out``, or continue it there; returns the exported model folder.

    reindex: walk the whole data set again.  probe: what the live signal scores features with.
    allow: fields that may differ from what the run began with; None where nobody can be asked.
    Raises any ZooError; its code is the exit code.
    """
    with start_world(device, timeout_seconds=recipe.training.rank_timeout_seconds) as world:
        run_recipe(recipe, out, world, finish=export_all, reindex=reindex, probe=probe, allow=allow)
    return RunFolder(out).export


Finish = Callable[[Recipe, RunFolder, Sources, Objective, TrainState], None]
"""What rank 0 does with a run that has come to its end."""


def run_recipe(
    recipe: Recipe,
    out: Path,
    world: World,
    *,
    finish: Finish,
    reindex: bool = False,
    probe: Probe | None = None,
    allow: Collection[str] | None = None,
) -> None:
    """Run a recipe in a world that is there already, on each of its ranks.

    reindex, probe, allow, errors: as in ``pretrain``.
    """
    run = RunFolder(out)
    with run.hold() if world.is_main else contextlib.nullcontext():
        _run(recipe, run, world, finish, reindex=reindex, probe=probe, allow=allow)


def _run(
    recipe: Recipe,
    run: RunFolder,
    world: World,
    finish: Finish,
    *,
    reindex: bool,
    probe: Probe | None,
    allow: Collection[str] | None,
) -> None:
    with run.report_exit(world) as progress, memory_errors(world, progress):
        run.require_shared(world)
        require_packages(recipe.training.loggers)
        changed = run.admit(recipe, allow) if world.is_main else {}
        data = _open_data(recipe, world, reindex)
        objective = recipe.method.build(
            recipe.student, seed=recipe.training.seed, device=world.device
        )
        _open_heldout(recipe, objective, data, world)
        progress.state = state = _new_state(objective, recipe)
        known = Known(changed=changed, identity=_identity(data, objective, world), allow=allow)
        require_known(allow or (), as_record(recipe), known.identity)
        with StopSignals() as signals:
            job = _job(recipe, run, world, data, objective, state, signals, known)
            try:
                job.live = _live(recipe, job, data, probe)
                train(objective, job)
            finally:
                job.batches.close()
                job.log.close()
        if world.is_main:
            finish(recipe, run, data, objective, state)
        world.barrier()


def _open_data(recipe: Recipe, world: World, reindex: bool) -> Sources:
    source, heldout = recipe.data.source, recipe.data.validation
    again = reindex and world.is_main
    validation = world.main_first(lambda: open_source(heldout, reindex=again) if heldout else None)
    if recipe.data.streams:
        # Asked for once: a thousand ranks would ask a server for each shard a thousand times.
        shards = open_shards(source.removeprefix(STREAM)) if world.is_main else None
        return Sources(train=world.from_main(shards), validation=validation)
    train = world.main_first(lambda: open_source(source, reindex=again))
    return Sources(train=train, validation=validation)


def _open_heldout(recipe: Recipe, objective: Objective, data: Sources, world: World) -> None:
    """Show an objective that validates its images.  Raises UsageError, DataError."""
    if isinstance(objective, Validated) != (data.validation is not None):
        missing = data.validation is None
        raise UsageError(
            f"{recipe.method.name} needs images for validation"
            if missing
            else f"{recipe.method.name} does not validate: nothing would read these images",
            where="data.validation",
            fix="give data.validation=folder:PATH" if missing else "leave data.validation out",
        )
    if isinstance(objective, Validated) and data.validation is not None:
        if isinstance(data.train, ShardSet):
            raise UsageError(
                f"{recipe.method.name} reads its images by number, and a stream has none",
                where="data.source",
                fix="give data.source=folder:PATH",
            )
        require_same_classes(data.train, data.validation)
        heldout = Heldout(
            images=data.validation,
            world=world,
            batch=recipe.training.rank_batch,
            workers=recipe.data.workers,
        )
        objective.open(data.train, heldout)


def _new_state(objective: Objective, recipe: Recipe) -> TrainState:
    module = cast(nn.Module, objective)
    optim = recipe.training.optim
    running = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    if running and optim.ema_decay is not None:
        raise UsageError(
            "averaged weights would be exported with the running statistics of the raw ones",
            where="training.optim.ema_decay",
            fix="set training.optim.ema_decay=null",
        )
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return TrainState(
        objective=module,
        optimizer=build_optimizer(objective, optim),
        average=None if optim.ema_decay is None else WeightAverage(trained, optim.ema_decay),
    )


def _job(
    recipe: Recipe,
    run: RunFolder,
    world: World,
    data: Sources,
    objective: Objective,
    state: TrainState,
    signals: StopSignals,
    known: Known,
) -> Job:
    training = recipe.training
    loader = _loader(recipe, world, data.train, objective)
    per_epoch = loader.steps_per_epoch or _steps_alone(training)
    steps = training.total_steps(per_epoch)
    known = replace(known, steps=steps, environment=environment() | loader.facts)
    said = resume(recipe, run, world, state, known)
    loader.start_step, loader.stop_step = state.step, steps
    if isinstance(loader, StreamLoader):
        loader.remember(state.notes.get(COUNTS, {}))
    log = _log(recipe, run, world, state, steps)
    for line in [*said, *loader.remarks]:
        log.say(line)

    def save() -> None:
        state.notes["log_bytes"] = log.mark()
        _keep_counts(loader, state, world)
        if world.is_main:
            save_checkpoint(run.checkpoints, state, keep=training.keep_checkpoints)
        world.barrier()

    return Job(
        training=training,
        world=world,
        state=state,
        batches=iter(loader),
        accumulate=loader.accumulate,
        steps=steps,
        steps_per_epoch=per_epoch,
        warmup_steps=training.total_warmup(per_epoch),
        log=log,
        signals=signals,
        save=save,
        describe=loader.describe,
        max_bad=recipe.data.most_bad(known.identity["images"]),
    )


def _keep_counts(loader: Loader | StreamLoader, state: TrainState, world: World) -> None:
    """Note what all ranks learned of shards without an index, for the next start."""
    if isinstance(loader, StreamLoader) and loader.steps_per_epoch is None:
        for counted in world.gather(loader.counted()):
            state.notes.setdefault(COUNTS, {}).update(counted)


def _loader(
    recipe: Recipe, world: World, data: ImageIndex | ShardSet, objective: Objective
) -> Loader | StreamLoader:
    """Of this rank; it is told later from which step to which."""
    training = recipe.training
    if isinstance(data, ShardSet):
        buffer = recipe.data.shuffle_buffer or BUFFER
        make, source = functools.partial(StreamLoader, buffer=buffer), data
    else:
        make, source = Loader, data
    return make(
        source,  # type: ignore[arg-type]
        transform=recipe.data.transform(recipe.student.image_size),
        draws=objective.draws,
        global_batch=training.global_batch,
        rank_batch=training.rank_batch,
        rank=world.rank,
        world=world.size,
        seed=training.seed,
        stop_step=0,
        workers=recipe.data.workers,
    )


def _steps_alone(training: Training) -> int:
    """The length of a run for which nobody knows how long an epoch is.  Raises UsageError."""
    if training.steps is None or training.warmup_steps is None:
        raise UsageError(
            "nothing says how many samples the shards hold, and so how long an epoch is",
            where="training.epochs, training.warmup_epochs",
            fix="give training.steps and training.warmup_steps, or make the shards with "
            "zoo data pack, which counts them",
        )
    return training.steps


def _log(recipe: Recipe, run: RunFolder, world: World, state: TrainState, steps: int) -> RunLog:
    return RunLog(
        run.path,
        offset=state.notes.get("log_bytes", 0),
        step=state.step,
        steps=steps,
        batch=recipe.training.global_batch,
        active=world.is_main,
        loggers=recipe.training.loggers,
        recipe=as_record(recipe),
    )


def _live(recipe: Recipe, job: Job, data: Sources, probe: Probe | None) -> LiveSignal | None:
    """The live signal, where the objective can be observed and the run is long enough."""
    training, signal = recipe.training, recipe.signal
    every = signal.interval(
        steps=job.steps,
        rank_samples=training.global_batch // job.world.size,
        round_to=training.log_every_steps,
    )
    if every is None or not isinstance(job.state.objective, Observed):
        return None
    return LiveSignal(
        _looked_at(recipe, data.train),
        every=every,
        steps=job.steps,
        device=job.world.device,
        autocast=lambda: training.autocast(job.world.device),
        probe=probe,
    )


def _looked_at(recipe: Recipe, train: ImageIndex | ShardSet) -> FixedImages | StreamedImages:
    count, seed = recipe.signal.images, recipe.training.seed
    size = recipe.student.image_size
    if isinstance(train, ImageIndex):
        return FixedImages.choose(train, count=count, seed=seed, image_size=size)
    return StreamedImages(
        data=train, count=count, seed=seed, preprocess=Preprocess(image_size=size)
    )


def _identity(data: Sources, objective: Objective, world: World) -> dict[str, Any]:
    """What must not change between two starts of one run, beside the recipe."""
    train = data.train
    identity = {
        "data_fingerprint": data.train.fingerprint,
        "images": train.samples if isinstance(train, ShardSet) else len(train),
        "ranks": world.size,
        "code_version": code_version(),
        "facts": dict(objective.export().facts),
    }
    if data.validation:
        identity["validation_fingerprint"] = data.validation.fingerprint
    return identity
