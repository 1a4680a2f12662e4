"""Fine-tuning in the one loop: validated after every epoch, best and last kept, continued."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from faults import assert_error
from models import make_model
from photos import make_photos
from runs import TINY, TINY_FINETUNE, TINY_MAE, Run, bits_of, last_words, run, words, zoo
from safetensors.torch import load_file

from pretrain.index import open_index
from pretrain.log import read_log
from pretrain.optim import WeightAverage
from zoo.folder import load_classifier
from zoo.images import read_image
from zoo.vit import ViTConfig

RECIPE = "finetune-in1k-vit-t"
STUDENT = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 images: an odd number, that no even number of ranks divides."""
    return make_photos(tmp_path_factory.mktemp("heldout"), per_class=5, seed=1)


def command(
    photos: Path, heldout: Path, out: Path, settings: Mapping[str, str] = NO_SETTINGS
) -> list[str]:
    own = {"data.validation": f"folder:{heldout}", **TINY_FINETUNE, **settings}
    return words(RECIPE, photos, out, own)


def validations(out: Path) -> list[dict[str, float]]:
    return [row for row in read_log(out / "log.jsonl") if "val_top1" in row]


EMA = {"training.optim.ema_decay": "0.5", "training.keep_checkpoints": "9"}


@pytest.fixture(scope="module")
def finished(photos: Path, heldout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 steps of which 4 make an epoch, mixing, erasing, drop path and averaged weights on."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert zoo(command(photos, heldout, out, EMA)) == 0
    return out


def test_every_epoch_and_the_end_are_validated(finished: Path) -> None:
    rows = validations(finished)
    assert [(row["step"], row["epoch"]) for row in rows] == [(4, 1), (8, 2), (12, 3), (14, 3.5)]
    scores = {"val_top1", "val_loss", "val_raw_top1", "val_raw_loss"}  # three classes: no top-5
    assert all(row.keys() == {"step", "epoch", "seconds", *scores} for row in rows)
    assert any(row["val_loss"] != row["val_raw_loss"] for row in rows)


def accuracy(folder: Path, images: Path) -> tuple[float, float]:
    """Top-1 in percent and the mean loss, image by image, of a model folder."""
    model, index = load_classifier(folder), open_index(images)
    assert index.labels is not None
    right, losses = 0, []
    for i, label in enumerate(index.labels.tolist()):
        crop = model.preprocess.eval_crop(read_image(index.path(i)))
        with torch.no_grad():
            logits = model.net(model.preprocess.normalise(crop.unsqueeze(0)))[0]
        right += int(logits.argmax()) == label
        losses.append(-logits.log_softmax(0)[label].item())
    return 100 * right / len(index), float(np.mean(losses))


def test_the_exported_classifier_has_the_accuracy_that_was_logged(
    finished: Path, heldout: Path
) -> None:
    top1, loss = accuracy(finished / "export", heldout)
    last = validations(finished)[-1]
    assert last["val_top1"] == top1
    assert last["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert load_classifier(finished / "export").labels == ("ant", "bee", "cat")


def card(folder: Path) -> dict:
    return json.loads((folder / "zoo.json").read_bytes())


def test_best_and_last_are_kept_and_told_apart(finished: Path, heldout: Path) -> None:
    rows = validations(finished)
    best = max(rows, key=lambda row: row["val_top1"])  # the first of equals
    assert best["step"] < 14
    for name, row, chosen in (("export-best", best, "best"), ("export", rows[-1], "last")):
        told = card(finished / name)
        (score,) = told["scores"]
        assert told["steps"] == row["step"]
        assert told["weights"] == "ema"
        assert score["settings"] == {"epoch": row["epoch"], "chosen": chosen}
        assert (score["value"], score["samples"]) == (row["val_top1"], 15)
        average = load_file(
            finished / "checkpoints" / f"step-{row['step']}" / "average.safetensors"
        )
        weights = load_file(finished / name / "model.safetensors")
        assert {f"net.{n}" for n in weights} == average.keys()
        assert all(torch.equal(weights[n], average[f"net.{n}"]) for n in weights)
    names = [card(finished / name)["name"] for name in ("export", "export-best")]
    assert names == [RECIPE, f"{RECIPE}-best"]


def test_without_averages_the_last_is_the_last(photos: Path, heldout: Path, tmp_path: Path) -> None:
    keep = {"training.keep_checkpoints": "9"}
    assert zoo(command(photos, heldout, tmp_path / "run", keep)) == 0
    rows = validations(tmp_path / "run")
    best = max(rows, key=lambda row: row["val_top1"])
    assert best["step"] < 14
    for name, step in (("export-best", best["step"]), ("export", 14)):
        model = tmp_path / "run" / "checkpoints" / f"step-{step}" / "model.safetensors"
        held, exported = load_file(model), load_file(tmp_path / "run" / name / "model.safetensors")
        assert all(torch.equal(held[f"net.{n}"], tensor) for n, tensor in exported.items())


@pytest.mark.parametrize("last", [6, 8, 12], ids=["mid-epoch", "epoch", "last best"])
def test_continued_it_ends_with_the_same_bits_and_the_same_best(
    photos: Path, heldout: Path, finished: Path, tmp_path: Path, last: int
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    for step in range(last + 2, 15, 2):
        shutil.rmtree(out / "checkpoints" / f"step-{step}")
    for name in ("export", "export-best"):
        shutil.rmtree(out / name)
    assert zoo(command(photos, heldout, out, EMA)) == 0
    assert bits_of(out) == bits_of(finished)


def test_finished_and_started_again_changes_nothing(
    photos: Path, heldout: Path, finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    assert zoo(command(photos, heldout, out, EMA)) == 0
    assert bits_of(out) == bits_of(finished)
    assert card(out / "export-best") == card(finished / "export-best")


def test_killed_it_ends_with_the_same_bits_of(photos: Path, heldout: Path, tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    settings = {"data.workers": "1", "training.steps": "30"}
    assert run(command(photos, heldout, undisturbed, settings)) == [0]
    started = Run(command(photos, heldout, out, settings))
    while not (out / "checkpoints" / "step-6").exists():
        assert started.running
        time.sleep(0.002)
    started.kill()
    assert run(command(photos, heldout, out, settings)) == [0]
    assert bits_of(out) == bits_of(undisturbed)


def test_the_number_of_ranks_does_not_reach_the_accuracy(
    photos: Path, heldout: Path, tmp_path: Path
) -> None:
    """Nothing is learned, so that both validate the same weights."""
    still = {
        "training.optim.lr_per_256": "0",
        "training.optim.min_lr": "0",
        "training.steps": "4",
        "data.validation": f"folder:{heldout}",
    }
    for ranks in (1, 2):
        assert set(run(command(photos, heldout, tmp_path / f"{ranks}", still), ranks=ranks)) == {0}
    one, two = validations(tmp_path / "1"), validations(tmp_path / "2")
    assert [row["val_top1"] for row in one] == [row["val_top1"] for row in two]
    assert [row["val_loss"] for row in one] == pytest.approx([r["val_loss"] for r in two], rel=1e-6)
    share = one[0]["val_top1"] * 15 / 100
    assert share == pytest.approx(round(share))


def test_averages_leave_the_weights_as_they_were() -> None:
    layer = torch.nn.Linear(3, 3)
    average = WeightAverage(dict(layer.named_parameters()), 0.9)
    with torch.no_grad():
        layer.weight += 1
    before = layer.weight.clone()
    with average.in_place():
        assert torch.equal(layer.weight, average.averages["weight"])
        assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, before)


def test_it_begins_from_a_base_and_says_so(photos: Path, heldout: Path, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", STUDENT)
    settings = {"method.init": str(base), "training.steps": "2"}
    assert zoo(command(photos, heldout, tmp_path / "run", settings)) == 0
    told = card(tmp_path / "run" / "export")
    assert told["base"]["name"] == "base"
    assert told["base"]["digest"] == card(base)["digest"]
    assert told["licenses"]["base base"] == "not stated"
    shutil.rmtree(base)
    make_model(base, STUDENT, seed=1)
    assert zoo(command(photos, heldout, tmp_path / "run", settings)) == 2  # another base
    assert "digest" in last_words(tmp_path / "run")["error"]


def test_classes_that_differ_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    heldout = make_photos(tmp_path / "heldout", per_class=2)
    (heldout / "bee").rename(heldout / "bug")
    assert zoo(command(photos, heldout, tmp_path / "run")) == 3
    said = last_words(tmp_path / "run")
    assert "same class folders" in said["error"]
    assert "bee, bug" in said["where"]


def test_labels_beyond_the_classifier_end_before_the_first_step(
    photos: Path, heldout: Path, tmp_path: Path
) -> None:
    assert zoo(command(photos, heldout, tmp_path / "run", {"method.classes": "2"})) == 2
    told, what = last_words(tmp_path / "run"), "3 class folders for a classifier of 2"
    fix = "set method.classes=3, or give the data it is meant for"
    assert_error(told, 2, what=what, where=str(photos), fix=fix)
    assert told["step"] is None


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"training.rank_batch": "1"}, 2, "Mixup pairs"),
        ({"data.validation": "null"}, 2, "needs images for validation"),
        ({"data.augment.policy": "rand-x9"}, 2, "timm knows no RandAugment"),
        ({"data.augment.policy": "augmix"}, 2, "timm knows no RandAugment"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    photos: Path, heldout: Path, tmp_path: Path, settings: dict[str, str], code: int, said: str
) -> None:
    assert zoo(command(photos, heldout, tmp_path / "run", settings)) == code
    assert said in last_words(tmp_path / "run")["error"]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_pre_training_does_not_read_images_for_validation(
    photos: Path, heldout: Path, tmp_path: Path
) -> None:
    settings = {**TINY_MAE, "data.validation": f"folder:{heldout}"}
    assert zoo(words("mae-vit-t", photos, tmp_path / "run", settings)) == 2
    assert "nothing would read" in last_words(tmp_path / "run")["error"]


def test_odd_batches_do_without_mixing(photos: Path, heldout: Path, tmp_path: Path) -> None:
    odd = {"training.rank_batch": "1", "method.mixup": "0", "method.cutmix": "0"}
    odd |= {"training.steps": "1", "data.augment.policy": "null"}
    assert zoo(command(photos, heldout, tmp_path / "run", odd)) == 0


def test_unreadable_images_for_validation_are_listed(photos: Path, tmp_path: Path) -> None:
    heldout = make_photos(tmp_path / "heldout", per_class=4)
    for name in ("ant/000.jpg", "cat/002.jpg"):
        (heldout / name).write_text("no image")
    for workers in ("0", "1"):
        out = tmp_path / workers
        code = run(command(photos, heldout, out, {"data.workers": workers}))
        assert code == [3]
        said = last_words(out)
        assert said["error"] == "2 of 12 images cannot be read"
        assert "ant/000.jpg" in said["where"]
        assert "cat/002.jpg" in said["where"]


def test_a_run_older_than_a_field_goes_on(photos: Path, tmp_path: Path) -> None:
    """Its recipe does not hold what recipes have learned to say since."""
    out = tmp_path / "run"
    settings = {**TINY_MAE, "training.steps": "2"}
    assert zoo(words("mae-vit-t", photos, out, settings)) == 0
    record = json.loads((out / "recipe.json").read_bytes())
    assert record.pop("data.validation", "missing") is None
    assert record.pop("data.augment", "missing") is None
    (out / "recipe.json").write_text(json.dumps(record))
    assert zoo(words("mae-vit-t", photos, out, settings)) == 0


def test_tiny_settings_are_what_these_tests_count_on(photos: Path) -> None:
    assert (TINY["training.steps"], TINY["training.global_batch"]) == ("14", "8")
    assert len(open_index(photos)) == 36
