"""``zoo demo`` from end to end, with the recipes cut to a few steps; whole, it is a slow test."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from photos import CLASSES, make_photos

from eval import demo
from pretrain.recipe import find_recipe
from zoo.cli import main
from zoo.errors import DataError

NETWORKS = [
    *("MAE teacher", "TinyMIM student", "MAE student", "convnet teacher", "Img2Vec student"),
    *("untrained student", "raw pixels"),
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own recipes, six steps long."""

    def shortened(name: str, overrides: Sequence[str] = ()) -> object:
        cut = ["training.steps=6", "training.warmup_steps=2", "training.log_every_steps=2"]
        small = ["training.global_batch=8", "training.rank_batch=8", "data.workers=0"]
        return find_recipe(name, [*overrides, *cut, *small])

    monkeypatch.setattr(demo, "find_recipe", shortened)
    monkeypatch.setattr(demo, "TRAIN_PER_CLASS", 8)
    monkeypatch.setattr(demo, "VAL_PER_CLASS", 3)


def run_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--json"])
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("short")
def test_drawn_images_to_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(["demo", "--out", str(tmp_path)], capsys)
    assert list(found["scores"]) == NETWORKS
    assert all(0 <= score["linear"] <= 100 for score in found["scores"].values())
    page = Path(found["page"]).read_text()
    assert all(name in page for name in NETWORKS)
    assert page.count("<img") == 9  # bars, relations, diversity, its maps, five curves
    assert list(found["token_similarity"]) == ["MAE teacher", "convnet teacher"]
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    again = run_json(["demo", "--out", str(tmp_path)], capsys)
    assert again["scores"] == found["scores"]  # nothing is trained or drawn twice


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("layout", ["train and val", "class folders"])
def test_your_own_class_folders(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "my photos"
    if layout == "class folders":
        make_photos(data, per_class=12)
    else:
        make_photos(data / "train", per_class=9)
        make_photos(data / "val", per_class=4)
    found = run_json(["demo", "--data", str(data), "--out", str(tmp_path / "out")], capsys)
    assert list(found["scores"]) == NETWORKS
    used = {p.name for p in (tmp_path / "out" / "your-images" / "val").iterdir()}
    assert used >= set(CLASSES)


@pytest.mark.usefixtures("short")
def test_too_few_images_are_refused(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "data", per_class=3)
    with pytest.raises(DataError, match="class folders") as caught:
        demo.run_demo(tmp_path / "out", data=data)
    assert "five" in caught.value.fix


@pytest.mark.slow
def test_the_whole_demo_teaches_the_students(tmp_path: Path) -> None:
    scores = demo.run_demo(tmp_path).scores
    untrained = scores["untrained student"]
    for name in ("TinyMIM student", "Img2Vec student"):
        assert scores[name].linear > untrained.linear + 2 * scores[name].linear_error
    assert scores["Img2Vec student"].knn > untrained.knn + 2 * untrained.knn_error
