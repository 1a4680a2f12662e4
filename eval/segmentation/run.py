"""``zoo eval MODEL ade20k-upernet``: train, score, tell; and ``zoo eval RUN ade20k-test``."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.results import Result
from eval.run import progress
from eval.segmentation.data import Split, open_split
from eval.segmentation.iou import scores_of
from eval.segmentation.packages import import_mmseg
from eval.segmentation.plan import SegOptions, Task, plan
from eval.segmentation.protocols import TEST
from eval.segmentation.recipe import Segmentation
from eval.segmentation.record import Network, read_run
from pretrain.distributed import World, start_world
from pretrain.run import RunFolder
from zoo.errors import DataError, UsageError, ZooError
from zoo.files import sha256_of, typed_path

_WEEK = 7 * 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class SegReport:
    """What came of it: on rank 0; the others know nothing."""

    result: Result
    page: Path
    lines: Sequence[str]

    def text(self) -> str:
        return "\n".join(self.lines)

    def as_dict(self) -> dict[str, Any]:
        return {**self.result.as_dict(), "page": str(self.page)}


def segment(
    models: Sequence[str], benchmark: str, data: Sequence[str], options: SegOptions
) -> SegReport | None:
    """Train a segmentation network on a model, or continue, and score it; or score a run's.

    data: one folder; of ``ade20k-test`` none, for the run's own.  None on every rank but the
    first.  Raises any ZooError.
    """
    place = _require_one(models, benchmark, data)
    import_mmseg()
    alone = contextlib.nullcontext()
    with start_world(options.device, timeout_seconds=_WEEK) as world:
        if benchmark == TEST:
            with RunFolder(ranks_folder(options)).report_exit(world) if world.size > 1 else alone:
                return _score_run(Path(typed_path(models[0])), place, options, world)
        task = plan(models[0], benchmark, place or "", options, world)
        return _train_and_score(task, options, world)


def plan_run(
    models: Sequence[str], benchmark: str, data: Sequence[str], options: SegOptions
) -> Task:
    """What ``segment`` would train, with nothing written.  Raises as it does."""
    place = _require_one(models, benchmark, data)
    with start_world("cpu") as world:
        return plan(models[0], benchmark, place or "", options, world)


def ranks_folder(options: SegOptions) -> Path:
    """Where ranks that score a run say how they ended: its own ``exit.json`` is of its training."""
    return options.out.absolute() / ".ranks"


def dump_config(task: Task, place: Path, *, ranks: int) -> dict[str, str]:
    """Write a configuration for mmsegmentation's own tools, and beside it the weights it loads.

    Raises UsageError, DiskError.
    """
    import_mmseg()
    from eval.segmentation.dump import dump

    return dump(task, place, ranks=ranks)


def _require_one(models: Sequence[str], benchmark: str, data: Sequence[str]) -> str | None:
    test = benchmark == TEST
    if len(models) != 1:
        raise UsageError(
            f"{benchmark} takes one {'run folder' if test else 'model'} at a time",
            where=f"zoo eval {' '.join([*models, benchmark])}",
            fix="name one" if models else "name one before the benchmark",
        )
    if len(data) > 1 or (not data and not test):
        raise UsageError(
            f"{benchmark} takes one data folder",
            where="--data",
            fix="give --data DIR, with images/ and annotations/ below it",
        )
    return data[0] if data else None


def _train_and_score(task: Task, options: SegOptions, world: World) -> SegReport | None:
    from eval.segmentation.between import Steps
    from eval.segmentation.train import fit

    run = task.run
    with (
        _run_option(),
        run.hold() if world.is_main else contextlib.nullcontext(),
        run.report_exit(world) as told,
    ):
        if world.is_main:
            run.admit(task.recipe)
        told.state = steps = Steps()
        checkpoint = fit(task, world, steps)
        given = (task.recipe, task.network())
        return _score(run, given, checkpoint, task.val, options, world)


def _score_run(path: Path, data: str | None, options: SegOptions, world: World) -> SegReport | None:
    from pretrain.checkpoint import newest_valid

    recipe, network = read_run(path)
    root = typed_path(data or recipe.data).resolve()
    split = world.main_first(lambda: open_split(root, options.split, partial=options.partial))
    if tuple(split.labels.names) != network.classes:
        raise DataError(
            f"the network was taught {len(network.classes)} classes, and these are "
            f"{len(split.labels.names)} others",
            where=f"{split.labels.source}: {', '.join(split.labels.names[:3])}, …; the run: "
            f"{', '.join(network.classes[:3])}, …",
            fix="give data with the run's classes, in its order",
        )
    run = RunFolder(path.absolute())
    checkpoint = newest_valid(run.checkpoints, Console(stderr=True).print)
    if checkpoint is None:
        raise UsageError(
            "this run has no checkpoint yet",
            where=str(run.checkpoints),
            fix="let the run come to its end first",
        )
    return _score(run, (recipe, network), checkpoint, split, options, world)


def _score(
    run: RunFolder,
    made: tuple[Segmentation, Network],
    checkpoint: Path,
    split: Split,
    options: SegOptions,
    world: World,
) -> SegReport | None:
    from eval.segmentation.between import STATE
    from eval.segmentation.outcome import Trained, notes_of, result_of, tell
    from eval.segmentation.score import score
    from eval.segmentation.train import load_network
    from pretrain.checkpoint import read_notes

    recipe, network = made
    step, notes = read_notes(checkpoint)
    if step < recipe.training.iterations:
        raise UsageError(
            f"this run stands at iteration {step:,} of {recipe.training.iterations:,}",
            where=str(checkpoint),
            fix="run its command again to continue, then score it",
        )
    net = load_network(recipe, network, checkpoint).to(world.device)
    began = time.perf_counter()
    with progress(world) as start:
        advance = start("images", len(split))
        counts = score(net, split, recipe, world, workers=options.workers, advance=advance)
    if not world.is_main:
        return None
    trained = Trained(
        recipe=recipe,
        run=run,
        network=network,
        net=net,
        sha256=sha256_of(checkpoint / STATE),
        notes=notes,
    )
    seconds = time.perf_counter() - began
    scores = scores_of(counts)
    result = result_of(trained, split, scores, seconds=seconds, world=world)
    page = tell(trained, split, counts, scores, result, world, workers=options.workers)
    file = result.save(options.out)
    details = result.details
    lines = [
        result.line(),
        f"mAcc {details['mAcc']:.2f} %, aAcc {details['aAcc']:.2f} %; "
        f"{details['valid_classes']} of {len(network.classes)} classes valid",
        *notes_of(result, split),
        f"result: {file}",
        f"page:   {page}",
    ]
    return SegReport(result=result, page=page, lines=lines)


@contextlib.contextmanager
def _run_option() -> Iterator[None]:
    """Errors of run folders name the option of pre-training, where ours is --run."""
    try:
        yield
    except ZooError as error:
        error.fix = error.fix.replace("--out", "--run")
        raise
