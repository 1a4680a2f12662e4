"""What ``zoo eval MODEL ade20k-upernet`` refuses, and how it says so."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import last_words, zoo
from segruns import Trained, answer, command, error
from streets import make_streets

from zoo.errors import Exit

pytestmark = pytest.mark.usefixtures("here")


def test_a_damaged_checkpoint_is_passed_over_and_a_foreign_one_refused(
    trained: Trained, model: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained.run, "run"))
    newest = folder / "checkpoints/step-6/state.pth"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    words = command(model, streets, "--run", "run")
    found = answer(words, capsys)  # the last two iterations again
    assert found["details"]["iterations"] == 6
    shutil.rmtree(folder / "checkpoints/step-4", ignore_errors=True)
    manifest = json.loads((newest.parent / "manifest.json").read_bytes())
    torch.save({"state_dict": Bomb()}, newest)
    manifest["state.pth"] = {
        "sha256": hashlib.sha256(newest.read_bytes()).hexdigest(),
        "size": newest.stat().st_size,
    }
    (newest.parent / "manifest.json").write_text(json.dumps(manifest))
    code, said = error(["eval", str(folder), "ade20k-test"], capsys)
    assert code == Exit.INTEGRITY
    assert "more than tensors and plain values" in said
    assert not Path("PWNED").exists()


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("PWNED",)


def test_a_refused_start_changes_nothing_in_the_run(
    trained: Trained, model: Path, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained.run, "run"))
    before = (folder / "network.json").read_bytes()
    other = shutil.copytree(streets, tmp_path / "moved" / "streets")
    words = command(model, Path(other), "--run", str(folder))
    assert zoo(words) == Exit.DONE  # the same images in another place
    capsys.readouterr()
    (Path(other) / "classes.txt").write_text("sky\nroad\nwall\n")
    code, said = error(words, capsys)
    assert code == Exit.USAGE
    assert "train_fingerprint" in said
    assert "--run" in said
    assert (folder / "network.json").read_bytes() == before


def test_masks_without_labels_or_with_one_class_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_streets(tmp_path / "streets")
    for mask in (data / "annotations/validation").iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    code, said = error(command(model, data), capsys)
    assert code == Exit.DATA
    assert "no pixel of 5 masks has a label" in said
    for mask in data.glob("annotations/*/*"):
        Image.fromarray(np.ones_like(np.asarray(Image.open(mask)))).save(mask)
    (data / "classes.txt").write_text("street\n")
    code, said = error(command(model, data), capsys)
    assert code == Exit.DATA
    assert "one class alone" in said


@pytest.mark.parametrize(
    ("harm", "hint"),
    [
        ("size", "of another size than"),
        ("value", "class"),
        ("missing", "without a mask"),
        ("damaged", "cannot be"),
    ],
)
def test_bad_data_is_refused_before_anything_is_trained(
    harm: str, hint: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_streets(tmp_path / "streets")
    mask = data / "annotations/training/003.png"
    match harm:
        case "size":
            Image.fromarray(np.ones((9, 9), np.uint8)).save(mask)
        case "value":
            values = np.asarray(Image.open(mask)).copy()
            values[5, 5] = 4
            Image.fromarray(values).save(mask)
        case "missing":
            mask.unlink()
        case "damaged":
            mask.write_bytes(mask.read_bytes()[:100])
    code, said = error(command(model, data), capsys)
    assert code == Exit.DATA
    assert hint in said
    assert "003" in said
    assert not Path("runs").exists()


def test_a_damaged_photograph_stops_training_by_its_name(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_streets(tmp_path / "streets")
    photo = data / "images/training/002.jpg"
    photo.write_bytes(photo.read_bytes()[:-300])
    for workers in ("0", "1"):
        words = command(model, data, f"training.workers={workers}")
        code, said = error(words, capsys)
        assert code == Exit.DATA
        assert "002.jpg" in said
        assert "zoo.errors" not in said


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_its_last_checkpoint(
    trained: Trained, model: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = error(command(model, streets, "training.lr=1e30"), capsys)
    assert code == Exit.DIVERGED
    assert "lower training.lr" in said
    assert last_words(Path("runs/upernet-student-streets"))["code"] == Exit.DIVERGED
    assert not list(Path("runs").rglob("backbone.pth"))


USAGE = {
    "one crop": (["training.global_batch=1"], "two crops or more"),
    "half precision on the CPU": (["training.precision=bfloat16"], "on CUDA only"),
    "patches": (["method.crop=36"], "do not tile"),
    "no schedule": (["training.warmup_iterations=6"], "a warm-up of 6"),
    "a warm-up that never ends": (["training.warmup_iterations=1"], "a warm-up of 1"),
    "one patch": (["method.crop=8"], "two a side"),
    "ranks that cannot share": (["--dump-config", "x.py", "--nproc", "3"], "cannot be shared"),
    "gaps": (["testing.stride=33"], "leave gaps"),
    "taps": (["method.taps=[1, 2, 3, 5]"], "four blocks"),
    "another name": (["protocol=ade20k-upernet@1"], "follows from the command"),
    "unknown key": (["training.iteration=5"], "did you mean 'training.iterations'"),
    "not of a segmentation": (["--transform", "mae"], "takes no --transform"),
    "not of training": (["--split", "testing"], "takes no --split"),
}


@pytest.mark.parametrize(("more", "hint"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage(
    more: list[str], hint: str, model: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = error(command(model, streets, *more), capsys)
    assert code == Exit.USAGE
    assert hint in said


def test_another_recipe_in_the_same_folder_is_refused(
    trained: Trained, model: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(model, streets, "training.lr=0.1", "--run", str(trained.run))
    code, said = error(words, capsys)
    assert code == Exit.USAGE
    assert "training.lr: 0.003 → 0.1" in said


def test_a_run_of_other_classes_is_refused(
    trained: Trained, model: Path, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(streets, tmp_path / "other")
    (other / "classes.txt").write_text("sky\nroad\nwall\n")
    words = ["eval", str(trained.run), "ade20k-test", "--data", str(other)]
    code, said = error(words, capsys)
    assert code == Exit.DATA
    assert "sky, road, wall" in said
    code, said = error(["eval", str(model), "ade20k-test"], capsys)
    assert code == Exit.USAGE
    assert "not the folder of a segmentation run" in said


def test_options_of_a_segmentation_are_refused_elsewhere(
    model: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in (["--from-scratch"], ["--split", "x"], ["training.lr=1"], ["--nproc", "2"]):
        code, said = error(["eval", str(model), "knn", "--data", str(streets), *more], capsys)
        assert code == Exit.USAGE
        assert f"knn takes no {more[0]}" in said
