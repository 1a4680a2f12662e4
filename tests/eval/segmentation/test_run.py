"""``zoo eval MODEL ade20k-upernet`` from end to end, on drawn streets and the CPU."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import Run, last_words, run, zoo
from segsets import write_ade20k
from streets import SMALL, make_streets, make_student, write_pair

from eval.segmentation.packages import import_mmseg
from pretrain.log import read_log
from zoo.errors import Exit

KILLS = int(os.environ.get("TINYZOO_KILLS", "20"))


@pytest.fixture(autouse=True, scope="module")
def mmseg() -> None:
    import_mmseg()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"training": 6, "validation": 3, "testing": 2}
    return make_streets(tmp_path_factory.mktemp("data") / "streets", counts)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that has come to its end; tests copy what they change."""

    run: Path
    out: Path
    answer: dict[str, Any]


@pytest.fixture(scope="module")
def trained(model: Path, streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    place = tmp_path_factory.mktemp("trained")
    run, out = place / "run", place / "results"
    assert zoo(command(model, streets, "--run", str(run), "--out", str(out))) == Exit.DONE
    return Trained(run=run, out=out, answer=result_in(out))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def command(model: Path, data: Path, *more: str, benchmark: str = "ade20k-upernet") -> list[str]:
    return ["eval", str(model), benchmark, "--data", str(data), "--workers", "0", *SMALL, *more]


def result_in(folder: Path = Path("results")) -> dict[str, Any]:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_bytes())


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert zoo([*words, "--json"]) == Exit.DONE
    return json.loads(capsys.readouterr().out)


def error(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = zoo(words)
    shown = capsys.readouterr()
    assert not shown.out
    assert "Traceback" not in shown.err
    return code, shown.err


@pytest.mark.parametrize("benchmark", ["ade20k-upernet", "upernet-plain"])
def test_trains_scores_and_tells(
    benchmark: str, model: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(model, streets, "training.validate_every=4", benchmark=benchmark)
    found = answer(words, capsys)
    own = benchmark.removeprefix("ade20k-")
    assert (found["protocol"], found["metric"], found["samples"]) == (f"{own}@1", "mIoU", 3)
    assert found["model"] == "student"
    assert found["details"]["training_images"] == 6
    assert found["data_fingerprint"] != found["details"]["split_fingerprint"]
    assert not list(Path("runs").rglob(".mmengine"))
    assert found["settings"]["training.iterations"] == 6
    assert "testing.windows" not in found["settings"]
    details = found["details"]
    assert list(details["per_class"]) == ["sky", "wall", "road"]
    shares = [c["iou"] for c in details["per_class"].values() if c["iou"] is not None]
    assert found["value"] == pytest.approx(np.mean(shares))
    assert details["valid_classes"] == len(shares)
    run_folder = Path("runs") / f"{own}-student-streets"
    assert Path(found["page"]) == run_folder.absolute() / "report.html"
    page = Path(found["page"]).read_text()
    assert "The worst" in page
    assert "training.iterations 6" in page
    rows = read_log(run_folder / "log.jsonl")
    assert [row["step"] for row in rows if "total" in row] == [2, 4, 6]
    assert [row["step"] for row in rows if "val_mIoU" in row] == [4]
    assert list((run_folder / "tensorboard").glob("events*"))
    assert last_words(run_folder)["code"] == 0
    kept = sorted(path.name for path in (run_folder / "checkpoints").iterdir())
    assert kept == ["step-4", "step-6"]
    del found["page"], found["seconds"]
    again = answer(words, capsys)  # nothing is trained twice
    assert len(read_log(run_folder / "log.jsonl")) == len(rows)
    del again["page"], again["seconds"]
    assert again == found


def test_it_learns(model: Path, streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = answer(command(model, streets, "training.iterations=40"), capsys)
    assert many["value"] > 60


def test_another_split_is_scored_by_the_same_network(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained.run, "run")
    words = ["eval", str(folder), "ade20k-test", "--workers", "0"]
    same = answer(words, capsys)
    assert same["value"] == trained.answer["value"]
    assert same["details"] == trained.answer["details"]
    other = answer([*words, "--split", "testing"], capsys)
    assert (other["samples"], other["settings"]["split"]) == (2, "testing")
    assert other["data_fingerprint"] != same["data_fingerprint"]
    assert len(list(Path("results").glob("*.json"))) == 2
    assert (Path(folder) / "report-testing.html").exists()
    code, said = error([*words, "--split", "test"], capsys)
    assert code == Exit.DATA
    assert "testing, training, validation" in said


def test_predictions_that_equal_the_masks_score_100(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.segmentation import outcome, score

    def perfect(net: Any, split: Any, numbers: Any, recipe: Any, **rest: Any) -> Any:
        for number in numbers:
            truth = score.read_mask(split.mask(number), 3)
            yield score.Guess(number, np.where(truth == 255, 1, truth).astype(np.uint8), truth)

    monkeypatch.setattr(score, "guesses", perfect)
    monkeypatch.setattr(outcome, "guesses", perfect)
    found = answer(["eval", str(shutil.copytree(trained.run, "run")), "ade20k-test"], capsys)
    assert (found["value"], found["standard_error"], found["details"]["aAcc"]) == (100, 0, 100)


def test_from_scratch_is_told_apart(
    trained: Trained, model: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = answer(command(model, streets, "--from-scratch"), capsys)
    assert theirs["settings"]["from_scratch"] is True
    assert "from_scratch" not in trained.answer["settings"]
    (file,) = Path("results").glob("*.json")
    assert file.name not in {other.name for other in trained.out.iterdir()}
    assert Path("runs/upernet-student-streets-scratch").is_dir()


def test_two_ranks_score_as_one(trained: Trained) -> None:
    words = ["eval", str(trained.run), "ade20k-test", "--workers", "0", "--out", "two"]
    assert run(words, ranks=2) == [0, 0]
    one, two = dict(trained.answer), result_in(Path("two"))
    assert (one.pop("ranks"), two.pop("ranks")) == (1, 2)
    for record in (one, two):
        del record["seconds"]
        del record["environment"]["threads"]
    assert one == two


def note_weights() -> None:
    """Each rank leaves a sum of its weights in the run folder when it saves."""
    from eval.segmentation.between import Between, bare

    save = Between.save

    def noting(self: Between, runner: Any) -> None:
        save(self, runner)
        total = sum(p.double().sum() for p in bare(runner.model).parameters())
        (self.job.run.path / f"weights-{self.job.world.rank}").write_text(f"{total!r}")

    Between.save = noting


def test_two_ranks_train_one_network(model: Path, streets: Path) -> None:
    words = command(model, streets, "training.global_batch=4", "training.validate_every=4")
    assert run(words, ranks=2, prepare=note_weights) == [0, 0]
    folder = Path("runs/upernet-student-streets")
    found = result_in()
    assert (found["ranks"], found["samples"]) == (2, 3)
    rows = read_log(Path("runs/upernet-student-streets/log.jsonl"))
    assert [row["step"] for row in rows] == [2, 4, 4, 6]
    sums = {(folder / f"weights-{rank}").read_text() for rank in range(2)}
    assert len(sums) == 1


def assert_survives(model: Path, streets: Path, kills: int) -> None:
    words = command(
        model,
        streets,
        "training.iterations=12",
        "training.save_every=1",
        "training.warmup_iterations=2",
    )
    assert run([*words, "--out", "warm-up", "--run", "warm-up"]) == [0]
    began = time.monotonic()
    assert run([*words, "--out", "whole", "--run", "whole"]) == [0]
    duration = time.monotonic() - began
    rng = random.Random(kills)
    for trial in range(kills):
        place = [*words, "--out", f"out-{trial}", "--run", f"run-{trial}"]
        started = Run(place)
        time.sleep(rng.uniform(0.1, 1.0) * duration)
        started.kill()
        assert run(place) == [0]
        rows = read_log(Path(f"run-{trial}/log.jsonl"))
        assert [row["step"] for row in rows] == list(range(1, 13))
        found = result_in(Path(f"out-{trial}"))
        assert found["details"]["iterations"] == 12
        assert 0 < found["value"] < 100
        assert not list(Path(f"run-{trial}/checkpoints").glob(".tmp*"))


def test_a_killed_run_ends_where_it_would_have(model: Path, streets: Path) -> None:
    assert_survives(model, streets, kills=1)


@pytest.mark.slow
def test_ranks_are_started_and_their_errors_passed_on(model: Path, streets: Path) -> None:
    words = [*command(model, streets, "training.global_batch=4"), "--run", "here", "--nproc", "2"]
    told = subprocess.run([sys.executable, "-m", "zoo", *words, "--json"], stdout=subprocess.PIPE)
    assert told.returncode == 0
    assert json.loads(told.stdout)["ranks"] == 2
    words = ["eval", "here", "ade20k-test", "--nproc", "2", "--out", "there"]
    assert subprocess.run([sys.executable, "-m", "zoo", *words]).returncode == 0
    assert result_in(Path("there"))["value"] == result_in()["value"]
    (streets_copy := Path("copy")).symlink_to(streets)
    code = subprocess.run([sys.executable, "-m", "zoo", *words, "--data", "nowhere"]).returncode
    assert code == Exit.DATA
    assert streets_copy.exists()


@pytest.mark.slow
def test_kills_at_random(model: Path, streets: Path) -> None:
    assert_survives(model, streets, kills=KILLS)


def test_a_signal_saves_and_the_same_command_continues(
    model: Path, streets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.segmentation import between

    earlier = between.seed_step

    def seed(first: int, step: int, world: Any) -> None:
        earlier(first, step, world)
        if step == 2:
            os.kill(os.getpid(), 15)

    monkeypatch.setattr(between, "seed_step", seed)
    code, said = error(command(model, streets), capsys)
    assert code == Exit.PREEMPTED
    assert "iteration 3" in said
    monkeypatch.setattr(between, "seed_step", earlier)
    assert zoo(command(model, streets)) == Exit.DONE
    assert "continuing from iteration 3" in capsys.readouterr().err
    rows = read_log(Path("runs/upernet-student-streets/log.jsonl"))
    assert [row["step"] for row in rows] == [2, 3, 4, 6]


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


def test_crops_without_a_label_are_passed_over_and_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_streets(tmp_path / "streets")
    rng = np.random.default_rng(1)
    for number in range(6):
        write_pair(data, "training", f"empty{number}", np.zeros((50, 60), np.uint8), rng)
    write_pair(data, "validation", "empty", np.zeros((50, 60), np.uint8), rng)
    found = answer(command(model, data), capsys)
    assert found["details"]["skipped_crops"] > 0
    assert found["details"]["images_without_a_label"] == 1
    assert found["samples"] == 6


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


def test_a_part_of_ade20k_is_called_so_and_another_set_not_by_its_name(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "ade"
    write_ade20k(data, "training", [1, 2, 3])
    write_ade20k(data, "validation", [1, 2])
    code, said = error(command(model, data), capsys)
    assert code == Exit.DATA
    assert "20,210" in said
    found = answer(command(model, data, "--partial"), capsys)
    assert (found["protocol"], found["complete"]) == ("ade20k-upernet@1", False)
    assert found["data"] == "ADE20K, 2 of 2,000 images, trained on 3 of 20,210 images"
    assert found["details"]["classes"] == 150
    own = make_streets(tmp_path / "own")
    (own / "classes.txt").unlink()
    shutil.copy(data / "objectInfo150.txt", own)
    words = ["eval", "runs/ade20k-upernet-student-ade", "ade20k-test", "--data", str(own)]
    other = answer(words, capsys)
    assert (other["protocol"], other["data"]) == (
        "upernet@1",
        "own, trained on 3 of 20,210 images",
    )


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


def test_show_writes_nothing(
    model: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = answer(command(model, streets, "--show"), capsys)
    assert shown["training.iterations"] == 6
    assert shown["training.layer_decay"] == 0.8
    assert shown["method"] == "upernet"
    assert not Path("runs").exists()


@pytest.mark.parametrize("benchmark", ["ade20k-upernet", "ade20k-upernet-plain"])
def test_the_dumped_configuration_trains_and_tests_unchanged(
    benchmark: str, model: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmengine.config import Config
    from mmengine.runner import Runner

    from eval.segmentation.packages import quiet

    said = answer(
        command(model, streets, "--dump-config", "it/upernet.py", benchmark=benchmark), capsys
    )
    assert not Path("runs").exists()
    config = Config.fromfile(said["configuration"])
    assert ("custom_imports" in config) == benchmark.endswith("plain")
    with quiet():
        runner = Runner.from_cfg(config)
        runner.train()
        scores = runner.test()
    assert runner.iter == 6
    assert 0 <= scores["mIoU"] <= 100
    assert torch.isfinite(next(runner.model.parameters())).all()
