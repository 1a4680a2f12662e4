"""``zoo diversity``: models, a folder of images; a result per model and one page."""

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from pathlib import Path
from typing import Any

from eval.diversity import (
    Diversity,
    common_cell,
    common_mask,
    measure,
    require_pairs,
    spread,
)
from eval.diversity_page import (
    QUERIES,
    Place,
    Shown,
    sample_images,
    similarity_maps,
    text_table,
    write_page,
)
from eval.diversity_protocol import MASK_RATIO, MASK_SEED, PROTOCOL, protocol_digest
from eval.results import Result
from pretrain.distributed import choose_device
from pretrain.export import code_version, environment
from pretrain.index import ImageIndex, open_index
from pretrain.teachers.frozen import FrozenTokens
from pretrain.teachers.tokens import open_tokens
from zoo.card import read_card
from zoo.errors import UsageError
from zoo.folder import RECORD
from zoo.hub import HUB, locate
from zoo.images import Preprocess

_STAGE = re.compile(r"(?P<source>.+):stride(?P<stride>[1-9]\d{0,3})")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiversityReport:
    """What was measured, of which images, and where it lies."""

    images: str
    image_size: int
    """In pixels, of every network."""
    found: Sequence[Diversity]
    results: Sequence[Result]
    files: Sequence[Path]
    """Of the results."""
    notes: Sequence[str]
    page: Path

    def as_dict(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "image_size": self.image_size,
            "results": [result.as_dict() for result in self.results],
            "files": [str(file) for file in self.files],
            "notes": list(self.notes),
            "page": str(self.page),
        }

    def text(self) -> str:
        return "\n".join(
            [
                f"{PROTOCOL} · {self.images} · {self.image_size} px",
                "",
                text_table(self.found),
                *(["", *self.notes] if self.notes else []),
                "",
                f"page: {self.page}",
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A model as the command line names it: ``NAME`` or ``NAME:strideN``."""

    text: str
    source: str
    stride: int | None

    def open(self, image_size: int | None, device: str) -> FrozenTokens:
        place = choose_device(device)
        return open_tokens(self.source, stride=self.stride, image_size=image_size, device=place)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """A model that was opened once and found to fit."""

    asked: _Asked
    label: str
    cell: int
    note: str


def run_diversity(
    models: Sequence[str],
    data: Path,
    *,
    out: Path,
    results: Path,
    images: int = 10_000,
    image_size: int | None = None,
    cell: int | None = None,
    queries: Sequence[Place] = QUERIES,
    workers: int = 2,
    device: str = "auto",
) -> DiversityReport:
    """Measure the models' token diversity on the same images; page in ``out``, JSON in ``results``.

    models: folder, Hub or timm names; a convnet's with ``:strideN`` for another stage than its
    last.  data: a folder of images; of one with train/ and val/, the former is read.  images: how
    many, evenly spaced.  image_size, cell: in pixels; null for the first model's own input, and
    for what ``common_cell`` says.  One model is in memory at a time.

    Raises UsageError, DataError, IntegrityError, NetworkError, DiskError.
    """
    index = _open_images(data)
    sample = spread(index, images)
    plans, size = _plan([_asked(text) for text in models], image_size)
    unit = cell or common_cell([plan.cell for plan in plans], size)
    common_mask(size, unit)  # refuses a cell before an hour's work, not after it
    shown: list[Shown] = []
    files, written = [], []
    for plan in plans:
        print(f"diversity: {plan.label}, {len(sample):,} images …", file=sys.stderr, flush=True)
        started = time.perf_counter()
        teacher = plan.asked.open(size, device)
        found = measure(teacher, sample, unit=unit, name=plan.label, workers=workers)
        seconds = time.perf_counter() - started
        written.append(_result(found, teacher, index, data.resolve().name, seconds))
        files.append(written[-1].save(results))
        # Not before: a damaged image is listed with all others.
        maps = similarity_maps(teacher, sample_images(sample, size), queries)
        shown.append(Shown(found=found, maps=maps, note=plan.note))
    about = f"{len(sample):,} of {len(index):,} images of {index.root}"
    return DiversityReport(
        images=about,
        image_size=size,
        found=[one.found for one in shown],
        results=written,
        files=files,
        notes=_notes(shown, size),
        page=write_page(
            out,
            shown=shown,
            images=sample_images(sample, size),
            queries=queries,
            about=f"{about}, {size} px",
        ),
    )


def _open_images(data: Path) -> ImageIndex:
    """Training images where the folder tells them apart from others: teachers see those."""
    split = (data / "train").is_dir() and (data / "val").is_dir()
    return open_index(data / "train" if split else data)


def _asked(text: str) -> _Asked:
    found = None if Path(text).expanduser().exists() else _STAGE.fullmatch(text)
    if not found:
        name, colon, stage = text.rpartition(":")
        if colon and not Path(text).expanduser().exists() and f"{name}:" != HUB:
            raise UsageError(
                f"a stage is written NAME:stride16, not {stage!r}",
                where=text,
                fix="give the stride of one of the convnet's stages, or no colon",
            )
        return _Asked(text=text, source=text, stride=None)
    return _Asked(text=text, source=found["source"], stride=int(found["stride"]))


def _plan(asked: Sequence[_Asked], image_size: int | None) -> tuple[list[_Plan], int]:
    """Open every model once, on the CPU, to learn that all fit; with the common image size.

    Raises UsageError, IntegrityError, NetworkError.
    """
    twice = [text for text, count in Counter(one.text for one in asked).items() if count > 1]
    if twice:
        raise UsageError("a model is named twice", where=", ".join(twice), fix="name it once")
    plans: list[_Plan] = []
    for one in asked:
        teacher = one.open(image_size, "cpu")
        image_size = teacher.preprocess.image_size
        record = teacher.record
        assert record is not None
        stage = f" /{record.stride}" if record.stride else ""
        where = f"{one.text} at {image_size} px, cells of {teacher.cell} px"
        require_pairs(teacher.grid**2, where=where)
        note = _untrained(one, teacher)
        plans.append(_Plan(asked=one, label=record.name + stage, cell=teacher.cell, note=note))
    assert image_size is not None
    counts = Counter(plan.label for plan in plans)
    return [replace(p, label=p.asked.text) if counts[p.label] > 1 else p for p in plans], image_size


def _untrained(asked: _Asked, teacher: FrozenTokens) -> str:
    """A note where a convnet is read at a stage that its training never reached."""
    record = locate(asked.source) / RECORD
    if not record.is_file() or teacher.record is None or teacher.record.stride is None:
        return ""
    fresh = set(read_card(record).fresh_parameters)
    if not fresh & {name for name, _ in teacher.net.named_parameters()}:
        return ""
    return (
        "this stage was never trained (its card says so): read an earlier one, as in NAME:stride16"
    )


def _result(
    found: Diversity, teacher: FrozenTokens, index: ImageIndex, data: str, seconds: float
) -> Result:
    """``diversity@1``: the headline, and the variants as details (similarities)."""
    preprocess = Preprocess(
        image_size=found.image_size, mean=teacher.preprocess.mean, std=teacher.preprocess.std
    )
    return Result(
        protocol=PROTOCOL,
        protocol_digest=protocol_digest(),
        model=found.name,
        model_digest=found.digest,
        metric="token diversity",
        value=1 - found.raw.value,
        standard_error=found.raw.error,
        samples=found.images,
        transform=asdict(preprocess),
        settings={
            "images": found.images,
            "stride": found.stride,
            "block": teacher.record.block if teacher.record else None,
            "unit": found.unit,
            "mask_ratio": MASK_RATIO,
            "mask_seed": MASK_SEED,
        },
        data=data,
        data_fingerprint=index.fingerprint,
        dtype="float32",
        seconds=round(seconds, 2),
        code_version=code_version(),
        environment=environment(),
        details={
            "tokens": found.tokens,
            "cell": found.cell,
            "width": found.width,
            "similarity": found.details(),
        },
    )


def _notes(shown: Sequence[Shown], size: int) -> list[str]:
    notes = [f"{one.found.name}: {one.note}" for one in shown if one.note]
    if any(one.found.matched is None for one in shown):
        unit = lcm(*(one.found.cell for one in shown))
        advice = f"; --cell {unit} fits all" if unit < size and size % unit == 0 else ""
        notes.append(f"–: its cells do not make up cells of {shown[0].found.unit} px{advice}")
    return notes
