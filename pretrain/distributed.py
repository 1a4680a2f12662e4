"""The world of ranks: who we are, what we agree on, and that nobody outlives the others."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.errors import LostRankError, UsageError

_PR_SET_PDEATHSIG = 1
TORCHRUN = "TINYZOO_TORCHRUN"
"""Environment of ranks that ``zoo`` started: the pid of their torchrun."""
T = TypeVar("T")


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; elsewhere nothing happens).

    Killing torchrun with -9 otherwise leaves its ranks training as orphans.

    parent: the parent's pid, where it is known: a parent that died before this call is then
    noticed too, and ends this process at once.
    """
    if sys.platform != "linux":
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among its peers."""

    device: torch.device
    rank: int = 0
    size: int = 1
    control: Any = None
    """A gloo group for host-side agreement: it never touches the device's queue."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            with lost_rank(self):
                dist.barrier(group=self.control)

    def main_first(self, open_: Callable[[], T]) -> T:
        """What ``open_`` gives, on every rank: rank 0 walks and caches, the others read that."""
        if not self.is_main:
            self.barrier()
        found = open_()
        if self.is_main:
            self.barrier()
        return found

    def from_main(self, value: Any) -> Any:
        """Rank 0's ``value``, on every rank.  Anything that pickles; peers are ourselves."""
        if self.size == 1:
            return value
        box = [value]
        with lost_rank(self):
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value``, by rank, on every rank.  Anything that pickles."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        with lost_rank(self):
            dist.all_gather_object(found, value, group=self.control)
        return found

    def sum_(self, tensor: Tensor) -> Tensor:
        """In-place sum over ranks, on the tensor's own device, without a host sync on CUDA."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


@contextlib.contextmanager
def lost_rank(world: World) -> Iterator[None]:
    """Turn a broken collective, in any backend's words, into LostRankError (exit 8)."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world.size > 1 and any(word in text for word in _BROKEN):
            lost = f"rank {1 - world.rank}" if world.size == 2 else "another rank"
            raise LostRankError(
                f"{lost} died or stopped answering",
                where=f"rank {world.rank} of {world.size}: {text.splitlines()[0][:160]}",
                fix="look at the other ranks' errors, then run the same command to continue; "
                "training.rank_timeout_seconds is how long a rank may take",
            ) from error
        raise


_BROKEN = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out",
    "timed out",
    "timeout",
    "Socket",
    "NCCL",
    "gloo",
)


def choose_device(name: str = "auto") -> torch.device:
    """The device of this name; ``auto`` takes CUDA where there is any.  Raises UsageError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"no device is called {name!r}", where="--device", fix="choose auto, cuda or cpu"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "torch finds no CUDA device here", where=f"--device {name}", fix="choose auto or cpu"
        )
    return device


def require_devices(place: torch.device, ranks: int) -> None:
    """Raise UsageError unless each of so many ranks on this machine can have a device."""
    if place.type == "cuda" and ranks > torch.cuda.device_count():
        raise UsageError(
            f"there is no CUDA device for local rank {ranks - 1}",
            where=f"{torch.cuda.device_count()} devices here",
            fix=f"start at most --nproc {torch.cuda.device_count()} ranks on this machine",
        )


@contextlib.contextmanager
def start_world(device: str = "auto", timeout_seconds: float = 600) -> Iterator[World]:
    """Join the ranks that torchrun (or anything that sets its variables) started; or be alone.

    device: ``auto`` takes CUDA where there is any.  NCCL on CUDA, gloo on the CPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = choose_device(device)
    if place.type == "cuda":
        require_devices(place, local_rank + 1)
        place = torch.device("cuda", local_rank)
        torch.cuda.set_device(place)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        _require_launcher()
    if size > 1 or "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun may start one rank alone
        die_with_parent(int(os.environ.get(TORCHRUN, "0")) or None)
    if size == 1:
        yield World(device=place)
        return
    limit = timedelta(seconds=timeout_seconds)
    with lost_rank(World(device=place, rank=int(os.environ["RANK"]), size=size)):
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=limit)
        control = dist.new_group(backend="gloo", timeout=limit)
    try:
        yield World(rank=dist.get_rank(), size=size, device=place, control=control)
    finally:
        with contextlib.suppress(RuntimeError):  # a peer may be gone already
            dist.destroy_process_group()


def _require_launcher() -> None:
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and TORCHRUN not in os.environ:
        raise UsageError(
            "ranks that torchrun restarts by itself would look for those of the first start, and "
            "wait; nor would it know which errors come again",
            where=f"torchrun --max-restarts {restarts}",
            fix="leave it out, or let zoo pretrain --restarts start torchrun",
        )


class Agreement:
    """Small whole numbers, summed over ranks once a step without waiting for the device.

    The sum of step s is known at the end of step s + 1, on every rank alike: the exchange runs
    in the background meanwhile.  A rank on its own knows at once.
    """

    def __init__(self, world: World, size: int) -> None:
        self.world, self.size = world, size
        self._pending: tuple[Any, Tensor] | None = None

    def exchange(self, *values: int) -> list[int]:
        """Offer this step's values; get the sums offered one step earlier (zeros at first)."""
        mine = torch.tensor(values, dtype=torch.int64)
        if self.world.size == 1:
            return mine.tolist()
        earlier = self.settle()
        with lost_rank(self.world):
            work = dist.all_reduce(mine, group=self.world.control, async_op=True)
        self._pending = (work, mine)
        return earlier

    def settle(self) -> list[int]:
        """Wait for what is under way and return it."""
        if self._pending is None:
            return [0] * self.size
        work, sums = self._pending
        self._pending = None
        with lost_rank(self.world):
            work.wait()
        return sums.tolist()
