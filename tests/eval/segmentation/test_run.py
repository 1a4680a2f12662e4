"""``zoo eval MODEL ade20k-upernet`` from end to end, on drawn streets and the CPU."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import Run, last_words, run, zoo
from segruns import Trained, answer, command, error, result_in
from segsets import write_ade20k
from streets import make_streets, write_pair

from pretrain.log import read_log
from zoo.errors import Exit

KILLS = int(os.environ.get("TINYZOO_KILLS", "20"))
pytestmark = pytest.mark.usefixtures("here")


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
    assert_survives(model, streets, kills=max(1, KILLS // 2))


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
