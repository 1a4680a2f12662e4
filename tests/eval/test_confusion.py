"""What is taken for what: counted, listed, drawn."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import make_photos

from eval.confusion import (
    MOST_DRAWN,
    Guesses,
    classes_table,
    matrix_figure,
    mistakes_figure,
    pairs_table,
)
from pretrain.index import open_index
from zoo.card import Card
from zoo.folder import Classifier, load_classifier, save_model
from zoo.vit import ViTConfig, build_vit

NAMES = ("ant", "bee", "cat")


def guesses(right: list[int], guess: list[int], confidence: list[float] | None = None) -> Guesses:
    sure = confidence or [0.5] * len(right)
    return Guesses(
        names=NAMES, right=np.array(right), guess=np.array(guess), confidence=np.array(sure)
    )


SEEN = guesses([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 2], [0.9, 0.6, 0.8, 0.9, 0.7, 0.9])


def test_rows_are_true_classes() -> None:
    assert SEEN.matrix.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    assert SEEN.top1 == 50
    assert SEEN.pairs() == [(0, 1, 2), (1, 0, 1)]
    assert SEEN.mistakes() == [2, 4, 1]  # the surest first


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_every_image_is_counted_once(pairs: list[tuple[int, int]]) -> None:
    found = guesses(*map(list, zip(*pairs, strict=True)))  # type: ignore[arg-type]
    assert found.matrix.sum() == len(pairs)
    wrong = sum(count for _, _, count in found.pairs())
    assert wrong == len(found.mistakes()) == sum(a != b for a, b in pairs)
    assert found.top1 == pytest.approx(100 * (1 - wrong / len(pairs)))
    matrix_figure(found)
    assert len(classes_table(found).rows) == 3


def test_tables_say_the_worst_first() -> None:
    table = classes_table(SEEN)
    assert [row[0] for row in table.rows] == ["ant", "bee", "cat"]
    assert table.rows[0] == ["ant", "3", "33.3", "bee (2)"]
    assert table.rows[2] == ["cat", "1", "100.0", "–"]
    assert pairs_table(SEEN).rows[0] == ["ant", "bee", "2", "66.7"]


def test_of_many_classes_the_worst_are_listed() -> None:
    classes = 2 * MOST_DRAWN
    found = Guesses(
        names=[f"class {i}" for i in range(classes)],
        right=np.arange(classes),
        guess=np.where(np.arange(classes) % 2, np.arange(classes), 0),
        confidence=np.ones(classes),
    )
    table = classes_table(found)
    assert len(table.rows) == MOST_DRAWN
    assert "20 worst of 40" in table.caption
    assert all(row[2] in {"0.0", "100.0"} for row in table.rows)


def test_a_class_without_images_is_no_division_by_zero() -> None:
    found = guesses([0, 0], [0, 2])
    assert classes_table(found).rows[0][:3] == ["bee", "0", "0.0"]
    matrix_figure(found)


def classifier(folder: Path) -> Classifier:
    config = ViTConfig(width=24, depth=1, heads=3, patch=8, image_size=32)
    body = build_vit(config, seed=0).state_dict()
    kept = {name: t for name, t in body.items() if not name.startswith("norm.")}
    head = {"fc_norm.weight": body["norm.weight"], "fc_norm.bias": body["norm.bias"]}
    head |= {
        "head.weight": body["cls_token"][0].repeat(3, 1),
        "head.bias": body["norm.bias"][:3].clone(),
    }
    card = Card(name="m", method="finetune", heads=3, last_trained_block=1)
    save_model(folder, config, {**kept, **head}, card, labels=NAMES)
    return load_classifier(folder)


@pytest.mark.parametrize("wrong", [1, 5, 9])
def test_mistakes_are_shown_as_the_network_saw_them(tmp_path: Path, wrong: int) -> None:
    index = open_index(make_photos(tmp_path / "photos", per_class=4))
    assert index.labels is not None
    guess = index.labels.copy()
    guess[:wrong] = (guess[:wrong] + 1) % 3
    found = guesses(index.labels.tolist(), guess.tolist())
    figure = mistakes_figure(found, index, classifier(tmp_path / "m"))
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == min(wrong, 8)
    assert np.asarray(shown[0].images[0].get_array()).shape == (32, 32, 3)
    assert "taken for bee" in shown[0].get_title()
