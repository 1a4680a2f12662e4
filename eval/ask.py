"""What ``zoo eval`` was asked, sorted out: who answers, with which of the options.

An option that the benchmark would not look at is refused.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eval.run import Options, evaluate, require_known
from eval.segmentation.plan import SegOptions
from eval.segmentation.protocols import SEGMENTATION, TEST
from eval.segmentation.run import dump_config, plan_run, ranks_folder, segment
from pretrain.ranks import Ranks, start_ranks
from pretrain.recipe import as_record
from zoo.errors import UsageError
from zoo.options import aligned

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=.*", re.DOTALL)


class Answer(Protocol):
    """What there is to print."""

    def text(self) -> str: ...

    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The words and options of the command."""

    words: list[str]
    data: list[str] | None
    transform: str
    partial: bool
    pooling: str | None
    dtype: str
    batch: int | None
    out: Path
    cache: Path | None
    run: Path | None
    split: str | None
    from_scratch: bool
    dump_config: Path | None
    show: bool
    nproc: int
    workers: int
    device: str

    @property
    def benchmark(self) -> str:
        return self._plain[-1] if self._plain else ""

    @property
    def models(self) -> list[str]:
        return self._plain[:-1]

    @property
    def overrides(self) -> list[str]:
        return [word for word in self.words if _OVERRIDE.fullmatch(word)]

    @property
    def _plain(self) -> list[str]:
        return [word for word in self.words if not _OVERRIDE.fullmatch(word)]


@dataclass(frozen=True, slots=True)
class _Said:
    """An answer that is there already."""

    lines: dict[str, Any]

    def text(self) -> str:
        return aligned(self.lines)

    def as_dict(self) -> dict[str, Any]:
        return self.lines


def ask(asked: Asked) -> Answer | None:
    """Evaluate; None where another process has the answer.  Raises any ZooError."""
    if asked.benchmark.partition("@")[0] in SEGMENTATION:
        return _segment(asked)
    require_known(asked.benchmark)
    _refuse(
        asked.benchmark,
        {
            "--run": asked.run is not None,
            "--split": asked.split is not None,
            "--from-scratch": asked.from_scratch,
            "--dump-config": asked.dump_config is not None,
            "--show": asked.show,
            "--nproc": asked.nproc > 1,
            " ".join(asked.overrides): bool(asked.overrides),
        },
    )
    options = Options(
        transform=asked.transform,
        dtype=asked.dtype,
        partial=asked.partial,
        pooling=asked.pooling,
        batch=asked.batch,
        workers=asked.workers,
        device=asked.device,
        out=asked.out,
        cache=asked.cache,
    )
    return evaluate(asked.models, asked.benchmark, asked.data or [], options)


def _segment(asked: Asked) -> Answer | None:
    test = asked.benchmark == TEST
    _refuse(
        asked.benchmark,
        {
            "--transform": asked.transform != "card",
            "--pooling": asked.pooling is not None,
            "--dtype": asked.dtype != "float32",
            "--batch": asked.batch is not None,
            "--cache": asked.cache is not None,
            "--split": asked.split is not None and not test,
            "--run": asked.run is not None and test,
            "--from-scratch": asked.from_scratch and test,
            "--dump-config": asked.dump_config is not None and test,
            "--show": asked.show and test,
            " ".join(asked.overrides): bool(asked.overrides) and test,
        },
    )
    options = SegOptions(
        overrides=tuple(asked.overrides),
        run=asked.run,
        split=asked.split or SegOptions().split,
        from_scratch=asked.from_scratch,
        partial=asked.partial,
        workers=asked.workers,
        device=asked.device,
        out=asked.out,
    )
    given = (asked.models, asked.benchmark, asked.data or [], options)
    if asked.show:
        return _Said(as_record(plan_run(*given).recipe))
    if asked.dump_config:
        return _Said(dump_config(plan_run(*given), asked.dump_config, ranks=asked.nproc))
    if asked.nproc > 1 and "RANK" not in os.environ:
        folder = ranks_folder(options) if test else plan_run(*given).run.path
        start_ranks(Ranks(nproc=asked.nproc), sys.argv[1:], folder)
        return None
    return segment(*given)


def _refuse(benchmark: str, unused: dict[str, bool]) -> None:
    for option, given in unused.items():
        if given:
            raise UsageError(
                f"{benchmark or 'this'} takes no {option}",
                where="zoo eval",
                fix=f"leave {option} out",
            )
