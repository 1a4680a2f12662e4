"""The drawn image set: the same bytes each time, true masks, and nothing but form to tell by."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.shapes import CLASSES, MARKER, draw_dataset, draw_image
from zoo.errors import UsageError


def _draw(folder: Path, **changes: int) -> Path:
    draw_dataset(folder, **{"train_per_class": 3, "val_per_class": 2, **changes})
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _sample(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, 3) as float, labels (N,)."""
    images = [draw_image(c, k, split=split)[0] for c in CLASSES for k in range(count)]
    return np.stack(images).astype(np.float32), np.repeat(np.arange(len(CLASSES)), count)


def _nearest_percent(features_train, labels_train, features_val, labels_val) -> float:
    """1-nearest-neighbour accuracy, percent."""
    square = (features_train**2).sum(1) - 2 * features_val @ features_train.T
    return 100 * float((labels_train[square.argmin(1)] == labels_val).mean())


def test_layout_and_counts(tmp_path):
    folder = _draw(tmp_path / "set")
    assert len(CLASSES) == 10
    assert list(CLASSES) == sorted(CLASSES)
    for split, count in {"train": 3, "val": 2}.items():
        for root, suffix in ((folder, "jpg"), (folder / "masks", "png")):
            assert sorted(p.name for p in (root / split).iterdir()) == list(CLASSES)
            for name in CLASSES:
                files = sorted(p.name for p in (root / split / name).iterdir())
                assert files == [f"{k:04d}.{suffix}" for k in range(count)]
    assert not list(tmp_path.glob(".tmp-*"))


def test_masks_hold_the_class_and_match_the_images(tmp_path):
    folder = _draw(tmp_path / "set", image_size=48)
    for index, name in enumerate(CLASSES):
        mask = Image.open(folder / "masks" / "train" / name / "0002.png")
        image = Image.open(folder / "train" / name / "0002.jpg")
        pixels_HW3, object_HW = draw_image(name, 2, image_size=48)
        assert mask.mode == "L"
        assert image.size == mask.size == (48, 48)
        np.testing.assert_array_equal(np.asarray(mask), object_HW * (index + 1))
        difference = np.abs(np.asarray(image, np.int16) - pixels_HW3)
        assert difference.mean() < 8  # what JPEG loses of the noise


@pytest.mark.parametrize("name", CLASSES)
def test_mask_covers_what_was_painted(name):
    contrasts, shares = [], []
    for number in range(20):
        pixels_HW3, object_HW = draw_image(name, number)
        luma_HW = pixels_HW3.mean(-1)
        shares.append(object_HW.mean())
        contrasts.append(abs(luma_HW[object_HW].mean() - luma_HW[~object_HW].mean()))
    assert min(shares) > 0.02
    assert max(shares) < 1
    # The ground shows between the copies and the stripes: the step at the outline is softened.
    assert np.median(contrasts) > 10


def test_same_parameters_give_the_same_bytes(tmp_path):
    first, second = _bytes(_draw(tmp_path / "a")), _bytes(_draw(tmp_path / "b"))
    assert first == second
    assert len(first) == 2 * 10 * (3 + 2) + 1


def test_an_image_does_not_depend_on_how_many_are_drawn(tmp_path):
    few, many = _bytes(_draw(tmp_path / "a")), _bytes(_draw(tmp_path / "b", train_per_class=4))
    few.pop(MARKER)
    assert few.items() <= many.items()


def test_images_differ_by_seed_split_class_and_number():
    drawn = [
        draw_image(name, number, split=split, seed=seed)[0].tobytes()
        for name in ("disc", "ring")
        for number in (0, 1)
        for split in ("train", "val")
        for seed in (0, 1)
    ]
    assert len(set(drawn)) == 16


def test_finished_set_is_left_alone(tmp_path):
    folder = _draw(tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    _draw(folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("marker", ['{"drawing": 0}', "not JSON"])
def test_other_drawn_set_is_replaced(tmp_path, marker):
    folder = _draw(tmp_path / "set", train_per_class=4)
    wanted = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(marker)
    _draw(folder)
    assert json.loads((folder / MARKER).read_text()) == {**wanted, "train": 3}
    assert len(list((folder / "train" / "disc").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_foreign_folder_is_refused_untouched(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="refused to draw over"):
        _draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.shapes._png", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _draw(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_neither_colour_nor_pixels_give_the_class_away():
    train, labels = _sample("train", 60)
    val, expected = _sample("val", 30)

    def colour(images: np.ndarray) -> np.ndarray:
        return images.mean((1, 2))

    def pixels(images: np.ndarray) -> np.ndarray:  # at half the size
        return images.reshape(len(images), 32, 2, 32, 2, 3).mean((2, 4)).reshape(len(images), -1)

    # Chance is 10 %; 300 images leave a standard error of 2.
    assert _nearest_percent(colour(train), labels, colour(val), expected) < 17
    assert _nearest_percent(pixels(train), labels, pixels(val), expected) < 35
