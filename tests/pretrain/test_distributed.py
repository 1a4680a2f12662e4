"""No process outlives its parent, and a device that is not there is refused."""

import os
import select
import signal

import pytest
import torch

from pretrain.distributed import choose_device, die_with_parent, start_world
from zoo.errors import UsageError


def test_child_of_a_parent_that_died_before_it_could_ask_ends_at_once() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        me = os.getpid()
        if os.fork() == 0:
            os.close(read)
            while os.getppid() == me:
                pass
            die_with_parent(me)
            os.write(write, b"outlived its parent")
            os._exit(0)
        os.kill(me, signal.SIGKILL)
    os.close(write)
    os.waitpid(parent, 0)
    answers, _, _ = select.select([read], [], [], 20)
    assert answers, "the grandchild neither spoke nor ended"
    assert os.read(read, 100) == b""  # its end of the pipe closed without a word
    os.close(read)


@pytest.mark.parametrize("name", ["nonsense", "cpu:x", "", "cuda"])
def test_a_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device") as caught:
        choose_device(name)
    assert "--device" in caught.value.where
    assert choose_device().type == "cpu"


def test_a_torchrun_whose_restarts_could_wait_for_ever_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UsageError, match="of the first start") as caught, start_world("cpu"):
        pass
    assert caught.value.where == "torchrun --max-restarts 3"
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in caught.value.fix
