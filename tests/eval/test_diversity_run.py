"""``zoo diversity`` from the command line to results, table and page, and all it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from models import make_convnet, make_model
from photos import make_photos

from eval.diversity import ESTIMATES
from eval.diversity_page import parse_query
from eval.diversity_run import run_diversity
from zoo.cli import main
from zoo.errors import Exit, UsageError
from zoo.vit import ViTConfig


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViTs of 16, 64 and 1 tokens, and a convnet, all at 32 px."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "vit")
    make_model(folder / "fine", ViTConfig(width=24, depth=1, heads=3, patch=4, image_size=32))
    make_model(folder / "one", ViTConfig(width=24, depth=1, heads=3, patch=32, image_size=32))
    make_convnet(folder / "convnet")
    return folder


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["diversity", *words])
    shown = capsys.readouterr()
    return int(stop.value.code or 0), shown.out, shown.err


def places(folder: Path) -> list[str]:
    return ["--workers", "0", "--out", str(folder / "page"), "--results", str(folder / "results")]


def test_zoo_diversity_measures_writes_and_draws(
    models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(models / "vit"), f"{models}/convnet:stride8", f"{models}/convnet:stride16"]
    words = [*named, "--data", str(photos), "--images", "9", *places(tmp_path)]
    code, out, _ = run([*words, "--json"], capsys)
    assert code == Exit.DONE
    printed = json.loads(out)
    assert printed["image_size"] == 32
    results = printed["results"]
    assert [r["model"] for r in results] == ["vit", "convnet /8", "convnet /16"]
    assert [json.loads(Path(file).read_text()) for file in printed["files"]] == results
    assert sorted(map(str, (tmp_path / "results").iterdir())) == sorted(printed["files"])
    assert {r["protocol"] for r in results} == {"diversity@1"}
    assert {r["samples"] for r in results} == {9}
    assert {r["settings"]["unit"] for r in results} == {16}
    for result in results:
        similarity = result["details"]["similarity"]
        assert list(similarity) == list(ESTIMATES)
        assert result["value"] == pytest.approx(1 - similarity["raw"]["value"])
    page = Path(printed["page"])
    names = [r["model"] for r in results]
    html = page.read_text()
    assert all(name in html for name in names)
    assert html.count("<img") == 1 + 1 + 3
    assert sorted(p.name for p in page.parent.glob("*.png")) == [
        "diversity.png",
        "heat-maps-1-vit.png",
        "heat-maps-2-convnet-8.png",
        "heat-maps-3-convnet-16.png",
        "side-by-side.png",
    ]


def test_the_table_fits_a_terminal(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "val"):
        make_photos(tmp_path / "data" / name, per_class=2)
    twin = make_model(tmp_path / ("very" * 12) / "vit", seed=1)
    words = [str(models / "vit"), str(twin), f"{models}/convnet:stride16", "--cell", "8"]
    code, out, err = run(
        [*words, "--data", f"{tmp_path}/data", "--query", "0.1,0.9", *places(tmp_path)], capsys
    )
    assert code == Exit.DONE
    table, _, rest = out.partition("\n\n–:")
    assert max(map(len, table.splitlines()[1:])) <= 100
    assert "6 of 6 images" in table
    assert f"{tmp_path}/data/train" in table
    assert "veryvery/vit" in table  # two models of one name go by their path
    assert "--cell 16 fits all" in rest
    assert err.count("diversity: ") == 3


def test_a_stage_that_was_never_trained_is_pointed_out(
    photos: Path, tmp_path: Path, models: Path
) -> None:
    folder = tmp_path / "half"
    make_convnet(folder)
    record = json.loads((folder / "zoo.json").read_text())
    record["fresh_parameters"] = ["layer4.0.conv1.weight"]
    (folder / "zoo.json").write_text(json.dumps(record))

    def notes(stride: int) -> list[str]:
        report = run_diversity(
            [f"{folder}:stride{stride}"],
            photos,
            out=tmp_path / "page",
            results=tmp_path / "results",
            images=2,
            image_size=64,
            workers=0,
        )
        return list(report.notes)

    assert "never trained" in notes(32)[0]
    assert notes(16) == []


BAD: dict[str, tuple[Callable[[Path, Path], list[str]], Exit, str]] = {
    "no such model": (lambda m, p: [f"{m}/nobody", "--data", str(p)], Exit.USAGE, "no model"),
    "no such stage": (
        lambda m, p: [f"{m}/convnet:stride7", "--data", str(p)],
        Exit.USAGE,
        "no stage of stride 7",
    ),
    "a ViT's stage": (
        lambda m, p: [f"{m}/vit:stride16", "--data", str(p)],
        Exit.USAGE,
        "a ViT has no stage",
    ),
    "one token": (
        lambda m, p: [f"{m}/one", "--data", str(p)],
        Exit.USAGE,
        "two tokens or more",
    ),
    "a size its patches do not tile": (
        lambda m, p: [f"{m}/vit", "--data", str(p), "--image-size", "36"],
        Exit.USAGE,
        "do not tile",
    ),
    "a size the second model cannot take": (
        lambda m, p: [f"{m}/fine", f"{m}/vit", "--data", str(p), "--image-size", "36"],
        Exit.USAGE,
        "do not tile",
    ),
    "a cell that does not tile": (
        lambda m, p: [f"{m}/vit", "--data", str(p), "--cell", "5"],
        Exit.USAGE,
        "do not make a grid",
    ),
    "a query outside": (
        lambda m, p: [f"{m}/vit", "--data", str(p), "--query", "0.5,1"],
        Exit.USAGE,
        "no place in an image",
    ),
    "named twice": (
        lambda m, p: [f"{m}/vit", f"{m}/vit", "--data", str(p)],
        Exit.USAGE,
        "named twice",
    ),
    "no images asked for": (
        lambda m, p: [f"{m}/vit", "--data", str(p), "--images", "1"],
        Exit.USAGE,
        "--images",
    ),
    "no such folder": (
        lambda m, p: [f"{m}/vit", "--data", f"{p}/none"],
        Exit.DATA,
        "no such folder",
    ),
}


@pytest.mark.parametrize(("words", "code", "hint"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(
    models: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: Callable[[Path, Path], list[str]],
    code: Exit,
    hint: str,
) -> None:
    found, out, err = run([*words(models, photos), *places(tmp_path)], capsys)
    assert found == code
    assert hint in err
    assert not out
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_bad_images_are_listed_and_never_skipped(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_photos(tmp_path / "data", per_class=2)
    for name in ("ant/000.jpg", "cat/001.jpg"):
        (data / name).write_bytes(b"no image")
    words = [str(models / "vit"), "--data", str(data), *places(tmp_path)]
    code, _, err = run(words, capsys)
    assert code == Exit.DATA
    assert "2 of 6 images cannot be read" in err
    assert "ant/000.jpg" in err
    assert "cat/001.jpg" in err
    assert not (tmp_path / "results").exists()
    (tmp_path / "empty").mkdir()
    code, _, err = run([str(models / "vit"), "--data", f"{tmp_path}/empty"], capsys)
    assert code == Exit.DATA
    assert "no image" in err


@pytest.mark.parametrize("text", ["", "0.5", "a,b", "0.5,0.5,0.5", "-0.1,0", "nan,0", "0,1"])
def test_a_query_is_two_numbers_below_one(text: str) -> None:
    with pytest.raises(UsageError, match="no place"):
        parse_query(text)
    assert parse_query("0.25, 0.5") == (0.25, 0.5)
