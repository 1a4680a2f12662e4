"""The demo's page: a table, bars, curves, and relation maps of teacher and student."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from eval.report import Page, Relation, Table, bars, curves, relation_maps
from pretrain.index import ImageIndex
from pretrain.log import read_log
from pretrain.methods.tinymim import relation_logits
from zoo.folder import Model
from zoo.images import normalise, read_image
from zoo.vit import Tap, taps

_TEACHER, _STUDENT = "MAE teacher", "TinyMIM student"
_ROWS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Accuracies of one network's frozen features and their standard errors, in percent."""

    linear: float
    linear_error: float
    knn: float
    knn_error: float


def write_page(
    path: Path,
    *,
    scores: Mapping[str, Score],
    models: Mapping[str, Model],
    runs: Mapping[str, Path],
    images: ImageIndex,
    drawn: bool,
) -> Path:
    """Write the page at ``path``."""
    what = "drawn images" if drawn else "your images"
    page = Page("tinyzoo demo", f"A small teacher, a smaller student, {what}")
    page.text(
        "An MAE teacher learned to fill in masked patches. A TinyMIM student, smaller, learned "
        "only how the teacher's tokens relate to one another: which patch attends to which. No "
        "label was used. Then every network is frozen, and two simple classifiers read its "
        "features (the mean of the patch tokens after the last trained block): a linear one "
        "(ridge@1) and the vote of the 20 nearest neighbours (knn@1)."
    )
    if drawn:
        page.text(
            "Light and colour vary freely in the drawn images: the linear probe can ignore them, "
            "the neighbours cannot."
        )
    page.heading("Frozen features")
    page.table(_table(scores, models, runs))
    values = {name: score.linear for name, score in scores.items()}
    errors = {name: score.linear_error for name, score in scores.items()}
    chart = bars(values, xlabel="linear probe, %", errors=errors, highlight=(_STUDENT,))
    page.figure(
        chart,
        "Whiskers are one standard error over the validation images.",
        "Bars: " + ", ".join(f"{name} {value:.1f} %" for name, value in values.items()),
    )
    page.heading("What the student learned")
    page.figure(
        _relations(models, images),
        "For the marked patch: how strongly each other patch is related to it (softmax of Q·K, "
        "mean over relation heads), in the teacher's block and in the student's last block. Each "
        "map is scaled from its own least to its own greatest value. Validation images.",
        "Images with one patch marked, and heat-maps of teacher and student side by side.",
    )
    page.heading("Training")
    for name, run in runs.items():
        page.figure(*_curve(name, run))
    page.write(path)
    return path


def _table(
    scores: Mapping[str, Score],
    models: Mapping[str, Model],
    runs: Mapping[str, Path],
) -> Table:
    rows = []
    for name, score in scores.items():
        model, run = models.get(name), runs.get(name)
        parameters = sum(p.numel() for p in model.vit.parameters()) if model else None
        rows.append(
            [
                name,
                f"{model.config.width} × {model.config.depth}" if model else "–",
                f"{parameters / 1e6:.2f} M" if parameters else "–",
                f"{read_log(run / 'log.jsonl')[-1]['step']:,}" if run else "0",
                f"{score.linear:.1f} ± {score.linear_error:.1f}",
                f"{score.knn:.1f} ± {score.knn_error:.1f}",
            ]
        )
    columns = ["network", "width × depth", "parameters", "steps", "linear, %", "kNN, %"]
    best = list(scores).index(_STUDENT)
    return Table(columns=columns, rows=rows, highlight=(best,))


def _curve(name: str, run: Path) -> tuple[Figure, str, str]:
    rows = read_log(run / "log.jsonl")
    steps = [row["step"] for row in rows]
    parts = [key for key in ("total", "qk", "vv") if key in rows[0]]
    labels = {"total": "loss", "qk": "QK relation", "vv": "VV relation"}
    figure = curves(
        {labels[key]: (steps, [row[key] for row in rows]) for key in parts}, ylabel="loss"
    )
    last = rows[-1]["total"]
    return figure, f"{name}: loss over {steps[-1]} steps.", f"{name}: the loss ends at {last:.3f}"


def _relations(models: Mapping[str, Model], index: ImageIndex) -> Figure:
    """One image of each of the first classes, with the query at its centre."""
    labels = index.labels
    assert labels is not None
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(len(index.classes))]
    spread = np.linspace(0, len(first) - 1, min(_ROWS, len(first))).astype(int)
    rows = []
    for i in (first[j] for j in spread):
        pixels = models[_STUDENT].preprocess.eval_crop(read_image(index.path(i)))
        grid = models[_STUDENT].config.grid
        query = (grid // 2, grid // 2)
        maps = {
            _TEACHER: relation_map(models[_TEACHER], pixels, query, block=_teacher_block(models)),
            _STUDENT: relation_map(models[_STUDENT], pixels, query),
        }
        rows.append(Relation(image_HW3=pixels.permute(1, 2, 0).numpy(), query=query, maps=maps))
    return relation_maps(rows)


def _teacher_block(models: Mapping[str, Model]) -> int:
    card = models[_STUDENT].card
    assert card is not None
    assert card.teacher is not None
    assert card.teacher.block is not None
    return card.teacher.block


@torch.inference_mode()
def relation_map(
    model: Model, pixels: torch.Tensor, query: tuple[int, int], *, block: int | None = None
) -> np.ndarray:
    """QK relation of the query patch (row, column) to every patch, (grid, grid), summing to ≤ 1.

    pixels: (3, S, S) uint8.  block: 1-based, the last one by default; there a distilled student's
    relations have the heads that its card records.
    """
    card, config = model.card, model.config
    heads = card.relation_heads if card and not block else None
    inputs = normalise(pixels.unsqueeze(0) / 255, model.preprocess.mean, model.preprocess.std)
    q, k = (Tap(block or config.depth, kind) for kind in ("q", "k"))
    found = taps(model.vit, inputs, [q, k])
    relation = relation_logits((found[q], found[k]), heads or config.heads).softmax(-1).mean(1)
    row = 1 + query[0] * config.grid + query[1]
    return relation[0, row, 1:].reshape(config.grid, config.grid).numpy()
