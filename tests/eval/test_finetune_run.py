"""``zoo finetune``: one's own images in, a classifier with their names and a page out."""

import json
import shutil
import time
from pathlib import Path

import pytest
from models import TEACHER, make_convnet, make_model
from photos import make_photos
from runs import Run, bits_of, last_words, run, zoo

from eval.finetune_plan import PLANS, plan_for, plan_recipe, val_share
from pretrain.log import read_log
from pretrain.split import read_split
from zoo.folder import load_classifier
from zoo.vit import VIT_B, VIT_S, VIT_T

SHORT = ["training.epochs=2", "training.warmup_epochs=1", "data.workers=0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "small")


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["finetune", str(model), "--data", str(data), "--out", str(out), *SHORT, *more]


@pytest.fixture(scope="module")
def finished(photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert zoo(command(model, photos, out)) == 0
    return out


def test_one_folder_is_split_and_the_list_is_kept(finished: Path, photos: Path) -> None:
    split = read_split(finished / "split.json")
    assert (split.root, split.share, split.seed) == (str(photos), 0.2, 0)
    assert (len(split.train), len(split.val)) == (30, 6)  # of each class of 12, 2
    card = json.loads((finished / "export" / "zoo.json").read_bytes())
    assert card["recipe"]["data.validation"] == f"split:{finished / 'split.json'}#val"
    assert card["scores"][0]["samples"] == 6
    assert len(list(photos.rglob("*.jpg"))) == 36


def test_it_ends_with_a_classifier_that_knows_the_names(finished: Path, model: Path) -> None:
    made = load_classifier(finished / "export")
    assert made.labels == ("ant", "bee", "cat")
    assert made.card is not None
    assert made.card.base is not None
    assert made.card.base.name == "small"
    assert made.card.method == "finetune"


def test_the_answer_says_where_all_is(
    finished: Path, photos: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo(command(model, photos, finished, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["export"] == str(finished / "export")
    assert Path(told["page"]).is_file()
    last = [row for row in read_log(finished / "log.jsonl") if "val_top1" in row][-1]
    assert told["last"]["scores"]["top1"] == last["val_top1"]
    assert told["validation_images"] == 6
    assert zoo(command(model, photos, finished)) == 0
    assert "top-1 " in capsys.readouterr().out


def test_the_page_tells_the_whole_run_and_no_place(finished: Path, photos: Path) -> None:
    page = (finished / "report.html").read_text()
    for heading in ("Training", "What is taken for what", "The recipe"):
        assert f"<h2>{heading}</h2>" in page
    last = [row for row in read_log(finished / "log.jsonl") if "val_top1" in row][-1]
    assert f"{last['val_top1']:.2f} ± " in page
    assert "method.layer_decay" in page
    assert str(photos.parent) not in page  # it may be handed on
    assert 'src="http' not in page


def test_train_and_val_are_used_as_they_are(photos: Path, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data / "train")
    make_photos(data / "val", per_class=3, seed=5)
    out = tmp_path / "run"
    assert zoo(command(model, data, out, "--from-scratch")) == 0
    assert not (out / "split.json").exists()
    card = json.loads((out / "export" / "zoo.json").read_bytes())
    assert card["base"] is None
    assert card["scores"][0]["samples"] == 9


def test_train_alone_is_split(photos: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "data" / "train")
    assert zoo(command(model, tmp_path / "data", tmp_path / "run")) == 0
    assert read_split(tmp_path / "run" / "split.json").root == str(tmp_path / "data" / "train")


def test_it_works_from_any_folder(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths mean the same run from elsewhere, where they are spelled otherwise."""
    monkeypatch.chdir(photos.parent)
    assert zoo(command(model, Path(photos.name), tmp_path / "run")) == 0
    monkeypatch.chdir(model.parent)
    assert zoo(command(Path(model.name), photos, tmp_path / "run")) == 0
    assert zoo(["finetune", model.name, "--data", str(photos), *SHORT]) == 0
    name = f"finetune-small-{photos.name}"
    assert (model.parent / "runs" / name / "export").is_dir()


def test_show_writes_nothing(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo(command(model, photos, tmp_path / "run", "--show", "--json")) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["method.classes"], record["training.epochs"]) == (3, 2)
    assert not (tmp_path / "run").exists()


def test_killed_and_started_again_it_ends_the_same(
    photos: Path, model: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    more = ("training.save_every_steps=1",)
    started = Run(command(model, photos, out, *more))
    while not (out / "checkpoints" / "step-3").exists():
        assert started.running
        time.sleep(0.002)
    started.kill()
    assert run(command(model, photos, out, *more)) == [0]
    undisturbed = tmp_path / "undisturbed"
    assert run(command(model, photos, undisturbed, *more)) == [0]
    assert bits_of(out) == bits_of(undisturbed)


def test_other_images_in_the_same_folder_are_refused(
    finished: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_photos(tmp_path / "other", seed=3)
    assert zoo(command(model, other, finished)) == 2
    assert "began with other images" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], code: int, words: list[str], *said: str) -> None:
    assert zoo(words) == code
    shown = capsys.readouterr().err
    assert all(text in shown for text in said), shown


def test_data_that_cannot_be_used(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "run", tmp_path / "data"
    one = make_photos(data / "one", per_class=3)
    for name in ("bee", "cat"):
        shutil.rmtree(one / name)
    refused(capsys, 3, command(model, one, out), "one class only: ant")
    single = make_photos(data / "single", per_class=3)
    for photo in sorted((single / "bee").iterdir())[1:]:
        photo.unlink()
    refused(capsys, 3, command(model, single, out), "one image only", "bee")
    loose = make_photos(data / "loose", per_class=3)
    shutil.copy(loose / "ant" / "000.jpg", loose / "loose.jpg")
    refused(capsys, 3, command(model, loose, out), "1 images lie beside the class folders")
    differ = data / "differ"
    make_photos(differ / "train", per_class=3)
    make_photos(differ / "val", per_class=3)
    (differ / "val" / "cat").rename(differ / "val" / "dog")
    refused(capsys, 3, command(model, differ, out), "same class folders", "cat, dog")
    shutil.rmtree(differ / "train")
    refused(capsys, 3, command(model, differ, out), "a val/ folder and no train/")
    refused(capsys, 3, command(model, data / "none", out), "no such folder")
    assert not out.exists()


def test_a_classifier_gives_its_head_up_only_if_asked(
    finished: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four = make_photos(tmp_path / "four", per_class=4)
    shutil.copytree(four / "ant", four / "dog")
    made, out = finished / "export", tmp_path / "run"
    shapes = ("head.weight (3, 48), to be (4, 48)", "head.bias (3,), to be (4,)", "--new-head")
    refused(capsys, 2, command(made, four, out), "a classifier of 3 classes already", *shapes)
    assert zoo(command(made, four, out, "--new-head")) == 0
    assert load_classifier(out / "export").labels == ("ant", "bee", "cat", "dog")
    card = json.loads((out / "export" / "zoo.json").read_bytes())
    assert card["licenses"].keys() >= {"base small", f"base {card['base']['name']}"}


def test_convnets_and_wrong_overrides_are_refused(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convnet = make_convnet(tmp_path / "convnet")
    out = tmp_path / "run"
    refused(capsys, 2, command(convnet, photos, out), "only plain ViTs")
    wrong = command(model, photos, out, "training.epoch=3")
    refused(capsys, 2, wrong, "did you mean 'training.epochs'")
    assert zoo(command(model, photos, out, "student.heads=3")) == 2
    assert "not of the recipe's size" in last_words(out)["error"]


def plan(images: int, student=VIT_T, ranks: int = 1):
    return plan_recipe(
        "x",
        student=student,
        init="m",
        source="folder:a",
        validation="folder:b",
        images=images,
        classes=2,
        ranks=ranks,
    )


def test_small_sets_get_more_epochs_and_no_mixing() -> None:
    assert [p.images for p in PLANS] == sorted(p.images for p in PLANS)
    assert plan_for(2) is PLANS[0]
    assert plan_for(999).mixup == plan_for(999).cutmix == plan_for(999).erase == 0
    assert plan_for(999).epochs > plan_for(1_000).epochs
    assert plan_for(10**7) is PLANS[-1]
    assert (val_share(9_999), val_share(10_000)) == (0.2, 0.1)


@pytest.mark.parametrize("images", [2, 3, 7, 8, 50, 999, 1_000, 19_999, 10**6])
@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_fit_the_images(images: int, ranks: int) -> None:
    training = plan(images, ranks=ranks).training
    assert training.global_batch <= images
    assert training.rank_batch % 2 == 0
    share = training.global_batch // ranks
    assert share % training.rank_batch == 0 or share < 2
    assert images // training.global_batch >= min(4, images // 2)


def test_the_largest_sets_get_maes_recipe_and_each_size_its_layer_decay() -> None:
    recipe = plan(10**6, VIT_B)
    assert recipe.training.optim.peak_lr(recipe.training.global_batch) == pytest.approx(2e-3)
    methods = [plan(10**6, student).method for student in (VIT_B, VIT_S, VIT_T)]
    assert [m.layer_decay for m in methods] == [0.65, 0.75, 0.85]  # type: ignore[attr-defined]
    assert plan(300, TEACHER).student == TEACHER
