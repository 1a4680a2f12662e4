"""A recipe that fails in a chosen way when one rank meets one image."""

import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.mae import MAE, MaskedAutoencoder
from pretrain.objective import Batch
from pretrain.recipe import Recipe
from zoo.errors import DataError
from zoo.vit import ViTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PoisonedMAE:
    """MAE until rank ``rank`` meets the image of index ``sample``; -1 for no image."""

    name: ClassVar[str] = "poisoned-mae"

    sample: int = -1
    rank: int = 1
    where: Literal[
        "loss", "gradient", "raise", "bug", "memory", "kill", "leave", "hang", "stop"
    ] = "loss"

    def build(self, student: ViTConfig, *, seed: int, device: torch.device) -> "Poisoned":
        method = MAE(decoder_width=24, decoder_depth=1, decoder_heads=3)
        return Poisoned(student, method, self, seed=seed).to(device)


class Poisoned(MaskedAutoencoder):
    def __init__(self, student: ViTConfig, method: MAE, poison: PoisonedMAE, *, seed: int) -> None:
        super().__init__(student, method, seed=seed)
        self.poison = poison

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        total = super().forward(batch)["total"]
        rank = dist.get_rank() if dist.is_initialized() else 0
        if rank != self.poison.rank or not (batch.indices == self.poison.sample).any():
            return {"total": total}
        if self.poison.where == "loss":
            return {"total": total * torch.nan}
        if self.poison.where != "gradient":
            fail(self.poison.where)
        # The root of zero is zero, and its slope there is infinite.
        return {"total": total + torch.sqrt(0 * self.decoder.mask_token.sum())}


def fail(how: str) -> None:
    """End this process, or its part in the run."""
    if how == "raise":
        raise DataError("a poisoned image", where="image 0", fix="give another one")
    if how == "bug":
        raise KeyError("a bug")
    if how == "memory":
        torch.empty(1 << 50, dtype=torch.uint8)
    if how == "leave":
        os._exit(0)
    if how == "hang":
        time.sleep(3600)
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how])


def poisoned_mae() -> Recipe:
    return Recipe(
        name="poisoned-mae",
        student=ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32),
        method=PoisonedMAE(),
        data=Data(source="folder:nowhere"),
        training=Training(epochs=1, warmup_epochs=0, global_batch=8, rank_batch=4),
    )
