"""What was measured of token diversity, to be read: tables, bars, heat-maps, and a page of them.

B images · Q query tokens · K tokens · G cells along one side · S image side in pixels
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from eval.crops import images_of
from eval.diversity import Diversity, Estimate, device_of, require_pairs, spread, unit_tokens
from eval.report import Page, Relation, Scale, Table, bars, relation_maps, save_png
from pretrain.index import ImageIndex
from pretrain.teachers.frozen import FrozenTokens
from zoo.errors import UsageError
from zoo.images import Preprocess

Place = tuple[float, float]
"""(row, column) of a query token, each in [0, 1) of the image's side."""

QUERIES: tuple[Place, ...] = ((0.5, 0.5), (0.15, 0.15), (0.85, 0.8))
ROWS = 4
"""Images in a figure."""
MOST_SIDE_BY_SIDE = 5
COSINE = Scale(low=-1, high=1, label="cosine similarity to the query token")
NONE = "–"
MOST_NAME = 31
"""Characters of a name in tables and figures: the text table then fills 100 columns."""

_READ = (
    "A network cuts an image into cells and gives one vector, a token, for each. Token similarity "
    "is the mean cosine between two different tokens of one image; diversity is 1 minus that. "
    "Near 0, all places of an image look alike to the network; near 1, they have nothing in "
    "common. It was proposed (Img2Vec, arXiv 2304.12535) as the mark of a good teacher for masked "
    "prediction: where the target at a hidden place resembles the targets in sight, a student can "
    "score well without inferring anything.",
)
_CONFOUNDS = (
    "Four things move the headline without making a teacher better or worse, and each has a column "
    "that takes it out. Rectified features are never negative, so even unrelated tokens have a "
    "cosine above 0 (0.32 if they are rectified Gaussian noise): LayerNorm removes that floor, and "
    "is how Img2Vec uses the tokens. Networks with smaller cells have more tokens, and near ones "
    "resemble each other more: “pooled” averages all networks' tokens to one cell size. An offset "
    "that all tokens of a data set share raises every cosine: “centred” subtracts the mean token. "
    "And the argument is about hidden and visible places, not about all pairs: the last table "
    "compares just those, under the mask that Img2Vec trains with. Its greatest cosine is taken "
    "over more tokens where cells are smaller.",
    "What no column removes: depth, width and training data differ between networks, and the "
    "cosine of a few large channels can hide all others.",
)
_AGAINST = (
    "dBOT (ICLR 2024) is evidence against reading too much into such numbers: when a student "
    "becomes the next teacher for a few rounds, students end up about equally good whichever "
    "teacher came first, even one with random weights.",
    "DTM (ICLR 2025) argues the opposite way: targets that differ from place to place without "
    "reason slow the learning, and merging tokens into more uniform targets helps.",
)


@torch.inference_mode()
def similarity_maps(
    teacher: FrozenTokens, images: Tensor, queries: Sequence[Place] = QUERIES
) -> np.ndarray:
    """Cosine of each query token to every token of its image, (B, Q, G, G) fp32.

    images: (B, 3, S, S) uint8 at the network's input size.  Raises UsageError for fewer than two
    tokens.
    """
    grid = teacher.grid
    require_pairs(grid**2)
    units = unit_tokens(teacher(images.to(device_of(teacher)) / 255))
    tokens = [row * grid + column for row, column in cells_of(queries, grid)]
    cosine = units[:, tokens] @ units.mT
    return cosine.reshape(len(images), len(queries), grid, grid).cpu().numpy()


def cells_of(queries: Sequence[Place], grid: int) -> list[tuple[int, int]]:
    """(row, column) of the cells in which the queries lie."""
    return [(int(row * grid), int(column * grid)) for row, column in queries]


def sample_images(index: ImageIndex, image_size: int, count: int = ROWS) -> Tensor:
    """(B, 3, S, S) uint8, evenly spaced over the index, as ``measure`` sees them.

    Raises DataError.
    """
    return torch.cat(list(images_of(spread(index, count), Preprocess(image_size=image_size))))


def heat_maps(teacher: FrozenTokens, images: Tensor, queries: Sequence[Place] = QUERIES) -> Figure:
    """One row per image: the image with its query tokens, then each one's cosine to all tokens.

    The colours mean the same in every such figure.  Arguments as for ``similarity_maps``.
    """
    return draw_maps(images, similarity_maps(teacher, images, queries), queries)


def draw_maps(images: Tensor, maps_BQGG: np.ndarray, queries: Sequence[Place]) -> Figure:
    """The figure of ``heat_maps``, from what ``similarity_maps`` gave."""
    titles = [f"query {number}" for number in range(1, 1 + len(queries))]
    cells = dict(zip(titles, cells_of(queries, maps_BQGG.shape[-1]), strict=True))
    rows = [
        Relation(image_HW3=_pixels(image), query=cells, maps=dict(zip(titles, maps, strict=True)))
        for image, maps in zip(images, maps_BQGG, strict=True)
    ]
    return relation_maps(rows, scale=COSINE)


def side_by_side(
    images: Tensor, maps: Mapping[str, np.ndarray], queries: Sequence[Place] = QUERIES
) -> Figure:
    """One row per image, one column per network: the same place as the query in all of them.

    maps: name → what ``similarity_maps`` gave; the first query is shown.
    """
    wrapped = {"\n".join(wrap(_short(name), 16)): found for name, found in maps.items()}
    cells = {name: cells_of(queries[:1], found.shape[-1])[0] for name, found in wrapped.items()}
    rows = [
        Relation(
            image_HW3=_pixels(image),
            query=cells,
            maps={name: found[number, 0] for name, found in wrapped.items()},
        )
        for number, image in enumerate(images)
    ]
    return relation_maps(rows, scale=COSINE)


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def chart(found: Sequence[Diversity]) -> Figure:
    """Bars of diversity: of each network's raw tokens, in colour, and of LayerNormed ones."""
    values, errors = {}, {}
    for one in found:
        for suffix, estimate in (("", one.raw), (", LayerNorm", one.layernorm)):
            values[_short(one.name) + suffix] = 1 - estimate.value
            errors[_short(one.name) + suffix] = estimate.error
    raw = list(values)[::2]
    return bars(values, xlabel="diversity", errors=errors, form=".3f", highlight=raw)


def _short(name: str) -> str:
    """A long name by its end, where a path differs from another and a stage stands."""
    return name if len(name) <= MOST_NAME else "…" + name[1 - MOST_NAME :]


def text_table(found: Sequence[Diversity]) -> str:
    """The table for a terminal, at most 100 columns wide: values, and standard errors below."""
    width = max(16, *(len(_short(one.name)) for one in found))
    head = ["raw", "LayerNorm", f"{found[0].unit} px", "centred", "mean", "max"]
    lines = [
        f"{'':{width}}  {'':6}  {' diversity ':-^39} {' masked→visible ':-^19}",
        f"{'':{width}}  {'tokens':>6}  {_columns(head)}",
    ]
    for one in found:
        values, errors = zip(*_cells(one), strict=True)
        lines.append(f"{_short(one.name):{width}}  {one.tokens:>6}  {_columns(values)}")
        plus_minus = [error and f"± {error}" for error in errors]
        lines.append(f"{'':{width}}  {'':6}  {_columns(plus_minus)}")
    return "\n".join(line.rstrip() for line in lines)


def _columns(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>9}" for cell in cells)


def _cells(one: Diversity) -> list[tuple[str, str]]:
    """(value, error) of four diversities and two similarities, written."""
    diversities = [one.raw, one.layernorm, one.matched, one.centred]
    shown = [(e and 1 - e.value, e) for e in diversities]
    shown += [(e and e.value, e) for e in (one.visible_mean, one.visible_max)]
    return [(f"{value:.3f}", _error(e)) if e else (NONE, "") for value, e in shown]


def _error(estimate: Estimate) -> str:
    """One digit more where three would read as none."""
    return f"{estimate.error:.4f}" if estimate.error < 0.0015 else f"{estimate.error:.3f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One network on the page."""

    found: Diversity
    maps: np.ndarray
    """(B, Q, G, G), from ``similarity_maps``."""
    note: str = ""
    """What a reader should know of it."""


def write_page(
    folder: Path,
    *,
    shown: Sequence[Shown],
    images: Tensor,
    queries: Sequence[Place],
    about: str,
) -> Path:
    """``folder/index.html``, and its figures as PNG files beside it.  Raises DiskError.

    images: (B, 3, S, S) uint8, those of the maps.  about: the images and how they were read.
    """
    found = [one.found for one in shown]
    page = Page("Token diversity", about).text(*_READ)
    page.heading("Diversity").table(_diversities(found)).text(*_missing(found))
    page.text(*(f"{one.found.name}: {one.note}" for one in shown if one.note))
    values = ", ".join(f"{one.name} {1 - one.raw.value:.3f}" for one in found)
    _add(page, folder, "diversity", chart(found), _BARS, f"Bars of diversity: {values}.")
    page.heading("Hidden and visible places").table(_similarities(found))
    page.heading("How to read it").text(*_CONFOUNDS)
    page.heading("What speaks against it").text(*_AGAINST)
    page.heading("Where the tokens resemble one another").text(
        "Each map shows one query token, framed, and the cosine of every token of the image to "
        "it: deep red is alike, white unrelated, blue opposed. All maps of this page have the same "
        "scale, so a network whose tokens are all alike shows a uniform red."
    )
    if 2 <= len(shown) <= MOST_SIDE_BY_SIDE:
        figure = side_by_side(images, {one.found.name: one.maps for one in shown}, queries)
        caption = "The same place as the query in every network; each in its own grid."
        _add(page, folder, "side-by-side", figure, caption, "Images and one heat-map per network.")
    for number, one in enumerate(shown, 1):
        figure = draw_maps(images, one.maps, queries)
        slug = re.sub(r"[^a-z0-9]+", "-", one.found.name.lower()).strip("-")[:60]
        caption = (
            f"{one.found.name}: diversity {1 - one.found.raw.value:.3f}, "
            f"mean token subtracted {1 - one.found.centred.value:.3f}. "
            f"{one.found.tokens} tokens of {one.found.width} channels."
        )
        alt = f"Images with {len(queries)} marked cells, and a heat-map of {one.found.name} each."
        _add(page, folder, f"heat-maps-{number}-{slug}", figure, caption, alt)
    path = folder / "index.html"
    page.write(path)
    return path


_BARS = (
    "Blue: the tokens as they are. Grey: LayerNormed. Whiskers are one standard error over the "
    "images."
)


def _add(page: Page, folder: Path, name: str, figure: Figure, caption: str, alt: str) -> None:
    save_png(figure, folder / f"{name}.png")
    page.figure(figure, caption, alt)


def _diversities(found: Sequence[Diversity]) -> Table:
    return Table(
        columns=["network", "raw", "LayerNorm", f"pooled, {found[0].unit} px", "centred"],
        rows=[[one.name, *_written(one)[:4]] for one in found],
        caption="Diversity, 1 − mean cosine; ± one standard error over the images.",
    )


def _similarities(found: Sequence[Diversity]) -> Table:
    rows = []
    for one in found:
        everywhere = f"{one.raw.value:.3f} ± {_error(one.raw)}"
        rows.append([one.name, str(one.tokens), everywhere, *_written(one)[4:]])
    return Table(
        columns=["network", "tokens", "all pairs", "hidden to visible, mean", "greatest"],
        rows=rows,
        caption=f"Similarity, mean cosine; 60 % of cells of {found[0].unit} px are hidden.",
    )


def _written(one: Diversity) -> list[str]:
    return [f"{value} ± {error}" if error else value for value, error in _cells(one)]


def _missing(found: Sequence[Diversity]) -> list[str]:
    """Why a column has a gap."""
    names = [f"{one.name} ({one.cell} px)" for one in found if one.matched is None]
    unit = found[0].unit
    gap = f"{NONE}: the cells of {', '.join(names)} do not make up cells of {unit} px."
    return [gap] if names else []


def parse_query(text: str) -> Place:
    """``0.5,0.25`` as (row, column).  Raises UsageError."""
    parts = text.split(",")
    try:
        row, column = (float(part) for part in parts)
    except ValueError:
        row = column = float("nan")
    if not (0 <= row < 1 and 0 <= column < 1):
        raise UsageError(
            f"no place in an image: {text!r}",
            where="--query ROW,COL",
            fix="give two numbers from 0 up to, not including, 1: 0.5,0.5 is the centre",
        )
    return row, column
