"""How a start of a run continues it: from the newest whole checkpoint, if nothing else changed."""

import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from pretrain.changes import Changed, refuse_changes, told
from pretrain.checkpoint import TrainState, load_checkpoint, newest_valid, read_notes
from pretrain.distributed import World
from pretrain.recipe import Recipe, differences
from pretrain.run import RunFolder
from zoo.errors import DataError, UsageError
from zoo.files import require_space

COUNTS = "shard_counts"
"""The note of a checkpoint on how many samples each shard holds, where no index tells."""


def _require_alike(identity: dict[str, Any], world: World) -> None:
    """Raise DataError, on every rank, unless all of them found the same data and teacher."""
    found = world.gather((socket.gethostname(), identity))
    for rank, (host, other) in enumerate(found):
        if changed := differences(found[0][1], other):
            raise DataError(
                "the ranks do not see the same data or teacher: " + "; ".join(changed),
                where=f"rank 0 on {found[0][0]}, rank {rank} on {host}",
                fix="give every machine the same files",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What a start brings to compare with what the run began with."""

    changed: Changed
    """Of the recipe, and allowed."""
    identity: dict[str, Any]
    allow: Collection[str] | None
    environment: dict[str, str] = field(default_factory=dict)
    """What may change between two starts, and the bits of the weights with it."""
    steps: int = 0
    """Of the whole run."""


def resume(
    recipe: Recipe, run: RunFolder, world: World, state: TrainState, known: Known
) -> list[str]:
    """Continue from the newest valid checkpoint, if there is any; returns what to tell.

    Raises UsageError, IntegrityError, DataError, DiskError.
    """
    said: list[str] = []
    identity = known.identity
    _require_alike(identity, world)
    path = world.from_main(newest_valid(run.checkpoints, said.append) if world.is_main else None)
    if path is not None:
        _, notes = read_notes(path)
        # A run that is older than a field of its identity has nothing to compare.
        earlier = {"code_version": identity["code_version"], **notes["identity"]}
        changed = known.changed | refuse_changes(run.path, earlier, identity, known.allow)
        load_checkpoint(path, state)
        if "data_fingerprint" in changed:
            state.notes.pop(COUNTS, None)  # of other shards
        _require_steps(state, known.steps, run)
        if changed and world.is_main:
            run.accept(recipe, changed, state.step)
        world.barrier()  # it may have put the list of unreadable images aside, which all read next
        elsewhere = differences(notes["environment"], known.environment)
        if elsewhere:
            said.append("bits may differ from those of an undisturbed run: " + "; ".join(elsewhere))
        said += [*told(changed), f"continuing from step {state.step}"]
    if world.is_main:
        # The optimizer's part of it comes with the first step; each save looks again.
        require_space(run.path, 2 * state.size)
    state.notes |= {"identity": identity, "environment": known.environment}
    return said


def _require_steps(state: TrainState, steps: int, run: RunFolder) -> None:
    if state.step > steps:
        raise UsageError(
            f"the run has taken {state.step} steps already, and is now to end after {steps}",
            where=str(run.path),
            fix="give more training.steps or training.epochs, or start anew (--out)",
        )
