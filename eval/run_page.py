"""``zoo report``: a run's page, with its curves, its live signal and how it ended.

L blocks · H heads · T looks
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval.report import PALETTE, STYLE, Page, Table, curves
from eval.run_story import Rows, Story, read_story

NAME = "run.html"
"""Beside ``report.html``, which fine-tuning and segmentation write of their own."""
MOST_POINTS = 400
"""Of a curve; beyond, neighbours are averaged."""
_LOG_FROM = 20
"""A curve that falls by more than this factor is drawn on a logarithmic axis."""
_PROBE, _ERROR = "signal_probe@1", "signal_error_"
_SIZE = (4.8, 2.7)
_QUIET, _RULE, _INK = "#b9b6b0", "#dedad2", "#66645f"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """What ``zoo report`` answers."""

    page: Path
    story: Story

    def as_dict(self) -> dict[str, Any]:
        story = self.story
        return {
            "page": str(self.page),
            "name": story.name,
            "state": story.state,
            "error": (story.ended or {}).get("error", ""),
            "step": story.step,
            "steps": story.steps,
            "images_per_second": story.images_per_second,
            "train": dict(story.train[-1]) if story.train else None,
            "validation": dict(story.val[-1]) if story.val else None,
            "signal": dict(story.signal[-1]) if story.signal else None,
            "signal_share": story.signal_share,
            "quarantined": story.quarantined,
            "checkpoints": list(story.checkpoints),
            "exports": list(story.exports),
        }

    def text(self) -> str:
        rows = [f"{name:<{_WIDTH}}  {value}" for name, value in _facts(self.story)]
        return "\n".join([self.story.name, *rows, f"{'page':<{_WIDTH}}  {self.page}"])


_WIDTH = 20


def report(folder: Path) -> RunReport:
    """Write the page of a run into its folder.  Raises UsageError, DiskError."""
    story = read_story(folder)
    page = Page(story.name, _subtitle(story))
    page.table(
        Table(columns=["", "now"], rows=[list(f) for f in _facts(story)], sides=["left", "left"])
    )
    if story.ended and story.state != "done":
        lines = [str(story.ended.get(key, "")) for key in ("error", "where", "fix")]
        page.text(*(line for line in lines if line))
    _tell_training(page, story)
    _tell_validation(page, story.val)
    _tell_signal(page, story)
    _tell_folder(page, story)
    for title, record in (("The recipe", story.recipe), ("The machine", story.environment)):
        if record:
            page.heading(title)
            rows = [[key, _plain(value)] for key, value in record.items()]
            page.table(Table(columns=["field", "value"], rows=rows, sides=["left", "left"]))
    place = folder / NAME
    page.write(place)
    return RunReport(page=place, story=story)


def _subtitle(story: Story) -> str:
    words = {
        "done": "done",
        "going on": "going on",
        "killed": "was killed; the same command continues it",
    }
    return f"{story.recipe.get('method', 'a run')}, {words.get(story.state, story.state)}"


def _facts(story: Story) -> list[tuple[str, str]]:
    """The run in a few lines: what each is, and its value."""
    of = f" of {story.steps:,}" if story.steps else ""
    facts = [("state", story.state), ("step", f"{story.step:,}{of}")]
    if story.train:
        facts.append(("loss", f"{story.train[-1]['total']:.4g}"))
    if rate := story.images_per_second:
        facts.append(("images/s", f"{rate:,.0f} (median)"))
        facts.append(("time", _duration(story.seconds)))
        left = _left(story)
        facts += [("time left, about", _duration(left))] if left else []
    for row in story.val[-1:]:
        facts += [(_title(n), f"{v:.4g}") for n, v in row.items() if n.startswith("val_")]
    for row in story.signal[-1:]:
        facts += _signal_facts(row)
    if (share := story.signal_share) is not None:
        facts.append(("cost of the signal", f"{100 * share:.2f} % of the time"))
    if story.quarantined:
        facts.append(("unreadable images", f"{story.quarantined:,}"))
    return facts


def _signal_facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    errors = {n.removeprefix(_ERROR): row[n] for n in row if n.startswith(_ERROR)}
    if errors:
        told = ", ".join(f"{name} {_short(value)}" for name, value in errors.items())
        facts.append(("error to the teacher", told))
    if (rank := row.get("signal_rankme")) is not None:
        facts.append(("RankMe", f"{rank:.1f}"))
    if (score := row.get(_PROBE)) is not None:
        facts.append(("probe@1", f"{score:.1f} ± {row[f'{_PROBE}_error']:.1f} %"))
    return facts


def _left(story: Story) -> float | None:
    """Seconds that a run which goes on still needs, at its own rate."""
    batch = story.recipe.get("training.global_batch")
    if story.state != "going on" or not (story.steps and batch and story.images_per_second):
        return None
    return (story.steps - story.step) * batch / story.images_per_second


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return (
        f"{hours:.1f} h"
        if hours >= 2
        else f"{minutes:.1f} min"
        if minutes >= 2
        else (f"{seconds:.0f} s")
    )


def _tell_training(page: Page, story: Story) -> None:
    if not story.train:
        page.text("No row of the log has been written yet.")
        return
    page.heading("Training")
    losses = {name: series(story.train, name) for name in story.losses}
    first, last = story.train[0]["total"], story.train[-1]["total"]
    page.figure(
        _lines({"total": losses.pop("total"), **losses}, "loss"),
        "Losses, each point the mean of the steps since the point before.",
        f"The loss goes from {first:.4g} to {last:.4g}.",
    )
    if story.shares:
        shares = {name: series(story.train, name) for name in story.shares}
        page.figure(_lines(shares, "share"), "On the images trained on.", "Shares over steps.")
    panels = {
        label: series(story.train, name)
        for name, label in (
            ("images_per_second", "images/s"),
            ("lr", "learning rate"),
            ("grad_norm", "gradient norm"),
        )
        if any(name in row for row in story.train)
    }
    page.figure(
        stacked(panels),
        "Images a second, without validation and signal; the learning rate, of which some "
        "parameters may have a share; the gradient's norm before any clipping.",
        "; ".join(f"{k} from {y[0]:.3g} to {y[-1]:.3g}" for k, (_, y) in panels.items()),
    )


def _tell_validation(page: Page, rows: Rows) -> None:
    names = dict.fromkeys(n for row in rows for n in row if n.startswith("val_"))
    if not names:
        return
    page.heading("Validation")
    for name in names:
        line = series(rows, name)
        page.figure(
            _lines({_title(name): line}, _title(name)),
            f"{_title(name)}, on images that are not trained on.",
            f"{_title(name)} from {line[1][0]:.4g} to {line[1][-1]:.4g}",
        )


def _tell_signal(page: Page, story: Story) -> None:
    rows = story.signal
    if not rows:
        return
    page.heading("Live signal")
    images = rows[-1]["signal_images"]
    page.text(
        f"A look, every so often, at the frozen features of {images:,} training images: the same "
        "ones each time, without augmentation. It compares this run with itself, and is no "
        "benchmark."
    )
    if len(rows) > 1:  # one look is told in the table above
        _tell_signal_curves(page, rows)
    looks = [row for row in rows if row.get("signal_attention_distance")]
    if looks:
        page.figure(
            distance_profile(looks),
            "How far each head looks: the mean distance from a patch to what it attends to, by "
            "block. Lines are means over a block's heads, dots the heads at the last look.",
            "Mean attention distance by block at the first and the last look.",
        )
    if len(looks) > 2:
        page.figure(
            distance_map(looks),
            "The mean over heads in every block, over the run.",
            "A map of attention distance, blocks over steps.",
        )


def _tell_signal_curves(page: Page, rows: Rows) -> None:
    errors = [n for n in rows[-1] if n.startswith(_ERROR)]
    if errors:
        lines = {n.removeprefix(_ERROR): series(rows, n) for n in errors}
        page.figure(
            _lines(lines, "error to the teacher"),
            "How far the student is from the teacher on these images, in eval mode: the method's "
            "own losses, without jitter, mask and drop path. qk and vv are relations.",
            "The error to the teacher over steps.",
        )
    page.figure(
        _lines({"RankMe": series(rows, "signal_rankme")}, "RankMe"),
        "How many directions the pooled features fill: the exponential of the entropy of their "
        "singular values (Garrido et al. 2023). Features that collapse bring it towards 1.",
        "RankMe over steps.",
    )
    if any(row.get(_PROBE) is not None for row in rows):
        page.figure(
            _band(rows),
            "probe@1: a vote of the 10 nearest neighbours among the same images, each left out of "
            "its own; the band is one standard error.",
            "The probe's accuracy over steps.",
        )


def _tell_folder(page: Page, story: Story) -> None:
    places = {
        "report.html": "what it reached, in detail",
        **dict.fromkeys(story.exports, "model folder"),
        **{f"checkpoints/{name}": "checkpoint" for name in story.checkpoints},
        "log.jsonl": "every row",
        "quarantine.jsonl": "images that could not be read",
        "recipe.json": "the recipe as resolved",
        "exit.json": "how it ended",
    }
    there = {f"{n}: {t}": quote(n) for n, t in places.items() if (story.run.path / n).exists()}
    page.heading("In the folder").links(there)


def series(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a name, NaN where a row has none; neighbours averaged beyond
    ``MOST_POINTS``."""
    steps = np.array([row["step"] for row in rows if name in row], np.float64)
    values = np.array([_number(row[name]) for row in rows if name in row], np.float64)
    parts = min(len(steps), MOST_POINTS)
    cut = [np.array_split(x, parts) for x in (steps, values)]
    return tuple([float(part.mean()) for part in x] for x in cut)  # type: ignore[return-value]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def stacked(panels: Mapping[str, tuple[list[float], list[float]]]) -> Figure:
    """A curve above the other, each on an axis of its own: label → (steps, values)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 0.4 + 1.1 * len(panels)), layout="constrained")
        rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (label, (steps, values)) in zip(rows, panels.items(), strict=True):
            dot = "o" if len(steps) == 1 else ""
            axes.plot(steps, values, color=PALETTE[0], lw=1.2, marker=dot)
            axes.set_title(label, loc="left", color=_INK, fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color=_RULE, linewidth=0.6)
            axes.locator_params(axis="y", nbins=4)
            axes.set_axisbelow(True)
        rows[-1].set_xlabel("step")
    return figure


def _lines(lines: Mapping[str, tuple[list[float], list[float]]], ylabel: str) -> Figure:
    values = [v for _, line in lines.values() for v in line if math.isfinite(v)]
    steep = bool(values) and min(values) > 0 and max(values) > _LOG_FROM * min(values)
    return curves(lines, ylabel=ylabel, log_y=steep)


def _band(rows: Rows) -> Figure:
    """The probe's accuracy with its standard error."""
    figure = curves({"probe@1": series(rows, _PROBE)}, ylabel="probe@1, %")
    steps, values = series(rows, _PROBE)
    errors = np.array(series(rows, f"{_PROBE}_error")[1])
    low, high = np.array(values) - errors, np.array(values) + errors
    figure.axes[0].fill_between(steps, low, high, color=PALETTE[0], alpha=0.18, linewidth=0)
    return figure


def distance_profile(looks: Rows) -> Figure:
    """Attention distance by block at the first, middle and last look, and every head at the last.

    looks: rows with ``signal_attention_distance``, (L, H) pixels.
    """
    shown = list(dict.fromkeys([0, len(looks) // 2, len(looks) - 1]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        colours = [*(_QUIET, PALETTE[4])[: len(shown) - 1], PALETTE[0]]
        for number, colour in zip(shown, colours, strict=True):
            blocks = looks[number]["signal_attention_distance"]
            numbers = range(1, len(blocks) + 1)
            means = [float(np.mean(heads)) for heads in blocks]
            label = f"step {looks[number]['step']:,}"
            axes.plot(numbers, means, color=colour, label=label, lw=1.5, marker="o", ms=3)
        for block, heads in enumerate(looks[-1]["signal_attention_distance"], start=1):
            axes.scatter([block] * len(heads), heads, s=7, color=PALETTE[0], alpha=0.45, lw=0)
        axes.set(xlabel="block", ylabel="pixels")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper left", frameon=False, ncols=3)
    return figure


def distance_map(looks: Rows) -> Figure:
    """The mean attention distance of a block's heads in colours, (L, T): blocks over steps."""
    steps = np.array([row["step"] for row in looks], np.float64)
    means_TL = [[np.mean(heads) for heads in row["signal_attention_distance"]] for row in looks]
    depth = min(map(len, means_TL))
    middles = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([steps[:1], middles, steps[-1:]])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 1.0 + 0.16 * depth), layout="constrained")
        axes = figure.add_subplot()
        colours = np.array([row[:depth] for row in means_TL]).T
        mesh = axes.pcolormesh(edges, np.arange(0.5, depth + 1), colours, cmap="viridis")
        axes.set(xlabel="step", ylabel="block")
        axes.invert_yaxis()
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        bar = figure.colorbar(mesh, ax=axes, pad=0.02)
        bar.set_label("pixels")
        bar.outline.set_visible(False)  # type: ignore[operator]  # matplotlib's Spine
    return figure


def _title(name: str) -> str:
    return "validation " + name.removeprefix("val_")


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _plain(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return "null" if value is None else str(value)
