"""The family from one load of the model, its one card, and ImageNet-C's two scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from classifiers import corrupted_files, make_classifier, make_family, make_val
from evalsets import THREE, picture, write_tree
from hypothesis import given
from hypothesis import strategies as st
from runs import zoo

from eval import run as run_module
from eval.classes import synsets
from eval.classify import logits_of
from eval.compare import compare
from eval.corruptions import ALEXNET_ERRORS, EXTRA_TYPES, SEVERITIES, TYPES, standard_error
from eval.layouts import Expected, open_eval_set
from eval.predictions import load_predictions
from eval.run import FAMILY, Evaluation, Options, evaluate
from eval.sets import NAMES, find_sets, parse_data
from zoo.errors import DataError, Exit, UsageError
from zoo.folder import load_classifier
from zoo.images import Preprocess, decode

CLEAN = "in1k-r-clean@1"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_classifier(tmp_path / "net")


def score(model: Path, benchmark: str, *data: str | Path, out: Path) -> Evaluation:
    options = Options(partial=True, workers=0, out=out)
    return evaluate([str(model)], benchmark, [str(d) for d in data], options)


def test_the_family_from_one_load(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = run_module.load_classifier
    monkeypatch.setattr(run_module, "load_classifier", lambda f: loads.append(f) or load(f))
    root = make_family(tmp_path / "data")
    found = score(model, "robustness", root, out=tmp_path / "out")
    assert loads == [model]
    assert found.missing == {"in1k-a-clean@1": "no image here is of its classes"}
    asked = [f"{name}@1" for name in FAMILY]
    assert {r.protocol for r in found.results} == {*asked, CLEAN}
    by_name = {r.protocol: r for r in found.results}
    card = found.text()
    for name in asked[:-1]:
        assert f"{by_name[name].value:.2f}" in next(
            line for line in card.splitlines() if line.strip().startswith(name)
        )
    assert by_name["in1k-c@1"].metric == "mean-error-of-some-images"
    assert "neither mCE nor its like" in card
    alone = score(model, "in1k-a", root / "imagenet-a", out=tmp_path / "alone")
    assert alone.results[0].details == by_name["in1k-a@1"].details


def test_what_is_not_there_is_said(model: Path, tmp_path: Path) -> None:
    make_val(tmp_path / "data" / "imagenet" / "val")
    found = score(model, "robustness", tmp_path / "data", out=tmp_path / "out")
    ran = {r.protocol for r in found.results}
    assert ran == {"in1k-val@1", "in1k-real@1", CLEAN}
    assert set(found.missing) == {
        "in1k-v2@1",
        "in1k-a@1",
        "in1k-a-clean@1",
        "in1k-r@1",
        "in1k-sketch@1",
        "in1k-c@1",
    }
    assert "not run: in1k-c@1: no in1k-c was found: --data in1k-c=DIR" in found.text()
    assert found.as_dict()["missing"] == found.missing


def test_the_clean_figure_stands_beside(model: Path, tmp_path: Path) -> None:
    """Of the same 200 classes, where the validation images are given too."""
    root = make_family(tmp_path / "data")
    val = f"in1k-val={root / 'ILSVRC2012'}"
    found = score(model, "in1k-r", root / "imagenet-r", val, out=tmp_path / "out")
    assert [r.protocol for r in found.results] == ["in1k-r@1", "in1k-r-clean@1"]
    assert found.results[1].samples == 10  # n01443537 is of R's classes; the others are not
    without = score(model, "in1k-r", root / "imagenet-r", out=tmp_path / "out")
    assert [r.protocol for r in without.results] == ["in1k-r@1"]
    assert "in1k-r-clean@1" in without.missing


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made ImageNet-C counts as all of it."""
    due = Expected(images=4, synsets=THREE[:2], per_class=2, types=TYPES, severities=SEVERITIES)
    monkeypatch.setattr(
        run_module, "_open", lambda place, name, partial: open_eval_set(Path(place), name, due=due)
    )


@pytest.mark.usefixtures("whole")
def test_both_scores_of_the_corrupted_images(model: Path, tmp_path: Path) -> None:
    data = write_tree(tmp_path / "c", corrupted_files((*TYPES, EXTRA_TYPES[0])))
    (result,) = score(model, "in1k-c", data, out=tmp_path / "out").results
    assert result.samples == 15 * 5 * 4
    errors = result.details["errors"]
    mean = {kind: np.mean(list(errors[kind].values())) for kind in TYPES}
    assert result.metric == "mce-alexnet-normalised"
    assert result.value == pytest.approx(
        100 * np.mean([mean[kind] / ALEXNET_ERRORS[kind] for kind in TYPES])
    )
    plain = result.details["mean-error-unnormalised"]["percent"]
    assert plain == pytest.approx(np.mean(list(mean.values())))
    assert list(result.details["extra_types"]) == [EXTRA_TYPES[0]]
    assert result.transform["crop_mode"] == "squash"
    guesses = load_predictions(tmp_path / "out" / result.predictions)
    assert len(guesses) == 16 * 5 * 4
    assert 100 - 100 * guesses.correct1[:20].float().mean() == pytest.approx(
        np.mean(list(errors["brightness"].values()))
    )


def right_in_some(model: Path) -> dict[str, bytes]:
    """Four images in each part, in the folder of what the model takes them for; from the severity
    on that is their number, in another."""
    ours, files = load_classifier(model), {}
    for i in range(4):
        pixels = decode(picture(i), "here")
        inputs = ours.preprocess.normalise(
            Preprocess(
                image_size=16,
                crop_pct=1.0,
                crop_mode="squash",
                mean=ours.preprocess.mean,
                std=ours.preprocess.std,
            ).eval_crop(pixels)[None]
        )
        taken = int(logits_of(ours, inputs, "float32").argmax())
        for kind in TYPES:
            for severity in SEVERITIES:
                wrong = severity > i or (kind == "fog" and i < 2)
                label = (taken + 1) % 1000 if wrong else taken
                files[f"{kind}/{severity}/{synsets()[label]}/{i}.JPEG"] = picture(i)
    return files


def test_errors_are_of_their_own_parts(model: Path, tmp_path: Path) -> None:
    """Image i is right up to severity i; of fog only images 2 and 3 are."""
    data = write_tree(tmp_path / "c", right_in_some(model))
    (result,) = score(model, "in1k-c", data, out=tmp_path / "out").results
    usual = {"1": 25.0, "2": 50.0, "3": 75.0, "4": 100.0, "5": 100.0}
    expected = dict.fromkeys(TYPES, usual) | {"fog": {**usual, "1": 50.0}}
    assert result.details["errors"] == expected
    assert result.standard_error > 0  # also of files without a validation image's number


@pytest.mark.usefixtures("whole")
def test_a_comparison_of_corrupted_images_is_refused(model: Path, tmp_path: Path) -> None:
    data = write_tree(tmp_path / "c", corrupted_files())
    (result,) = score(model, "in1k-c", data, out=tmp_path / "out").results
    guesses = load_predictions(tmp_path / "out" / result.predictions)
    with pytest.raises(UsageError, match="no independent samples"):
        compare(guesses, guesses)


def test_only_extra_types(model: Path, tmp_path: Path) -> None:
    data = write_tree(tmp_path / "c", corrupted_files((EXTRA_TYPES[0],)))
    with pytest.raises(DataError, match="no image here is of the benchmark's classes"):
        score(model, "in1k-c", data, out=tmp_path / "out")


def test_of_some_images_there_is_no_mce(model: Path, tmp_path: Path) -> None:
    data = write_tree(tmp_path / "c", corrupted_files(("fog", "snow")))
    found = score(model, "in1k-c", data, out=tmp_path / "out")
    (result,) = found.results
    assert result.metric == "mean-error-of-some-images"
    assert not result.complete
    assert "mean-error-unnormalised" not in result.details
    assert "10 of 75 types and severities" in found.text()


@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_error_of_a_sum_over_parts_is_that_over_images(n: int, parts: int, seed: int) -> None:
    """Where every image is in every part, the score is a mean over images."""
    rng = np.random.default_rng(seed)
    wrong, weights = rng.random((parts, n)) < 0.4, rng.random(parts)
    part, image = np.divmod(np.arange(parts * n), n)
    by_image = (weights[:, None] * wrong).sum(0)
    expected = by_image.std(ddof=1) / np.sqrt(n)
    assert standard_error(wrong.ravel(), part, image + 7, weights) == pytest.approx(
        expected, abs=1e-12
    )


def test_sets_are_found_by_the_names_they_unpack_under(tmp_path: Path) -> None:
    found = find_sets(make_family(tmp_path))
    assert {name: place.name for name, place in found.items()} == {
        "in1k-val": "ILSVRC2012",
        "in1k-v2": "imagenetv2-matched-frequency-format-val",
        "in1k-a": "imagenet-a",
        "in1k-r": "imagenet-r",
        "in1k-sketch": "sketch",
        "in1k-c": "ImageNet-C",
    }
    (tmp_path / "imagenet_a.tar").touch()
    with pytest.raises(DataError, match=r"could be in1k-a: imagenet-a, imagenet_a\.tar"):
        find_sets(tmp_path)


def test_no_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the sets") as missing:
        find_sets(tmp_path)
    assert all(names[0] in missing.value.where for names in NAMES.values())
    with pytest.raises(DataError, match="no such folder"):
        find_sets(tmp_path / "nowhere")


def test_the_folder_itself_may_be_imagenet(tmp_path: Path) -> None:
    make_val(tmp_path / "val")
    assert find_sets(tmp_path) == {"in1k-val": tmp_path}


@given(st.permutations(["a=b/c", "/x/y=z", "in1k-a=/d=e"]))
def test_data_as_typed(texts: list[str]) -> None:
    """A path may hold an equals sign; a set's name may not hold a slash."""
    with pytest.raises(UsageError, match="no set is called 'a'"):
        parse_data(texts)
    assert parse_data([t for t in texts if t != "a=b/c"]) == ("/x/y=z", {"in1k-a": "/d=e"})


def test_a_set_without_an_image_to_score(model: Path, tmp_path: Path) -> None:
    """Found out before the first forward pass."""
    with pytest.raises(DataError, match="no image here is of the benchmark's classes"):
        score(model, "in1k-a-clean", make_val(tmp_path / "val"), out=tmp_path / "out")


def test_json_of_a_card(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_val(tmp_path / "data" / "val")
    command = ["eval", str(model), "robustness", "--data", str(tmp_path / "data"), "--partial"]
    assert zoo([*command, "--out", str(tmp_path / "out"), "--json"]) == Exit.DONE
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["results"]) == 3
    assert len(printed["missing"]) == 6
