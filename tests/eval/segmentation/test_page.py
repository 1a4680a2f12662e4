"""The page of a segmentation tells what a reader needs, whatever was scored."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.segmentation.class_bars import MOST, class_bars
from eval.segmentation.overlays import IGNORED, Example
from eval.segmentation.page import MOST_POINTS, Told, write_page

EVIL = '<script>alert("1")</script>'


@dataclass(frozen=True, kw_only=True)
class Scores:
    miou: float
    macc: float
    aacc: float
    standard_error: float
    iou: np.ndarray
    acc: np.ndarray
    valid: int


def scores(iou: Sequence[float], *, error: float = 0.75) -> Scores:
    iou_C = np.array(iou, float)
    valid = int((~np.isnan(iou_C)).sum())
    mean = float(np.nanmean(iou_C)) if valid else math.nan
    acc_C = np.where(iou_C > 0, np.minimum(iou_C + 5, 100), math.nan)
    return Scores(
        miou=mean,
        macc=float(np.nanmean(acc_C)) if valid else math.nan,
        aacc=80.125 if valid else math.nan,
        standard_error=error,
        iou=iou_C,
        acc=acc_C,
        valid=valid,
    )


def palette(classes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (classes, 3), np.uint8)


def example(name: str = "a.jpg", miou: float = 40.0, *, labelled: bool = True) -> Example:
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    guess = np.zeros((12, 16), np.uint8)
    truth = guess if labelled else np.full_like(guess, IGNORED)
    return Example(name=name, image_HW3=image, truth_HW=truth, guess_HW=guess, miou=miou)


def told(iou: Sequence[float], names: Sequence[str] = (), **others: Any) -> Told:
    names = names or [f"class {c}" for c in range(len(iou))]
    fields: dict[str, Any] = {
        "title": "camvid",
        "subtitle": "UPerNet",
        "scores": scores(iou),
        "names": names,
        "palette": palette(len(iou)),
        "pixels": np.full(len(iou), 1000),
        "images": 3,
        "fixed": (),
        "worst": (),
        "log": (),
        "record": {"iterations": 160_000},
        "notes": (),
    }
    return Told(**(fields | others))


def page_of(what: Told, folder: Path) -> str:
    write_page(what, folder / "page.html")
    return (folder / "page.html").read_text()


def tables(html: str) -> list[list[list[str]]]:
    """The cells of every table, by row."""
    return [
        [
            [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        ]
        for table in re.findall(r"<table>.*?</table>", html, re.DOTALL)
    ]


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", html))


def alts(html: str) -> list[str]:
    return [unescape(alt) for alt in re.findall(r'alt="([^"]*)"', html)]


SOME = (70.0, math.nan, 20.0, 0.0)


def test_scores_with_their_error_and_what_they_leave_out(tmp_path: Path) -> None:
    notes = ["Trained in bfloat16.", "Single scale."]
    html = page_of(told(SOME, ["sky", "sea", "road", "car"], notes=notes), tmp_path)
    head, row = tables(html)[0]
    assert head == ["mIoU, %", "mAcc, %", "aAcc, %", "valid classes", "images"]
    assert row == ["30.00 ± 0.75", "50.00", "80.12", "3 of 4", "3"]
    text = words(html)
    assert "Pixels without a label are left out of annotation and prediction alike." in text
    assert "3 of 4 classes occur in one or the other, and the mean is over these" in text
    assert "Neither labelled nor guessed, and in no mean (1): sea." in text
    assert "± is one standard error over the images" in text
    assert text.index("Trained in bfloat16.") < text.index("Single scale.")


def test_every_class_stands_in_the_table(tmp_path: Path) -> None:
    pixels = np.array([999_000, 0, 30, 0])
    html = page_of(told(SOME, ["sky", "sea", "road", "car"], pixels=pixels), tmp_path)
    head, *rows = tables(html)[1]
    assert head == ["class", "IoU, %", "accuracy, %", "of labelled pixels, %"]
    assert rows == [
        ["sky", "70.0", "75.0", "100.00"],
        ["road", "20.0", "25.0", "< 0.01"],
        ["car", "0.0", "–", "0"],  # guessed where there is none
    ]


@pytest.mark.parametrize(("images", "error"), [(1, 0.0), (3, math.nan)])
def test_no_error_is_told_where_there_is_none(tmp_path: Path, images: int, error: float) -> None:
    what = told(SOME, scores=scores(SOME, error=error), images=images)
    html = page_of(what, tmp_path)
    assert "±" not in html
    assert tables(html)[0][1][0] == "30.00"


@pytest.mark.parametrize(
    ("iou", "sentence"),
    [((50.0,), "There is one class."), ((50.0, 60.0), "The mean is over all 2 classes.")],
)
def test_where_every_class_occurs(tmp_path: Path, iou: Sequence[float], sentence: str) -> None:
    text = words(page_of(told(iou), tmp_path))
    assert sentence in text
    assert "Neither labelled" not in text


def test_nothing_but_unlabelled_pixels(tmp_path: Path) -> None:
    what = told(
        [math.nan, math.nan],
        images=1,
        pixels=np.zeros(2, int),
        fixed=[example(miou=math.nan, labelled=False)],
    )
    html = page_of(what, tmp_path)
    assert tables(html)[0][1] == ["–", "–", "–", "0 of 2", "1"]
    assert "in no mean (2): class 0, class 1." in words(html)
    assert "a.jpg (–)" in "".join(alts(html))
    assert not re.search(r"\bnan\b", words(html))


@pytest.mark.parametrize("classes", [1, 2, 11, MOST + 1, 254])
def test_every_class_has_a_bar(classes: int) -> None:
    iou = np.random.default_rng(0).permutation(np.linspace(0, 100, classes))
    names, colours = [f"class {c}" for c in range(classes)], palette(classes)
    figures = class_bars(names, colours, iou, mean=50.0)
    assert len(figures) == -(-classes // MOST)
    shown = [c for _, part in figures for c in part]
    assert shown == sorted(range(classes), key=lambda c: -iou[c])
    for figure, part in figures:
        axes = figure.axes[0]
        texts = [text.get_text() for text in axes.texts]
        assert texts[::2] == [names[c] for c in part]
        assert texts[1::2] == [f"{iou[c]:.1f}" for c in part]
        swatches, whole, bars = axes.patches[::3], axes.patches[1::3], axes.patches[2::3]
        for c, swatch, room, bar in zip(part, swatches, whole, bars, strict=True):
            assert swatch.get_facecolor()[:3] == pytest.approx(tuple(colours[c] / 255))
            long, most = bar.get_bbox().width, room.get_bbox().width  # type: ignore[attr-defined]
            assert long == pytest.approx(most * iou[c] / 100)
        # Tall enough for its letters, and within the sheet.
        high = figure.get_size_inches()[1]
        assert high >= 0.16 * -(-len(part) // 2)
        assert all(0 < text.get_position()[1] < high for text in axes.texts)


def test_many_classes_are_on_one_page(tmp_path: Path) -> None:
    iou = np.linspace(90, 10, 150)
    iou[100:] = math.nan
    html = page_of(told(iou.tolist()), tmp_path)
    text = words(html)
    assert "Classes 1 to 50 of 100, by IoU" in text
    assert "Classes 51 to 100 of 100, by IoU" in text
    assert "in no mean (50): class 100, class 101," in text
    assert html.count("<img") == 2
    assert len(tables(html)[1]) == 1 + 100
    assert alts(html)[0].startswith("Bars from class 0, 90.0 %, to class 49")


def test_pictures_are_told_of_in_words(tmp_path: Path) -> None:
    fixed = [example("a.jpg"), example("b.jpg", math.nan, labelled=False)]
    low = [example("c.jpg", 1.25)]
    html = page_of(told(SOME, fixed=fixed, worst=low), tmp_path)
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "IoU by class",
        "Examples",
        "The worst images",
        "The classes in order",
        "The recipe",
    ]
    assert alts(html)[1].endswith("mIoU in percent: a.jpg (40.0), b.jpg (–).")
    assert alts(html)[2].endswith("mIoU in percent: c.jpg (1.2).")
    assert html.count("data:image/png") == 2
    with pytest.raises(ValueError, match="class 0 of 0"):
        write_page(told([], fixed=fixed), tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_curves_of_the_training(tmp_path: Path) -> None:
    log = [
        {"iteration": 50, "loss": 4.0, "lr": 1e-6},
        {"iteration": 100, "loss": math.nan, "lr": 1e-4},
        {"iteration": 100, "mIoU": 12.5, "aAcc": 60.0},
        {"iteration": 150, "loss": 1.5, "lr": 0.0},
        {"iteration": 150, "mIoU": 25.0, "aAcc": 61.0},
    ]
    html = page_of(told(SOME, log=log), tmp_path)
    assert "<h2>Training</h2>" in html
    assert alts(html)[1:] == [
        "From 4 at iteration 50 to 1.5 at 150.",
        "From 12.5 at iteration 100 to 25 at 150.",
        "From 1e-06 at iteration 50 to 0 at 150.",
    ]
    assert "each point the mean" not in html
    assert "<h2>Training</h2>" not in page_of(told(SOME, log=[]), tmp_path)


def test_long_curves_are_averaged_and_said_to_be(tmp_path: Path) -> None:
    log = [{"iteration": i, "loss": 1.0 + i % 2} for i in range(1, 3 * MOST_POINTS + 2)]
    html = page_of(told(SOME, log=log), tmp_path)
    assert "each point the mean of 4 that were logged" in html
    assert alts(html)[1].startswith("From 1.5 at iteration 2 ")
    assert len(html) < 100_000


def test_the_recipe_without_the_folders_of_a_machine(tmp_path: Path) -> None:
    record = {"data": "/home/me/sets/ADEChallengeData2016", "crop": 512, "taps": [4, 6]}
    html = page_of(told(SOME, record=record), tmp_path)
    assert tables(html)[-1][1:] == [
        ["data", "ADEChallengeData2016"],
        ["crop", "512"],
        ["taps", "[4, 6]"],
    ]


def test_markup_is_shown_not_obeyed(tmp_path: Path) -> None:
    what = told(
        SOME,
        [EVIL, EVIL, "a$b$c", "日本"],
        title=EVIL,
        subtitle=EVIL,
        notes=[EVIL],
        record={EVIL: EVIL},
        fixed=[example(EVIL), example("not\udcffUTF-8.jpg")],
        worst=[example("new\nline.jpg")],
    )
    html = page_of(what, tmp_path)
    assert "<script" not in html
    assert 'alert("1")' not in html
    assert words(html).count(EVIL) >= 6
    assert "日本" in words(html)
    assert "not?UTF-8.jpg" in "".join(alts(html))


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    what = told(SOME, fixed=[example()], log=[{"iteration": 1, "loss": 2.0}])
    assert page_of(what, tmp_path) == page_of(replace(what), tmp_path)


def test_pictures_stay_small(tmp_path: Path) -> None:
    """Of images as large as ADE20K's, with a photograph's noise: 18 of them in a few MB."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 216, (16, 21, 1)).repeat(32, 0).repeat(32, 1)
    image = (coarse + rng.normal(0, 12, (512, 672, 3))).clip(0, 255).astype(np.uint8)
    guess = (np.indices((512, 672)).sum(0) // 160 % 4).astype(np.uint8)
    truth = np.where(guess == 3, IGNORED, guess).astype(np.uint8)
    one = replace(example(), image_HW3=image, truth_HW=truth, guess_HW=guess)
    empty = len(page_of(told(SOME), tmp_path))
    assert (len(page_of(told(SOME, fixed=[one] * 2), tmp_path)) - empty) * 18 / 2 < 6_000_000
