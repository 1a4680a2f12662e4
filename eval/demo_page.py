"""The demo's page: a table, bars, curves, relation maps, and the diversity of the teachers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from eval.diversity import Diversity
from eval.diversity_page import chart as diversity_chart
from eval.diversity_page import sample_images, side_by_side, similarity_maps
from eval.report import Page, Relation, Table, bars, curves, relation_maps
from pretrain.distillation import relation_logits
from pretrain.index import ImageIndex
from pretrain.log import read_log
from pretrain.teachers.frozen import FrozenTokens
from zoo.folder import Model, holds_convnet, load_model, read_config
from zoo.images import normalise, read_image
from zoo.vit import Tap, taps

MAE_TEACHER, TINYMIM = "MAE teacher", "TinyMIM student"
CONVNET, IMG2VEC = "convnet teacher", "Img2Vec student"
_ROWS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Accuracies of one network's frozen features and their standard errors, in percent."""

    linear: float
    linear_error: float
    knn: float
    knn_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """All that the page tells of, by network."""

    scores: Mapping[str, Score]
    diversity: Mapping[str, Diversity]
    folders: Mapping[str, Path]
    """Model folders."""
    networks: Mapping[str, FrozenTokens]
    runs: Mapping[str, Path]
    """Run folders of what was trained."""
    images: ImageIndex
    """For validation."""
    drawn: bool
    """Whether the images are the demo's own."""


def write_page(path: Path, story: Story) -> Path:
    """Write the page at ``path``."""
    what = "drawn images" if story.drawn else "your images"
    page = Page("tinyzoo demo", f"Two small teachers, two smaller students, {what}")
    page.text(
        "An MAE teacher learned to fill in masked patches. A TinyMIM student, smaller, learned "
        "only how the teacher's tokens relate to one another: which patch attends to which. A "
        "convnet learned that two views of an image belong together (SimCLR). An Img2Vec student, "
        "the same network as the TinyMIM one, learned to predict the convnet's features at masked "
        "places. No label was used. Then every network is frozen, and two simple classifiers read "
        "its features (the mean of its spatial tokens): a linear one (ridge@1) and the vote of "
        "the 20 nearest neighbours (knn@1)."
    )
    if story.drawn:
        page.text(
            "Light and colour vary freely in the drawn images: the linear probe can ignore them, "
            "the neighbours cannot. The convnet's views differ in colour, so it learned to ignore "
            "them, and its student learned that from it."
        )
    page.heading("Frozen features")
    page.table(_table(story))
    values = {name: score.linear for name, score in story.scores.items()}
    errors = {name: score.linear_error for name, score in story.scores.items()}
    chart = bars(values, xlabel="linear probe, %", errors=errors, highlight=(TINYMIM, IMG2VEC))
    page.figure(
        chart,
        "Whiskers are one standard error over the validation images.",
        "Bars: " + ", ".join(f"{name} {value:.1f} %" for name, value in values.items()),
    )
    page.heading("What the TinyMIM student learned")
    page.figure(
        _relations(story),
        "For the marked patch: how strongly each other patch is related to it (softmax of Q·K, "
        "mean over relation heads), in the teacher's block and in the student's last block. Each "
        "map is scaled from its own least to its own greatest value. Validation images.",
        "Images with one patch marked, and heat-maps of teacher and student side by side.",
    )
    _tell_diversity(page, story)
    page.heading("Training")
    for name, run in story.runs.items():
        page.figure(*_curve(name, run))
    page.write(path)
    return path


def _tell_diversity(page: Page, story: Story) -> None:
    """What Img2Vec's teacher offers: tokens that differ from one another."""
    page.heading("What the Img2Vec student was asked")
    page.text(
        "Where a teacher's tokens all resemble one another, a masked one can be guessed from any "
        "visible one. Token diversity, 1 minus the mean cosine between two tokens of an image, "
        "measures that; the maps show the cosine of the marked place to every other, in the same "
        "colours for every network."
    )
    found = list(story.diversity.values())
    page.figure(
        diversity_chart(found),
        "Token diversity of the two teachers, of their tokens as they are and LayerNormed (as "
        "Img2Vec's targets are). They differ in more than their kind: cells of "
        + " and ".join(f"{one.cell} px ({one.name})" for one in found)
        + ".",
        "Bars: " + ", ".join(f"{one.name} {1 - one.raw.value:.2f}" for one in found),
    )
    size = found[0].image_size
    images = sample_images(story.images, size, count=_ROWS)
    shown = [*story.diversity, IMG2VEC]
    maps = {name: similarity_maps(story.networks[name], images) for name in shown}
    page.figure(
        side_by_side(images, maps),
        "Cosine of the marked token to every token of the image, in both teachers and in the "
        "Img2Vec student. Validation images.",
        "Images with one place marked, and heat-maps of three networks side by side.",
    )


def _table(story: Story) -> Table:
    rows = []
    for name, score in story.scores.items():
        network, run = story.networks.get(name), story.runs.get(name)
        size = sum(p.numel() for p in network.net.parameters()) if network else None
        rows.append(
            [
                name,
                _kind(story.folders[name]) if network else "–",
                f"{size / 1e6:.2f} M" if size else "–",
                f"{read_log(run / 'log.jsonl')[-1]['step']:,}" if run else "0",
                f"{score.linear:.1f} ± {score.linear_error:.1f}",
                f"{score.knn:.1f} ± {score.knn_error:.1f}",
            ]
        )
    columns = ["network", "kind", "parameters", "steps", "linear, %", "kNN, %"]
    best = [list(story.scores).index(name) for name in (TINYMIM, IMG2VEC)]
    return Table(columns=columns, rows=rows, highlight=best)


def _kind(folder: Path) -> str:
    """Width and depth of a ViT; a convnet's family."""
    if holds_convnet(folder):
        return "ResNet"
    config = read_config(folder)
    return f"ViT {config.width} × {config.depth}"


def _curve(name: str, run: Path) -> tuple[Figure, str, str]:
    rows = [row for row in read_log(run / "log.jsonl") if "total" in row]
    steps = [row["step"] for row in rows]
    labels = {
        "total": "loss",
        "qk": "QK relation",
        "vv": "VV relation",
        "patch": "masked places",
        "global": "whole image",
    }
    parts = [key for key in labels if key in rows[0]]
    figure = curves(
        {labels[key]: (steps, [row[key] for row in rows]) for key in parts}, ylabel="loss"
    )
    last = rows[-1]["total"]
    return figure, f"{name}: loss over {steps[-1]} steps.", f"{name}: the loss ends at {last:.3f}"


def _relations(story: Story) -> Figure:
    """One image of each of the first classes, with the query at its centre."""
    index = story.images
    models = {name: load_model(story.folders[name]) for name in (MAE_TEACHER, TINYMIM)}
    labels = index.labels
    assert labels is not None
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(len(index.classes))]
    spread = np.linspace(0, len(first) - 1, min(_ROWS, len(first))).astype(int)
    rows = []
    for i in (first[j] for j in spread):
        pixels = models[TINYMIM].preprocess.eval_crop(read_image(index.path(i)))
        grid = models[TINYMIM].config.grid
        query = (grid // 2, grid // 2)
        maps = {
            MAE_TEACHER: relation_map(
                models[MAE_TEACHER], pixels, query, block=_teacher_block(models)
            ),
            TINYMIM: relation_map(models[TINYMIM], pixels, query),
        }
        rows.append(Relation(image_HW3=pixels.permute(1, 2, 0).numpy(), query=query, maps=maps))
    return relation_maps(rows)


def _teacher_block(models: Mapping[str, Model]) -> int:
    card = models[TINYMIM].card
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
