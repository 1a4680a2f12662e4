"""No process outlives its parent, and a device that is not there is refused."""

import os
import select
import signal
import sys
from pathlib import Path

import pytest
import torch

from pretrain.distributed import choose_device, die_with_parent, start_world
from zoo.cli import main
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


def test_more_ranks_than_devices_are_refused_before_any_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    command = ["pretrain", "mae-vit-t", "data.source=folder:x", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--nproc", "2"])
    assert stop.value.code == 2
    assert "at most --nproc 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


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
    monkeypatch.delenv("TINYZOO_TORCHRUN", raising=False)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UsageError, match="of the first start") as caught, start_world("cpu"):
        pass
    assert caught.value.where == "torchrun --max-restarts 3"
    assert "zoo pretrain --restarts" in caught.value.fix
