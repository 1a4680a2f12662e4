"""Between two rows of the log the host never asks the device for a value, whatever is guarded.

On a CPU nothing waits; but every such question goes through the same operators, and these are
counted.  ``test_gpu.py`` has CUDA itself refuse to wait.
"""

from pathlib import Path
from typing import Any

import pytest
from models import make_convnet, make_model
from runs import TINY, TINY_MAE, words, zoo
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.log import RunLog

ASKING = {"_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select"}
"""Operators whose result, or its size, the host must have before it can go on."""


class Questions(TorchDispatchMode):
    """Counts them."""

    asked = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked += func.overloadpacket.__name__ in ASKING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["mae", "tinymim", "img2vec"])
def test_steps_between_two_rows_ask_nothing(
    photos: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        **(TINY if method == "tinymim" else TINY_MAE),
        "training.steps": "12",
        "training.log_every_steps": "5",
        "training.save_every_steps": "7",
        "training.optim.ema_decay": "0.9",
        "training.optim.clip_norm": "1.0",
        "data.workers": "1",  # decoding is the host's own business
    }
    if method == "tinymim":
        settings["method.teacher.source"] = str(make_model(tmp_path / "teacher"))
    if method == "img2vec":
        settings["method.teacher.source"] = str(make_convnet(tmp_path / "teacher"))
        settings["method.teacher.stride"] = "16"
    seen: dict[int, int] = {}
    advance = RunLog.advance

    def look(self: RunLog, step: int) -> None:
        seen[step] = questions.asked
        advance(self, step)

    monkeypatch.setattr(RunLog, "advance", look)
    questions = Questions()
    with questions:
        assert zoo(words(f"{method}-vit-t", photos, tmp_path / "run", settings)) == 0
    # What follows a step until the next one is done; the first step sets things up.
    asked = {step: seen[step + 1] - seen[step] for step in range(1, 12)}
    noted = {5, 7, 10}  # a row, or a checkpoint
    assert {step for step, count in asked.items() if count} == noted
