"""``zoo import`` as tests run it: in a folder of their own, and without a process start each."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.foreign import quarantine, unpickle
from zoo.foreign.formats import EXPECTED
from zoo.foreign.found import Found
from zoo.foreign.importer import Imported, import_file
from zoo.foreign.unpickle import Seen


def forked(words: list[str], folder: Path, seconds: float) -> int:
    """As ``quarantine._run``, by a fork of this process, which has imported torch already."""
    child = os.fork()
    if child == 0:
        try:
            unpickle.main(words)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs in a folder of its own, forks, and leaves no temporary behind."""
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    monkeypatch.setattr(quarantine, "_run", forked)
    monkeypatch.chdir(tmp_path)
    yield
    assert not list((tmp_path / "temp").iterdir())
    assert not list(tmp_path.rglob(".tmp-*"))


def imported(content: object, name: str = "model", out: Path = Path("models")) -> Imported:
    """``content`` saved as ``name.pth`` and imported under that name."""
    torch.save(content, f"{name}.pth")
    return import_file(Path(f"{name}.pth"), name, out)


def found_in(shapes: Mapping[str, tuple[int, ...]], **seen: Any) -> Found:
    """A file with tensors of these shapes, read as zeros."""
    return Found(
        file=Path("x.pth"),
        seen=Seen(kind="dict", tensors=len(shapes), **seen),
        shapes=shapes,
        read=lambda names: {name: torch.zeros(shapes[name]) for name in names},
        expected=EXPECTED,
    )
