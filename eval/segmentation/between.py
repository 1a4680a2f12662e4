"""What happens between mmengine's iterations: log, validate, save, look for signals.

As ``pretrain.loop`` does it: the run folder is the same, and survives being killed.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from eval.segmentation.data import Split
from eval.segmentation.iou import scores_of
from eval.segmentation.recipe import Segmentation
from eval.segmentation.score import score
from pretrain.checkpoint import write_checkpoint
from pretrain.distributed import Agreement, World
from pretrain.log import RunLog
from pretrain.loop import seed_step
from pretrain.run import RunFolder
from pretrain.signals import StopSignals
from zoo.errors import DivergedError, PreemptedError

STATE = "state.pth"
"""mmengine's checkpoint, in a folder that states its digest."""
_ROWS = {
    "loss": "total",
    "decode.loss_ce": "head_loss",
    "decode.acc_seg": "head_accuracy",
    "aux.loss_ce": "auxiliary_loss",
    "aux.acc_seg": "auxiliary_accuracy",
}


@dataclass(slots=True)
class Steps:
    """How far a run has come."""

    step: int = 0
    """Iterations done."""


@dataclass(kw_only=True, slots=True)
class Job:
    """A run under way."""

    recipe: Segmentation
    run: RunFolder
    world: World
    val: Split
    log: RunLog
    signals: StopSignals
    notes: dict[str, Any]
    progress: Steps


class Between(Hook):
    """What happens between mmengine's iterations."""

    priority = "VERY_LOW"  # after the schedule has stepped: what is saved is the next step's

    def __init__(self, job: Job) -> None:
        self.job = job
        self._agreement = Agreement(job.world, size=1)
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        seed_step(self.job.recipe.training.seed, runner.iter, self.job.world)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        job, training = self.job, self.job.recipe.training
        job.progress.step = step = runner.iter + 1
        self._add(data_batch, outputs)
        job.log.advance(step)
        (stop,) = self._agreement.exchange(job.signals.received)
        done = step == training.iterations
        save_due = stop or done or step % training.save_every == 0
        if save_due or step % training.log_every == 0:
            self._row(runner)
        if save_due:
            self.save(runner)
        if step % training.validate_every == 0 and not (done or stop):
            self._validate(runner)
            self.save(runner)  # with the row that validation wrote
        if stop or done:
            self._agreement.settle()
        if stop and not done:
            raise PreemptedError(
                "stopped by a signal; the state is saved",
                where=f"{job.run.path}, iteration {step:,}",
                fix="run the same command again to continue",
            )

    def _add(self, data_batch: Any, outputs: Mapping[str, Tensor]) -> None:
        for name, value in outputs.items():
            if name in _ROWS:
                value = torch.as_tensor(value).detach().double()
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        samples = data_batch["data_samples"]
        self.job.notes["skipped_crops"] += sum(s.metainfo.get("skipped", 0) for s in samples)

    def _row(self, runner: Runner) -> None:
        """Write what the steps since the last row had on average, over all ranks."""
        job = self.job
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] for name in names]) / self._steps / job.world.size
        means = dict(zip(names, job.world.sum_(means).tolist(), strict=True))
        self._sums, self._steps = {}, 0
        if not np.isfinite(means["loss"]):
            raise DivergedError(
                "the loss is not finite",
                where=f"at or before iteration {job.progress.step:,}; the last checkpoint stays",
                fix="lower training.lr, or set training.precision=float32",
            )
        # mmengine's schedule has stepped already: the rate of the next iteration.
        groups = runner.optim_wrapper.param_groups  # type: ignore[union-attr]
        rate = max(group["lr"] for group in groups)
        job.log.row(
            job.progress.step, {_ROWS[n]: value for n, value in means.items()} | {"lr": rate}
        )

    def _validate(self, runner: Runner) -> None:
        job, began = self.job, time.perf_counter()
        if job.world.size > 1:  # on CPU ranks each has statistics of its own; rank 0's are saved
            for buffer in bare(runner.model).buffers():
                dist.broadcast(buffer, 0)
        counts = score(
            bare(runner.model), job.val, job.recipe, job.world, workers=job.recipe.training.workers
        )
        found = scores_of(counts)
        values = {"val_mIoU": found.miou, "val_mAcc": found.macc, "val_aAcc": found.aacc}
        job.log.scores(job.progress.step, values, time.perf_counter() - began)

    def save(self, runner: Runner) -> None:
        """A checkpoint, whole or not at all."""
        job = self.job
        job.notes["log_bytes"] = job.log.mark()
        skipped = sum(job.world.gather(job.notes["skipped_crops"]))  # each rank counts its own
        if job.world.is_main:
            write_checkpoint(
                job.run.checkpoints,
                job.progress.step,
                job.notes | {"skipped_crops": skipped},
                lambda place: runner.save_checkpoint(str(place), STATE, by_epoch=False),
                size=3 * sum(p.nbytes for p in bare(runner.model).parameters()),
                keep=job.recipe.training.keep_checkpoints,
            )
        job.world.barrier()


def bare(model: nn.Module) -> nn.Module:
    """The network itself, without what wraps it for several ranks."""
    return model.module if is_model_wrapper(model) else model  # type: ignore[return-value]
