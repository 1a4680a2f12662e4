"""The one training loop: pre-training and fine-tuning hand it their objective.

A step reads: batch → losses → backward → check → clip → step → log → maybe validate, look, save.
"""

import contextlib
import itertools
import random
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.bounds import Count, NotNegative, Positive
from pretrain.checkpoint import TrainState
from pretrain.distributed import Agreement, World, lost_rank
from pretrain.live import LiveSignal
from pretrain.log import Meters, RunLog
from pretrain.loggers import LoggerName
from pretrain.objective import Batch, Objective, Validated
from pretrain.optim import Optim, set_lr
from pretrain.signals import StopSignals
from zoo.errors import DataError, DivergedError, PreemptedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How long, how large, how precise, and how often it is written down."""

    epochs: Positive
    warmup_epochs: NotNegative
    global_batch: Count
    """Samples per optimizer step, over all ranks and accumulation."""
    rank_batch: Count
    """Samples per forward pass on one rank; accumulation is derived."""
    optim: Optim = field(default_factory=Optim)
    steps: Count | None = None
    """Length of the run in optimizer steps, in place of ``epochs``."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """In place of ``warmup_epochs``."""
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast; auto takes it on CUDA and fp32 elsewhere."""
    compile: bool | None = None
    """torch.compile; null compiles on CUDA only."""
    log_every_steps: Count = 50
    loggers: tuple[LoggerName, ...] = field(default=("tensorboard",), metadata={"runtime": True})
    """Where rows go beside ``log.jsonl``: tensorboard, wandb."""
    save_every_steps: Count = field(default=1000, metadata={"runtime": True})
    save_every_minutes: Positive | None = field(default=30.0, metadata={"runtime": True})
    keep_checkpoints: Annotated[int, Field(ge=2)] = field(default=2, metadata={"runtime": True})
    rank_timeout_seconds: Positive = field(default=600.0, metadata={"runtime": True})
    """How long ranks wait for one that does not answer before the run ends."""

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps or max(1, round(self.epochs * steps_per_epoch))

    def total_warmup(self, steps_per_epoch: int) -> int:
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(self.warmup_epochs * steps_per_epoch)

    def autocast(self, device: torch.device) -> torch.autocast:
        auto = "bf16" if device.type == "cuda" else "fp32"
        on = (auto if self.precision == "auto" else self.precision) == "bf16"
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)


@dataclass(kw_only=True, slots=True)
class Job:
    """What the loop needs beside the objective: all of it built by ``launch``."""

    training: Training
    world: World
    state: TrainState
    batches: Generator[Batch, None, None]
    """Micro-batches, already at ``state.step``."""
    accumulate: int
    """Micro-batches a step."""
    steps: int
    steps_per_epoch: int
    warmup_steps: int
    log: RunLog
    signals: StopSignals
    save: Callable[[], None]
    """Writes a checkpoint of ``state`` (rank 0) and waits for it (all ranks)."""
    live: LiveSignal | None = None
    describe: Callable[[int], str] = str
    """A sample's index to its file, for the quarantine list."""
    max_bad: int = 100

    @property
    def done(self) -> bool:
        return self.state.step == self.steps

    @property
    def epoch_ended(self) -> bool:
        """Whether the step just taken was the last of an epoch, or of the run."""
        return self.done or self.state.step % self.steps_per_epoch == 0

    def lr_at(self, step: int) -> float:
        return self.training.optim.lr_at(
            step,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            global_batch=self.training.global_batch,
        )


def train(objective: Objective, job: Job) -> None:
    """Run from ``job.state.step`` to the end.

    Raises DivergedError, PreemptedError, DataError, LostRankError; on all ranks alike, with the
    last good state saved.
    """
    training, world, state = job.training, job.world, job.state
    module = _wrap(objective, training, world)
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    named = state.objective.state_dict(keep_vars=True).values()
    buffers = [tensor for tensor in named if not isinstance(tensor, nn.Parameter)]
    guard = FiniteGuard(world, state.optimizer, buffers)
    meters = Meters(state.notes.get("meters"))
    watch = Watch(job)
    if job.live and job.live.due(state):
        job.live.look(state, job.log)

    for step in range(state.step, job.steps):
        lr = job.lr_at(step)
        set_lr(state.optimizer, lr)
        seed_step(training.seed, step, world)
        batches = list(itertools.islice(job.batches, job.accumulate))
        losses = _forward_backward(module, batches, training, world)
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        guard.check(losses, norm, step)
        if training.optim.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(trained, training.optim.clip_norm, norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average:
            state.average.update(guard.bad)
        state.step = step + 1
        meters.add((*losses, "grad_norm"), guard.seen, guard.bad, batches)
        job.log.advance(state.step)

        save_due = watch.look(batches)
        if state.step % training.log_every_steps == 0 or job.done:
            _stop_if_diverged(guard, meters, job)
            job.log.row(state.step, {**meters.row(), "lr": lr})
            meters = Meters()
        if isinstance(objective, Validated) and job.epoch_ended:
            _stop_if_diverged(guard, meters, job)
            _validate(objective, job)  # raises DivergedError too: the last checkpoint stays
        if job.live and job.live.due(state):
            _stop_if_diverged(guard, meters, job)
            job.live.look(state, job.log)
        if save_due:
            _stop_if_diverged(guard, meters, job)
            state.notes["meters"] = meters.as_notes()
            job.save()
        watch.stop_if_asked()
    watch.close()


def _wrap(objective: Objective, training: Training, world: World) -> nn.Module:
    module = cast(nn.Module, objective)
    module.train()
    on_cuda = world.device.type == "cuda"
    if training.compile or (training.compile is None and on_cuda):
        module.compile(dynamic=False)
    if world.size == 1:
        return module
    with lost_rank(world), warnings.catch_warnings():
        # torch means to replace this option by two and has the second not ready.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Everything with requires_grad gets a gradient each step: no search for unused parameters.
        return DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def _forward_backward(
    module: nn.Module, batches: list[Batch], training: Training, world: World
) -> dict[str, Tensor]:
    """Accumulate gradients over the micro-batches; returns this rank's mean losses, detached."""
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, start=1):
        is_last = number == len(batches)
        syncs = isinstance(module, DistributedDataParallel) and not is_last
        quiet = (
            cast(DistributedDataParallel, module).no_sync() if syncs else contextlib.nullcontext()
        )
        with quiet, lost_rank(world):
            with training.autocast(world.device):
                losses = module(_to_device(batch, world.device))
            (losses["total"] / len(batches)).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach().float() / len(batches)
    return sums


def _to_device(batch: Batch, device: torch.device) -> Batch:
    images, indices, draws, labels, _ = batch
    moved = (
        t if t is None else t.to(device, non_blocking=True)
        for t in (images, indices, draws, labels)
    )
    return Batch(*moved)  # type: ignore[arg-type]  # without the host-side list of bad images


def _validate(objective: Validated, job: Job) -> None:
    """Score what would be exported now, and keep it where it is the best so far."""
    state, began = job.state, time.perf_counter()
    state.objective.eval()
    scores = _score(objective)
    if state.average:
        raw = {f"raw_{name}": score for name, score in scores.items()}
        with state.average.in_place():
            scores = _score(objective) | raw
    state.objective.train()
    epoch = round(state.step / job.steps_per_epoch, 3)
    state.notes["validation"] = {"epoch": epoch, "step": state.step, "scores": scores}
    best = state.notes.get("best")
    by = next(iter(scores))
    if best is None or scores[by] > best["scores"][by]:
        state.notes["best"] = state.notes["validation"]
        state.best = state.exported() if job.world.is_main else None
    row = {"epoch": epoch, **{f"val_{name}": score for name, score in scores.items()}}
    job.log.scores(state.step, row, time.perf_counter() - began)


def _score(objective: Validated) -> dict[str, float]:
    # In fp32, as evaluation scores it later, whatever training's precision is.
    with torch.inference_mode():
        return objective.validate()


def seed_step(seed: int, step: int, world: World) -> None:
    """Drop path and the like draw from (seed, step, rank): there is no random state to save.

    Not from torch's generators alone: timm's Mixup draws from numpy's, its erasing from Python's.
    """
    key = np.random.SeedSequence([seed, step, world.rank]).generate_state(1, np.uint64)
    value = int(key[0]) >> 1
    np.random.seed(value % 2**32)
    random.seed(value)
    # Far cheaper than torch.manual_seed, which visits every device.
    torch.default_generator.manual_seed(value)
    if world.device.type == "cuda":
        torch.cuda.default_generators[world.device.index or 0].manual_seed(value)


class FiniteGuard:
    """A sticky flag on the device that stops every update once anything is not finite.

    Fused optimizers skip a step whose ``found_inf`` is 1 (the contract GradScaler uses), so the
    weights stay at the last good step without the host having to look.  Running statistics move
    in the forward pass, before anyone can know: a copy of them stays behind instead.
    """

    def __init__(
        self, world: World, optimizer: torch.optim.Optimizer, buffers: Sequence[Tensor] = ()
    ) -> None:
        self.world, self._buffers = world, buffers
        self._kept = [tensor.clone() for tensor in buffers]
        self.bad = torch.zeros((), device=world.device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=world.device)
        self.seen = torch.zeros(0)
        """Losses averaged over ranks, then the gradient norm."""
        cast(Any, optimizer).found_inf = self.bad

    @torch.no_grad()
    def check(self, losses: dict[str, Tensor], norm: Tensor, step: int) -> None:
        """Look at this step, on every rank alike; one small collective, no wait."""
        values = torch.stack(list(losses.values())) / self.world.size
        with lost_rank(self.world):
            self.world.sum_(values)
        self.seen = torch.cat([values, norm.detach().float().reshape(1)])
        finite = torch.isfinite(self.seen).all()
        # masked_fill_ takes a number without sending it to the device, which would wait for it.
        self.bad_step.masked_fill_(~finite & (self.bad == 0), step)
        self.bad.copy_(torch.maximum(self.bad, (~finite).float()))
        for kept, now in zip(self._kept, self._buffers, strict=True):
            kept.copy_(torch.where(self.bad > 0, kept, now))

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the running statistics back to the last good step."""
        for kept, now in zip(self._kept, self._buffers, strict=True):
            now.copy_(kept)


def _stop_if_diverged(guard: FiniteGuard, meters: Meters, job: Job) -> None:
    """Read the flag (this waits for the device); if set, save the last good state and raise."""
    if not guard.bad.item():
        return
    bad_step = int(guard.bad_step.item())
    dropped = job.state.step - bad_step
    guard.restore()
    job.state.step = bad_step
    job.state.notes["meters"] = meters.as_notes(dropped_steps=dropped)
    job.log.diverged(bad_step + 1, job.world.gather(meters.samples(dropped)), job.describe)
    job.save()
    raise DivergedError(
        "a loss or a gradient is not finite",
        where=f"step {bad_step + 1}; the state before it is saved as checkpoints/step-{bad_step}, "
        "its images are listed in diverged.json",
        fix="lower the learning rate (training.optim.lr_per_256) or set training.optim.clip_norm",
    )


class Watch:
    """What may save or stop a run beside its steps: the clock, signals, unreadable images.

    All ranks learn of it in the same step, and so decide alike.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._agreement = Agreement(job.world, size=3)
        self._bad = set(job.log.bad)
        """Images that could not be read, as all ranks know."""
        self._found: list[int] = []
        self._stop = False
        self._saved_at = time.monotonic()
        self._asked = False

    def look(self, batches: list[Batch]) -> bool:
        """Take note after a step; whether a checkpoint is due now."""
        job, step = self.job, self.job.state.step
        found = [i for batch in batches for i in job.log.quarantine(batch, job.describe)]
        # Asked once: among several ranks the answer comes a step later.
        ask = job.world.is_main and not self._asked and self._minutes_over()
        self._asked |= ask
        signal, minutes, bad = self._agreement.exchange(job.signals.received, ask, len(found))
        self._stop = bool(signal)
        if bad:
            self._share(found if job.world.size == 1 else self._found)
        self._found = found
        every = job.training.save_every_steps
        due = bool(minutes) or step % every == 0 or self._stop or self._too_many or job.done
        if due:
            self._saved_at, self._asked = time.monotonic(), False
        return due

    def _share(self, found: list[int]) -> None:
        """Tell every rank what was found in the step that was agreed on: another pass over the data
        deals the same image to another rank."""
        self._bad.update(*self.job.world.gather(found))
        self.job.log.bad |= self._bad

    def stop_if_asked(self) -> None:
        """Raise what stops the run; its state has been saved."""
        job = self.job
        if self._too_many:
            raise DataError(
                f"{len(self._bad)} images could not be read; the limit is {job.max_bad}",
                where="the run folder's quarantine.jsonl lists them",
                fix="raise data.max_bad and data.max_bad_share to continue, or repair them and "
                "start anew (--out)",
            )
        if self._stop and not job.done:
            raise PreemptedError(
                "stopped by a signal; the state is saved",
                where=f"step {job.state.step} of {job.steps}",
                fix="run the same command again to continue",
            )

    def close(self) -> None:
        self._agreement.settle()

    @property
    def _too_many(self) -> bool:
        return len(self._bad) > self.job.max_bad

    def _minutes_over(self) -> bool:
        minutes = self.job.training.save_every_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
