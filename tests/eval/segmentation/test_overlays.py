"""Pictures of a segmentation: every colour means what it says, and any image can be shown."""

import base64
import io
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from eval.report import Page
from eval.segmentation.lettering import width, written
from eval.segmentation.overlays import (
    IGNORED,
    MOST_NAMED,
    SIDE,
    WRONG,
    Example,
    chosen,
    difference,
    examples_figure,
    most_seen,
    overlay,
    shrunk,
    worst,
)

RED_BLUE = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)


def drawn(
    height: int = 40,
    width: int = 60,
    *,
    name: str = "street.jpg",
    classes: int = 2,
    miou: float = 50.0,
    seed: int = 0,
) -> Example:
    """Upright bars of classes, the last of them unlabelled; the guess is off by a tenth."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    row = np.arange(width) * (classes + 1) // width
    truth = np.tile(row.astype(np.uint8), (height, 1))
    guess = np.minimum(np.roll(truth, max(1, width // 10), 1), classes - 1).astype(np.uint8)
    truth[truth == classes] = IGNORED
    return Example(name=name, image_HW3=image, truth_HW=truth, guess_HW=guess, miou=miou)


def png_of(figure: Figure) -> np.ndarray:
    """The one picture of a page, as a browser gets it."""
    html = Page("t").figure(figure, "", "").html()
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_colours_of_an_overlay_are_exact() -> None:
    image = np.full((3, 5, 3), (100, 60, 20), np.uint8)
    classes = np.array([[0, 0, 1, IGNORED, IGNORED]] * 3, np.uint8)
    shown = overlay(image, classes, RED_BLUE, alpha=0.5)
    assert (shown == shown[0]).all()
    red, left_of_blue, left_of_ignored, _, ignored = shown[0].tolist()
    assert red == [round(0.5 * 100 + 0.5 * 255), 30, 10]
    # A light line on the last pixel before a border.
    assert left_of_blue == [round(0.4 * v + 0.6 * 255) for v in red]
    assert left_of_ignored == [round(0.4 * v + 0.6 * 255) for v in (50, 30, round(137.5))]
    grey = round(0.299 * 100 + 0.587 * 60 + 0.114 * 20)
    assert ignored == [round(0.5 * grey + 0.5 * 255)] * 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_an_overlay_is_between_photograph_and_colour(
    seed: int, height: int, width: int, alpha: float
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    kept = image.copy()
    classes = np.full((height, width), 1, np.uint8)
    shown = overlay(image, classes, RED_BLUE, alpha=alpha)
    assert shown.dtype == np.uint8
    assert shown.shape == image.shape
    assert np.abs(shown - ((1 - alpha) * image + alpha * RED_BLUE[1])).max() <= 0.5 + 1e-9
    assert np.array_equal(image, kept)
    ignored = overlay(image, np.full_like(classes, IGNORED), RED_BLUE, alpha=alpha)
    assert (ignored.max(-1) == ignored.min(-1)).all()  # no colour


def test_an_overlay_needs_a_colour_for_every_class() -> None:
    image = np.zeros((1, 3, 3), np.uint8)
    overlay(image, np.array([[0, 1, IGNORED]], np.uint8), RED_BLUE)
    with pytest.raises(ValueError, match="class 2 of a palette of 2"):
        overlay(image, np.array([[0, 2, IGNORED]], np.uint8), RED_BLUE)
    with pytest.raises(ValueError, match=r"classes of \(3, 1\)"):
        overlay(image, np.zeros((3, 1), np.uint8), RED_BLUE)
    # The 254 classes that a mask can name beside the unlabelled ones.
    palette = np.arange(254 * 3).reshape(254, 3).astype(np.uint8)
    shown = overlay(image, np.full((1, 3), 253, np.uint8), palette, alpha=1)
    assert shown[0, 0].tolist() == palette[253].tolist()


def test_the_difference_marks_wrong_right_and_unlabelled() -> None:
    example = Example(
        name="a",
        image_HW3=np.full((1, 3, 3), 200, np.uint8),
        truth_HW=np.array([[0, 1, IGNORED]], np.uint8),
        guess_HW=np.array([[0, 0, 0]], np.uint8),
        miou=50.0,
    )
    right, wrong, unlabelled = difference(example)[0].tolist()
    assert right == [120] * 3
    assert wrong == [round(0.3 * 200 + 0.7 * v) for v in WRONG]
    assert unlabelled == [round(0.45 * 200 + 0.55 * 255)] * 3


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((1, 1), (SIDE, SIDE)),
        ((3000, 100), (SIDE, 10)),
        ((100, 3000), (10, SIDE)),
        ((1, 5000), (1, SIDE)),
        ((512, 683), (225, SIDE)),
        ((SIDE, 20), (SIDE, 20)),
    ],
)
def test_any_image_is_shown_at_one_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    small = shrunk(drawn(*size))
    assert small.image_HW3.shape == (*shown, 3)
    assert small.truth_HW.shape == small.guess_HW.shape == shown
    assert shrunk(small) is small
    figure = examples_figure([drawn(*size)], ["a", "b"], RED_BLUE)
    assert len([axes for axes in figure.axes if axes.images]) == 4


def test_masks_are_resized_without_new_classes() -> None:
    example = drawn(211, 487, classes=9)
    small = shrunk(example)
    assert set(np.unique(small.truth_HW)) == set(np.unique(example.truth_HW))
    assert set(np.unique(small.guess_HW)) == set(np.unique(example.guess_HW))


def test_the_page_shows_every_pixel_once() -> None:
    sizes = [(SIDE, 123), (217, SIDE), (1, SIDE), (SIDE, SIDE)]
    examples = [drawn(*size, seed=i) for i, size in enumerate(sizes)]
    picture = png_of(examples_figure(examples, ["a", "b"], RED_BLUE))
    line, gap = 44, 14
    assert picture.shape[1] == 4 * SIDE + 3 * gap
    top = line + 77  # of legend, and of column titles
    for example in examples:
        height, wide = example.truth_HW.shape
        top += line
        photograph = picture[top : top + height, :wide].astype(int)
        assert np.abs(photograph - example.image_HW3).max() <= 4
        left = SIDE + gap
        annotation = picture[top : top + height, left : left + wide]
        x = wide // 6  # in the middle of the first bar, which is red
        tint = annotation[:, x] - 0.45 * np.asarray(
            Image.fromarray(example.image_HW3[:, x : x + 1]).convert("L")
        )
        assert np.abs(tint - 0.55 * RED_BLUE[0]).max() <= 0.45 * 8 + 0.5
        top += height + gap
    assert picture.shape[0] == top


def test_rows_have_titles_names_and_scores() -> None:
    examples = [
        drawn(name="a.jpg", miou=12.34),
        drawn(name="b.jpg", miou=0.0),
        drawn(name="c.jpg", miou=math.nan),
    ]
    texts = texts_of(examples_figure(examples, ["sky", "road"], RED_BLUE))
    assert texts[:2] == ["road", "sky"]  # the guess covers the unlabelled third with its last class
    assert texts[2:6] == ["photograph", "annotation", "prediction", "where they differ"]
    heads = ["a.jpg", "mIoU 12.3 %", "b.jpg", "mIoU 0.0 %", "c.jpg", "no labelled pixel"]
    assert texts[6:] == heads


def test_an_image_without_labels_is_shown() -> None:
    empty = np.full((20, 30), IGNORED, np.uint8)
    example = Example(
        name="fog.jpg",
        image_HW3=np.full((20, 30, 3), 90, np.uint8),
        truth_HW=empty,
        guess_HW=np.zeros_like(empty),
        miou=math.nan,
    )
    assert (difference(example) == round(0.45 * 90 + 0.55 * 255)).all()
    assert "fog.jpg" in texts_of(examples_figure([example], ["only"], RED_BLUE[:1]))
    assert most_seen([example], 1) == ([0], 0)


def test_the_legend_names_what_fills_most() -> None:
    palette = np.random.default_rng(0).integers(0, 256, (254, 3), np.uint8)
    names = [f"class {c}" for c in range(254)]
    few = texts_of(examples_figure([drawn(classes=12, width=260)], names, palette))
    assert few.index("photograph") == MOST_NAMED
    assert not [text for text in few if text.endswith("more")]
    figure = examples_figure([drawn(classes=20, width=420)], names, palette)
    texts = texts_of(figure)
    assert texts.index("photograph") == MOST_NAMED
    assert texts[MOST_NAMED - 1] == "and 9 more"
    swatches = figure.axes[0].patches
    assert len(swatches) == MOST_NAMED - 1
    for patch, name in zip(swatches, texts, strict=False):
        colour = palette[names.index(name)] / 255
        assert patch.get_facecolor()[:3] == pytest.approx(tuple(colour))
    # The guess covers the unlabelled bar, too, with the last class.
    seen, more = most_seen([drawn(classes=20, width=420)], 254)
    assert seen[0] == 19
    assert len(seen) + more == 20


def test_examples_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        examples_figure([], ["a"], RED_BLUE[:1])
    with pytest.raises(ValueError, match="1 names, 2 colours"):
        examples_figure([drawn()], ["a"], RED_BLUE)
    with pytest.raises(ValueError, match="class 2 of 2"):
        examples_figure([drawn(classes=3)], ["a", "b"], RED_BLUE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_HW3": np.zeros((4, 6), np.uint8)},
        {"image_HW3": np.zeros((4, 6, 4), np.uint8)},
        {"image_HW3": np.zeros((4, 5, 3), np.uint8)},
        {"truth_HW": np.zeros((6, 4), np.uint8)},
        {"guess_HW": np.zeros((4, 6), np.int64)},
    ],
)
def test_an_example_of_several_sizes_is_refused(wrong: dict[str, np.ndarray]) -> None:
    right = {"image_HW3": np.zeros((4, 6, 3), np.uint8)} | dict.fromkeys(
        ("truth_HW", "guess_HW"), np.zeros((4, 6), np.uint8)
    )
    Example(name="a.jpg", miou=1.0, **right)
    with pytest.raises(ValueError, match=r"a\.jpg"):
        Example(name="a.jpg", miou=1.0, **(right | wrong))


@given(st.integers(0, 40), st.integers(0, 3000))
def test_chosen_images_are_spread_evenly(count: int, images: int) -> None:
    found = chosen(count, images)
    assert len(found) == min(count, images)
    assert found == sorted(set(found)) == chosen(count, images)
    assert all(0 <= i < images for i in found)
    steps = np.diff(found)
    assert not len(steps) or steps.max() - steps.min() <= 1


@given(st.lists(st.sampled_from([0.0, 1.5, 50.0, 100.0, math.nan]), max_size=30), st.integers(0, 9))
def test_the_worst_come_first_and_without_nan(mious: list[float], count: int) -> None:
    found = worst(np.array(mious), count)
    pairs = [(mious[i], i) for i in found]
    expected = sorted((miou, i) for i, miou in enumerate(mious) if not math.isnan(miou))
    assert pairs == expected[:count]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | st.text("W$_\\^{} 日é\n\t\0‮\udc80", max_size=60))
def test_any_name_is_written_within_its_room(name: str) -> None:
    cut = written(name, inches=1.1, points=8)
    assert width(cut, points=8) <= 1.1
    assert cut.isprintable()
    assert not cut or cut[0] in {name[0], "\N{REPLACEMENT CHARACTER}", "…"}


def test_names_are_plain_text() -> None:
    assert written("sidewalk", inches=1.1, points=8) == "sidewalk"
    assert written("日 car", inches=1.1, points=8) == "\N{REPLACEMENT CHARACTER} car"
    names = ["$x^2$ <script>", "W" * 50]
    example = drawn(name="photo of $5 and $6\n" + "n" * 300)
    figure = examples_figure([example], names, RED_BLUE)
    texts = texts_of(figure)
    assert re.fullmatch("W{5,20}…", texts[0])
    assert texts[1] == names[0]
    assert re.fullmatch(r"photo of \$5 and \$6\N{REPLACEMENT CHARACTER}n{20,}…", texts[6])
    png_of(figure)  # a formula that is none would be refused
