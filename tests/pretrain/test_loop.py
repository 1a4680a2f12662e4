"""The loop: what is not finite stops every rank, and how a step is divided changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from faults import assert_error, problems_of
from models import make_model
from photos import make_photos
from runs import POISONED, TINY, TINY_MAE, Run, last_words, met_in_step, outcome, run, words, zoo
from safetensors.torch import load_file

from pretrain.index import open_index
from pretrain.log import read_log
from zoo.errors import Exit

PLAIN = {k: v for k, v in TINY.items() if not k.startswith("student.")}


def losses(out: Path) -> list[float]:
    return [row["total"] for row in read_log(out / "log.jsonl")]


def model(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step}" / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_on_one_rank_stops_all_with_the_last_good_state(
    photos: Path, tmp_path: Path, where: str
) -> None:
    """The image comes up on rank 1 in the third step; rows are due every second."""
    settings = {
        **PLAIN,
        "training.log_every_steps": "2",
        "training.save_every_steps": "100",
        "method.where": where,
    }
    poison = {"method.sample": str(met_in_step(2, rank=1, world=2))}
    out = tmp_path / "run"
    assert run(words(POISONED, photos, out, {**settings, **poison}), ranks=2) == [7, 7]
    left, where = last_words(out), "step 3; the state before it is saved as checkpoints/step-2"
    assert_error(left, Exit.DIVERGED, what="not finite", where=where, fix="lower the learning rate")
    assert left["step"] == 2
    batch = json.loads((out / "diverged.json").read_bytes())
    assert batch["step"] == 3
    assert [len(rank["indices"]) for rank in batch["ranks"]] == [4, 4]
    assert int(poison["method.sample"]) in batch["ranks"][1]["indices"]
    assert [row["step"] for row in read_log(out / "log.jsonl")] == [2]
    assert "NaN" not in (out / "log.jsonl").read_text()
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-2"]

    healthy = {**settings, "training.save_every_steps": "2", "training.keep_checkpoints": "9"}
    other = tmp_path / "healthy"
    assert run(words(POISONED, photos, other, healthy), ranks=2) == [0, 0]
    assert equal(model(out, 2), model(other, 2))
    assert losses(out) == losses(other)[:1]


def test_nan_right_at_the_start_of_a_single_rank(photos: Path, tmp_path: Path) -> None:
    settings = {**PLAIN, "method.rank": "0", "training.log_every_steps": "5"}
    index = met_in_step(0, rank=0, world=2)
    out = tmp_path / "run"
    command = words(POISONED, photos, out, {**settings, "method.sample": str(index)})
    assert zoo(command) == 7
    assert last_words(out)["step"] == 0
    assert read_log(out / "log.jsonl") == []
    assert all(t.isfinite().all() for t in model(out, 0).values())
    assert zoo(command) == 7  # the same bits meet the same end


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "teacher")


def twenty_steps(method: str, teacher: Path) -> tuple[str, dict[str, str]]:
    common = {"training.steps": "20", "training.log_every_steps": "1"}
    if method == "mae":
        return "mae-vit-t", {**TINY_MAE, **common}
    own = {"method.teacher.source": str(teacher), "method.drop_path": "0"}
    return "tinymim-vit-t", {**TINY, **common, **own}


@pytest.mark.parametrize("method", ["mae", "tinymim"])
def test_ranks_and_accumulation_learn_like_one_big_batch(
    photos: Path, teacher: Path, tmp_path: Path, method: str
) -> None:
    recipe, settings = twenty_steps(method, teacher)
    ways = {"whole": ("8", 1), "accumulated": ("2", 1), "two": ("4", 2), "both": ("2", 2)}
    for name, (rank_batch, ranks) in ways.items():
        divided = {**settings, "training.rank_batch": rank_batch}
        assert set(run(words(recipe, photos, tmp_path / name, divided), ranks=ranks)) == {0}
    whole = losses(tmp_path / "whole")
    assert len(whole) == 20
    assert whole[-1] < whole[0]
    for name in ways:
        assert losses(tmp_path / name) == pytest.approx(whole, rel=1e-5)


def test_how_often_is_saved_reaches_neither_log_nor_weights(photos: Path, tmp_path: Path) -> None:
    for every in (1, 5, 100):
        settings = {**TINY_MAE, "training.save_every_steps": str(every)}
        assert zoo(words("mae-vit-t", photos, tmp_path / f"{every}", settings)) == 0
    assert outcome(tmp_path / "1") == outcome(tmp_path / "5") == outcome(tmp_path / "100")


def test_how_often_is_logged_does_not_reach_the_weights(photos: Path, tmp_path: Path) -> None:
    for every in (1, 4):
        settings = {**TINY_MAE, "training.log_every_steps": str(every)}
        assert zoo(words("mae-vit-t", photos, tmp_path / f"{every}", settings)) == 0
    one, four = outcome(tmp_path / "1"), outcome(tmp_path / "4")
    assert one["weights"] == four["weights"]
    # A row is the mean of its steps.
    means = [sum(row["total"] for row in one["log"][i : i + 4]) / 4 for i in (0, 4, 8)]
    assert [row["total"] for row in four["log"]][:3] == pytest.approx(means)


@pytest.mark.parametrize("ranks", [1, 2])
def test_saved_when_the_minutes_are_over(photos: Path, tmp_path: Path, ranks: int) -> None:
    settings = {
        **TINY_MAE,
        "training.save_every_steps": "1000",
        "training.save_every_minutes": "1e-9",
        "training.keep_checkpoints": "50",
        "training.steps": "9",
    }
    out = tmp_path / "run"
    assert set(run(words("mae-vit-t", photos, out, settings), ranks=ranks)) == {0}
    steps = sorted(int(p.name.removeprefix("step-")) for p in (out / "checkpoints").iterdir())
    # Several ranks agree one step later, and do not save twice for one asking.
    assert steps == ([1, 2, 3, 4, 5, 6, 7, 8, 9] if ranks == 1 else [2, 4, 6, 8, 9])


def test_clipping_is_used(photos: Path, tmp_path: Path) -> None:
    for clip in ("null", "1e-8"):
        settings = {**TINY_MAE, "training.steps": "6", "training.optim.clip_norm": clip}
        assert zoo(words("mae-vit-t", photos, tmp_path / clip, settings)) == 0
    free, clipped = losses(tmp_path / "null"), losses(tmp_path / "1e-8")
    assert free[0] != clipped[0]
    norms = [row["grad_norm"] for row in read_log(tmp_path / "1e-8" / "log.jsonl")]
    assert min(norms) > 1e-3  # as it was before clipping


def test_bf16_trains_on_the_cpu(photos: Path, teacher: Path, tmp_path: Path) -> None:
    recipe, settings = twenty_steps("tinymim", teacher)
    for precision in ("fp32", "bf16"):
        own = {**settings, "training.precision": precision, "training.steps": "6"}
        assert zoo(words(recipe, photos, tmp_path / precision, own)) == 0
    full, half = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert half == pytest.approx(full, rel=0.05)
    assert half != full


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mae", "tinymim"])
def test_compiled_steps_give_the_same_losses(
    photos: Path, teacher: Path, tmp_path: Path, method: str
) -> None:
    recipe, settings = twenty_steps(method, teacher)
    for compiled in ("false", "true"):
        own = {**settings, "training.compile": compiled, "training.steps": "5"}
        assert run(words(recipe, photos, tmp_path / compiled, own)) == [0]
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rank_batch", "3", "choose one of 1, 2, 4, 8"),
        ("global_batch", "64", "choose at most 36"),
    ],
)
def test_batches_that_do_not_divide(
    photos: Path, tmp_path: Path, key: str, value: str, said: str, capsys
) -> None:
    settings = {**TINY_MAE, f"training.{key}": value}
    assert zoo(words("mae-vit-t", photos, tmp_path / "run", settings)) == 2
    assert said in capsys.readouterr().err


def test_global_batch_that_ranks_cannot_share(photos: Path, tmp_path: Path) -> None:
    settings = {**TINY_MAE, "training.global_batch": "9", "training.rank_batch": "1"}
    codes = run(words("mae-vit-t", photos, tmp_path / "run", settings), ranks=2)
    assert 2 in codes
    left = last_words(tmp_path / "run")
    assert left["code"] == 2
    assert "multiple of 2" in left["fix"]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """36 photos, one truncated and one a web page."""
    folder = make_photos(tmp_path / "damaged")
    photo = folder / "ant" / "003.jpg"
    photo.write_bytes(photo.read_bytes()[:200])
    (folder / "cat" / "007.jpg").write_text("<html>not found</html>")
    return folder


def quarantined(out: Path) -> set[str]:
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    return {str(Path(json.loads(line)["file"]).relative_to(out.parent)) for line in lines}


def test_damaged_images_are_listed_and_change_nothing_else(damaged: Path, tmp_path: Path) -> None:
    for workers in ("0", "2"):
        settings = {**TINY_MAE, "data.workers": workers}
        assert run(words("mae-vit-t", damaged, tmp_path / workers, settings)) == [0]
        bad = {"damaged/ant/003.jpg", "damaged/cat/007.jpg"}
        assert quarantined(tmp_path / workers) == bad
    assert outcome(tmp_path / "0") == outcome(tmp_path / "2")


def test_an_image_that_both_ranks_meet_is_counted_once(damaged: Path, tmp_path: Path) -> None:
    """Every pass deals the images to the ranks anew."""
    out = tmp_path / "run"
    settings = {**TINY_MAE, "data.max_bad": "2", "training.steps": "60"}
    settings |= {"training.save_every_steps": "1000"}
    assert run(words("mae-vit-t", damaged, out, settings), ranks=2) == [0, 0]
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 2
    assert len(quarantined(out)) == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_too_many_damaged_images_stop_the_run_until_more_are_allowed(
    damaged: Path, tmp_path: Path, ranks: int
) -> None:
    out = tmp_path / "run"
    settings = {**TINY_MAE, "training.save_every_steps": "1000"}
    strict = words("mae-vit-t", damaged, out, {**settings, "data.max_bad": "1"})
    assert run(strict, ranks=ranks) == [3] * ranks
    left, where = last_words(out), "quarantine.jsonl lists them"
    what, fix = "2 images could not be read; the limit is 1", "raise data.max_bad"
    assert_error(left, Exit.DATA, what=what, where=where, fix=fix)
    assert len(quarantined(out)) == 2
    assert (out / "checkpoints" / f"step-{left['step']}").is_dir()
    lenient = words("mae-vit-t", damaged, out, {**settings, "data.max_bad": "2"})
    assert run(lenient, ranks=ranks) == [0] * ranks
    assert run(words("mae-vit-t", damaged, tmp_path / "other", settings), ranks=ranks)[0] == 0
    assert outcome(out) == outcome(tmp_path / "other")


def test_rank_that_fails_alone_has_the_word(photos: Path, tmp_path: Path) -> None:
    """Its peer only loses it: what is told is the reason, not the loss."""
    out = tmp_path / "run"
    settings = {**PLAIN, "method.sample": "0", "method.where": "raise", "training.steps": "20"}
    codes = run(words(POISONED, photos, out, settings), ranks=2)
    assert codes == [8, 3]
    left = last_words(out)
    assert_error(left, Exit.DATA, what="a poisoned image", where="image 0", fix="another one")
    assert left["rank"] == 1


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", ["kill", "leave", "hang", "stop"])
def test_a_rank_that_is_lost_is_named(photos: Path, tmp_path: Path, how: str, lost: int) -> None:
    out = tmp_path / "run"
    settings = {
        **PLAIN,
        "method.sample": str(met_in_step(2, rank=lost, world=2)),
        "method.rank": str(lost),
        "method.where": how,
        "training.rank_timeout_seconds": "2",
    }
    started = Run(words(POISONED, photos, out, settings), ranks=2)
    other = started.processes[1 - lost]
    other.join(60)
    assert other.exitcode == 8
    what, where = f"rank {lost} died or stopped answering", f"rank {1 - lost} of 2: "
    told = last_words(out)
    assert_error(told, Exit.LOST_RANK, what=what, where=where, fix="the same command to continue")
    assert (told["rank"], told["step"]) == (1 - lost, 2)
    started.kill(rank=lost)  # torchrun's part, where it still stands
    assert problems_of(out / "checkpoints") == []


def test_index_of_the_photos_is_what_the_tests_count_on(photos: Path) -> None:
    assert len(open_index(photos)) == 36
