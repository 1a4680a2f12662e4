"""What differs between two starts of a run: refused field by field, or allowed and written down."""

import functools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from faults import assert_error
from models import make_model
from photos import make_photos
from runs import TINY, TINY_MAE, last_words, outcome, run, words, zoo

from pretrain.run import RunFolder
from zoo.errors import Exit

SETTINGS = {**TINY_MAE, "training.steps": "4"}


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, saved after the second and the fourth."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def allowing(*fields: str) -> list[str]:
    return [word for field in fields for word in ("--allow-change", field)]


def card(out: Path) -> dict:
    return json.loads((out / "export" / "zoo.json").read_bytes())


def test_each_changed_field_must_be_allowed(photos: Path, out: Path) -> None:
    before = (out / "recipe.json").read_bytes()
    command = words(
        "mae-vit-t", photos, out, {**SETTINGS, "training.seed": "9", "training.steps": "6"}
    )
    assert zoo([*command, *allowing("training.steps")]) == 2
    told, what = last_words(out), "began otherwise: training.seed: 0 → 9"
    fix = "--allow-change training.seed"
    assert_error(told, Exit.USAGE, what=what, where=str(out), fix=fix)
    assert "training.steps" not in told["error"] + told["fix"]
    assert (out / "recipe.json").read_bytes() == before
    assert not (out / "changes.json").exists()


def test_what_was_allowed_is_recorded_and_bound_from_then_on(photos: Path, out: Path) -> None:
    longer = {**SETTINGS, "training.steps": "6", "training.optim.weight_decay": "0.1"}
    command = words("mae-vit-t", photos, out, longer)
    fields = ("training.steps", "training.optim.weight_decay")
    assert zoo([*command, *allowing(*fields)]) == 0
    changes = [
        {"step": 4, "field": "training.optim.weight_decay", "before": 0.05, "after": 0.1},
        {"step": 4, "field": "training.steps", "before": 4, "after": 6},
    ]
    assert json.loads((out / "changes.json").read_bytes()) == changes
    assert card(out)["changes"] == changes
    assert card(out)["recipe"]["training.steps"] == 6
    page = (out / "export" / "README.md").read_text()
    assert "- changed at step 4: training.steps, 4 → 6" in page
    assert [row["step"] for row in outcome(out)["log"]] == [3, 4, 6]
    # The same command, with or without what it allows, goes on; the earlier recipe does not.
    assert zoo(command) == 0
    assert zoo([*command, *allowing(*fields)]) == 0
    assert json.loads((out / "changes.json").read_bytes()) == changes
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 2


def test_a_run_without_changes_says_none(finished: Path) -> None:
    assert card(finished)["changes"] == []
    assert "changed at" not in (finished / "export" / "README.md").read_text()


def test_killed_before_it_saved_a_change_is_told_once(photos: Path, out: Path) -> None:
    """The checkpoint knows the data as it was: the next start meets the change again."""
    settings = {**SETTINGS, "training.steps": "6", "method.decoder_depth": "1"}
    command = words("mae-vit-t", photos, out, settings)
    command += allowing("training.steps")
    assert zoo(command) == 0
    shutil.rmtree(out / "checkpoints" / "step-6")
    (out / "recipe.json").write_text(
        json.dumps({**json.loads((out / "recipe.json").read_bytes()), "training.steps": 4})
    )
    assert zoo(command) == 0
    assert len(json.loads((out / "changes.json").read_bytes())) == 1


@pytest.mark.parametrize("change", ["rename", "remove", "add"])
def test_other_data(tmp_path: Path, change: str) -> None:
    data, out = make_photos(tmp_path / "photos"), tmp_path / "run"
    (data / "ant" / "000.jpg").write_text("<html>")
    assert zoo(words("mae-vit-t", data, out, {**SETTINGS, "training.steps": "4"})) == 0
    (out / "quarantine.jsonl").write_text('{"index": 0, "file": "x", "why": "y"}\n')
    photo = data / "ant" / "001.jpg"
    if change == "rename":
        photo.rename(data / "ant" / "zzz.jpg")
    elif change == "remove":
        photo.unlink()
    else:
        shutil.copy(photo, data / "ant" / "new.jpg")
    command = words("mae-vit-t", data, out, {**SETTINGS, "training.steps": "4"})
    assert zoo([*command, "--reindex"]) == 2
    told, fix = last_words(out), "--allow-change data_fingerprint, or"
    assert_error(told, Exit.USAGE, what="data_fingerprint: '", where=str(out), fix=fix)
    assert ("images: 36 → " in told["error"]) == (change != "rename")
    shutil.rmtree(out / "checkpoints" / "step-4")
    assert zoo([*command, *allowing("data_fingerprint")]) == 0
    fields = {entry["field"] for entry in card(out)["changes"]}
    assert fields == {"data_fingerprint"} | ({"images"} if change != "rename" else set())
    # It numbers the images as they were.
    assert (out / "quarantine-before-step-2.jsonl").exists()


def test_all_ranks_see_that_the_list_of_unreadable_images_was_put_aside(tmp_path: Path) -> None:
    """However long rank 0 takes for it.  By the list, all but rank 0 would stop."""
    data, out = make_photos(tmp_path / "photos"), tmp_path / "run"
    command = words("mae-vit-t", data, out, SETTINGS)
    assert run(command, ranks=2) == [0, 0]
    lines = [json.dumps({"index": i, "file": "x", "why": "y"}) for i in range(20)]
    (out / "quarantine.jsonl").write_text("\n".join(lines) + "\n")
    (data / "ant" / "001.jpg").rename(data / "ant" / "zzz.jpg")
    more = words("mae-vit-t", data, out, {**SETTINGS, "training.steps": "6"})
    fields = allowing("data_fingerprint", "training.steps")
    codes = run([*more, "--reindex", *fields], ranks=2, prepare=_slow_to_accept)
    assert codes == [0, 0], last_words(out)
    assert (out / "quarantine-before-step-4.jsonl").exists()


def _slow_to_accept() -> None:
    accept = RunFolder.accept

    @functools.wraps(accept)
    def slow(self: RunFolder, *arguments: Any) -> None:
        time.sleep(2)
        accept(self, *arguments)

    RunFolder.accept = slow  # type: ignore[method-assign]


def test_another_teacher_and_what_of_it_differs(photos: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "run", make_model(tmp_path / "teacher")
    settings = {**TINY, "method.teacher.source": str(teacher), "training.steps": "2"}
    command = words("tinymim-vit-t", photos, out, settings)
    assert zoo(command) == 0
    shutil.rmtree(teacher)
    make_model(teacher, seed=1)
    assert zoo(command) == 2
    told, fix = last_words(out), "--allow-change facts.teacher.digest"
    assert_error(told, Exit.USAGE, what="facts.teacher.digest: '", where=str(out), fix=fix)
    assert "license" not in told["error"]
    assert zoo([*command, *allowing("facts.teacher.digest")]) == 0
    assert [entry["field"] for entry in card(out)["changes"]] == ["facts.teacher.digest"]


def test_another_number_of_ranks(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0
    shutil.rmtree(out / "checkpoints" / "step-4")
    command = words("mae-vit-t", photos, out, SETTINGS)
    assert 2 in run(command, ranks=2)
    told, fix = last_words(out), "--allow-change ranks"
    assert_error(told, Exit.USAGE, what="ranks: 1 → 2", where=str(out), fix=fix)
    assert run([*command, *allowing("ranks")], ranks=2) == [0, 0]
    assert card(out)["changes"] == [{"step": 2, "field": "ranks", "before": 1, "after": 2}]


def test_another_code(photos: Path, out: Path) -> None:
    """As where a newer release continues a run."""
    for checkpoint in (out / "checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_bytes())
        state["notes"]["identity"]["code_version"] = "tinyzoo 0.0.1"
        (checkpoint / "state.json").write_text(json.dumps(state))
        sign(checkpoint)
    command = words("mae-vit-t", photos, out, SETTINGS)
    assert zoo(command) == 2
    told, what = last_words(out), "code_version: 'tinyzoo 0.0.1' → 'tinyzoo "
    assert_error(told, Exit.USAGE, what=what, where=str(out), fix="--allow-change code_version")
    assert zoo([*command, *allowing("code_version")]) == 0


def test_a_run_from_before_its_code_was_noted(photos: Path, out: Path) -> None:
    for checkpoint in (out / "checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_bytes())
        del state["notes"]["identity"]["code_version"]
        (checkpoint / "state.json").write_text(json.dumps(state))
        sign(checkpoint)
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0


def sign(checkpoint: Path) -> None:
    """Make the manifest true again."""
    from pretrain.checkpoint import _manifest

    (checkpoint / "manifest.json").write_text(json.dumps(_manifest(checkpoint)))


@pytest.mark.parametrize(
    ("settings", "fields", "what", "where"),
    [
        (
            {"student.width": "48"},
            ["student.width"],
            "another network's",
            "cls_token is (1, 1, 24)",
        ),
        ({"training.steps": "3"}, ["training.steps"], "taken 4 steps already", "run"),
    ],
)
def test_allowed_and_still_impossible(
    photos: Path, out: Path, settings: dict, fields: list[str], what: str, where: str
) -> None:
    before = (out / "recipe.json").read_bytes()
    command = words("mae-vit-t", photos, out, {**SETTINGS, **settings})
    assert zoo([*command, *allowing(*fields)]) == 2
    assert_error(last_words(out), Exit.USAGE, what=what, where=where, fix="start anew")
    # Nothing of it is recorded: the run as it was goes on.
    assert (out / "recipe.json").read_bytes() == before
    assert not (out / "changes.json").exists()
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0


def test_averaging_may_begin_late(photos: Path, out: Path) -> None:
    settings = {**SETTINGS, "training.steps": "6", "training.optim.ema_decay": "0.9"}
    command = words("mae-vit-t", photos, out, settings)
    assert zoo([*command, *allowing("training.steps", "training.optim.ema_decay")]) == 0
    assert card(out)["weights"] == "ema"


@pytest.mark.parametrize(
    ("name", "says"),
    [("training.sed", "did you mean 'training.seed'?"), ("method", "no field that could change")],
)
def test_a_name_that_is_none_is_refused(photos: Path, out: Path, name: str, says: str) -> None:
    assert zoo([*words("mae-vit-t", photos, out, SETTINGS), *allowing(name)]) == 2
    told = last_words(out)
    assert_error(told, Exit.USAGE, what=says, where="--allow-change", fix="training.seed")


def test_another_optimizer_cannot_be_allowed(photos: Path, out: Path) -> None:
    command = words("mae-vit-t", photos, out, {**SETTINGS, "training.optim.algorithm": "lars"})
    assert zoo([*command, *allowing("training.optim.algorithm")]) == 2
    told = last_words(out)
    what = "training.optim.algorithm: 'adamw' → 'lars'"
    assert_error(told, Exit.USAGE, what=what, where=str(out), fix="another folder with --out")
    assert "--allow-change" not in told["fix"]


def test_a_list_of_changes_that_cannot_be_read(photos: Path, out: Path) -> None:
    (out / "changes.json").write_text('[{"step": 4')
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 4
    told, what = last_words(out), "what was allowed to change"
    assert_error(told, Exit.INTEGRITY, what=what, where="changes.json", fix="from a backup")
