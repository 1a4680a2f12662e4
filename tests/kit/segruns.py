"""Segmentation runs of the tests, by way of the command line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import zoo
from streets import SMALL

from zoo.errors import Exit


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that has come to its end; tests copy what they change."""

    run: Path
    out: Path
    answer: dict[str, Any]


def command(model: Path, data: Path, *more: str, benchmark: str = "ade20k-upernet") -> list[str]:
    """The words of a run of seconds."""
    return ["eval", str(model), benchmark, "--data", str(data), "--workers", "0", *SMALL, *more]


def result_in(folder: Path = Path("results")) -> dict[str, Any]:
    """The only result of a folder."""
    (file,) = folder.glob("*.json")
    return json.loads(file.read_bytes())


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a command that ends well prints."""
    assert zoo([*words, "--json"]) == Exit.DONE
    return json.loads(capsys.readouterr().out)


def error(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and text of a command that fails, with nothing on stdout."""
    code = zoo(words)
    shown = capsys.readouterr()
    assert not shown.out
    assert "Traceback" not in shown.err
    return code, shown.err
