"""Models scored on sets of images: as timm scores them, in one pass, whatever the ranks."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from classifiers import SHARD, make_classifier, make_val, rows, small_shards
from evalsets import picture, write_tree
from faults import assert_error
from PIL import Image
from runs import run, zoo
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from eval import classify
from eval.classes import synsets
from eval.classify import logits_of
from eval.crops import crops_of
from eval.layouts import open_eval_set
from eval.predictions import load_predictions
from eval.results import Result
from eval.run import Evaluation, Options, evaluate
from pretrain.index import open_index
from pretrain.split import make_split, write_split
from zoo.errors import DataError, Exit, IntegrityError, PreemptedError, UsageError
from zoo.folder import Classifier, load_classifier
from zoo.images import decode


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return make_val(tmp_path / "val")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_classifier(tmp_path / "net")


def score(models: list[Path], data: Path, out: Path, benchmark: str = "in1k-val") -> Evaluation:
    options = Options(partial=True, workers=0, out=out, batch=4)
    return evaluate([str(m) for m in models], benchmark, [str(data)], options)


def test_the_same_weights_through_timm_give_the_same(model: Path, photos: Path) -> None:
    """Its own transform, on Pillow's images, and its own network."""
    theirs = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(theirs), is_training=False)
    ours = load_classifier(model)
    images = open_eval_set(photos, "own")
    numbers = np.arange(len(images))
    (crops,) = next(crops_of(images, [numbers], [ours.preprocess], workers=0))
    want = torch.stack([transform(Image.fromarray(images.read(i))) for i in numbers.tolist()])  # type: ignore[operator]
    ours_normal = ours.preprocess.normalise(crops)
    levels = (ours_normal - want).abs() * torch.tensor(ours.preprocess.std)[:, None, None] * 255
    assert levels.max() < 2.01
    with torch.no_grad():
        assert torch.equal(logits_of(ours, want, "float32"), theirs(want))
        near = (logits_of(ours, ours_normal, "float32") - theirs(want)).abs().max()
    assert near < 0.05


def test_a_result_says_what_it_is_of(model: Path, val: Path, tmp_path: Path) -> None:
    found = score([model], val, tmp_path / "out")
    (result,) = found.results
    assert (result.protocol, result.metric, result.samples) == ("in1k-val@1", "top-1", 30)
    assert not result.complete
    assert result.data == "in1k-val (partial: 30 of 50,000 images, 3 of 1,000 classes)"
    assert result.model_digest == load_classifier(model).digest
    assert result.transform["image_size"] == 16
    assert {"top-1", "top-5", "rms-calibration", "aurra", "per_class"} <= result.details.keys()
    saved = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")]
    assert [Result(**record).line() for record in saved] == [result.line()]
    assert json.loads(json.dumps(found.as_dict())) == saved[0]
    assert "30 of 50,000 images" in found.text()
    guesses = load_predictions(tmp_path / "out" / result.predictions)
    assert len(guesses) == 30
    assert 100 * guesses.correct1.float().mean() == pytest.approx(result.value)
    assert not list((tmp_path / "out").glob(".partial/*"))


def test_the_score_is_that_of_the_folders(model: Path, tmp_path: Path) -> None:
    """Nine images lie in the folder of what the network takes them for, three in another."""
    ours, taken = load_classifier(model), {}
    for seed in range(12):
        pixels = decode(picture(seed), "here")
        inputs = ours.preprocess.normalise(ours.preprocess.eval_crop(pixels)[None])
        taken[seed] = int(logits_of(ours, inputs, "float32").argmax())
    files = {}
    for seed, number in taken.items():
        label = number if seed < 9 else (number + 1) % 1000
        files[f"{synsets()[label]}/{seed}.jpg"] = picture(seed)
    (result,) = score([model], write_tree(tmp_path / "val", files), tmp_path / "out").results
    assert result.value == 75.0
    guesses = load_predictions(tmp_path / "out" / result.predictions)
    images = open_eval_set(tmp_path / "val", "in1k-val", partial=True)
    seeds = [int(Path(images.where(i)).stem) for i in range(12)]
    assert guesses.top5[:, 0].tolist() == [taken[seed] for seed in seeds]
    assert guesses.correct1.tolist() == [seed < 9 for seed in seeds]


def test_one_model_under_two_names(model: Path, val: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    with pytest.raises(UsageError, match="the same network with the same weights"):
        score([model, tmp_path / "copy"], val, tmp_path / "out")


def test_several_models_at_once_are_as_one_by_one(val: Path, tmp_path: Path) -> None:
    """Two of them see the images alike, the third by a transform of its own."""
    models = [make_classifier(tmp_path / f"net{i}", seed=i) for i in range(2)]
    models.append(make_classifier(tmp_path / "net2", seed=2, img_size=24))
    together = score(models, val, tmp_path / "together")
    assert [r.model for r in together.results] == ["net0", "net1", "net2"]
    for one in models:
        score([one], val, tmp_path / "apart")
    assert rows(tmp_path / "together") == rows(tmp_path / "apart")


def test_two_ranks_score_as_one(model: Path, val: Path, tmp_path: Path) -> None:
    next(val.rglob("*.JPEG")).unlink()  # 29 images: no two ranks share them evenly
    command = ["eval", str(model), "in1k-val", "--data", str(val), "--partial", "--workers", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run([*command, "--out", str(one)], prepare=small_shards) == [0]
    assert run([*command, "--out", str(two)], ranks=2, prepare=small_shards) == [0, 0]
    assert rows(one) == rows(two)
    (record,) = (json.loads(file.read_text()) for file in two.glob("*.json"))
    assert (record["samples"], record["ranks"]) == (29, 2)


def test_an_interrupted_evaluation_continues(
    model: Path, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards_here(monkeypatch)
    score([model], val, tmp_path / "whole")
    count_images(monkeypatch, stop_after=2 * SHARD)
    with pytest.raises(PreemptedError, match="finished stretches of 7 images are kept") as stopped:
        score([model], val, tmp_path / "out")
    assert stopped.value.code == Exit.PREEMPTED
    assert len(list((tmp_path / "out" / ".partial").rglob("*.safetensors"))) == 2
    monkeypatch.undo()
    small_shards_here(monkeypatch)
    calls = count_images(monkeypatch)
    score([model], val, tmp_path / "out")
    assert sum(calls) == 30 - 2 * SHARD
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_shard_is_scored_again(
    damage: str, model: Path, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards_here(monkeypatch)
    score([model], val, tmp_path / "whole")
    count_images(monkeypatch, stop_after=2 * SHARD)
    with pytest.raises(PreemptedError):
        score([model], val, tmp_path / "out")
    shard = min((tmp_path / "out" / ".partial").rglob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes({"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])
    monkeypatch.undo()
    small_shards_here(monkeypatch)
    calls = count_images(monkeypatch)
    score([model], val, tmp_path / "out")
    assert sum(calls) == 30 - SHARD
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def small_shards_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "SHARD", SHARD)


def count_images(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """How many images go through a network, batch by batch.

    stop_after: a signal comes as the image after these goes through.
    """
    calls: list[int] = []

    def counted(model: Classifier, inputs: torch.Tensor, dtype: str) -> torch.Tensor:
        calls.append(len(inputs))
        if stop_after is not None and sum(calls) > stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return logits_of(model, inputs, dtype)

    monkeypatch.setattr(classify, "logits_of", counted)
    return calls


def test_images_that_cannot_be_read_stop_it_with_the_list(
    model: Path, val: Path, tmp_path: Path
) -> None:
    bad = sorted(val.rglob("*.JPEG"))[3:20:8]
    for file in bad:
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match="3 of 30 images cannot be read") as stopped:
        score([model], val, tmp_path / "out")
    assert_error(stopped.value, 3, what="3 of 30", where=str(bad[0]), fix="repair them")
    assert all(str(file) in stopped.value.where for file in bad)
    assert not list((tmp_path / "out").glob("*.json"))


def test_logits_that_are_no_numbers(val: Path, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "huge")
    weights = load_file(folder / "model.safetensors")
    weights["head.weight"].fill_(3e38)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match="not finite") as stopped:
        score([folder], val, tmp_path / "out")
    assert "ILSVRC2012_val_" in stopped.value.where


@pytest.mark.parametrize(
    ("classes", "text"),
    [(200, "the head has 200 classes"), (21_843, "21,843"), (0, "no classification head")],
)
def test_a_head_of_another_size_is_refused_before_any_image_is_read(
    classes: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_classifier(tmp_path / "net", classes=classes)
    command = ["eval", str(folder), "in1k-val", "--data", str(tmp_path / "nowhere")]
    assert zoo(command) == Exit.DATA
    said = capsys.readouterr().err
    assert text in said
    assert "zoo finetune" in said


def test_a_head_whose_classes_are_in_another_order_is_refused(val: Path, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "net")
    config = json.loads((folder / "config.json").read_text())
    permuted = {**config, "label_names": [*synsets()[1:], synsets()[0]]}
    (folder / "config.json").write_text(json.dumps(permuted))
    with pytest.raises(DataError, match="not in its order"):
        score([folder], val, tmp_path / "out")
    (folder / "config.json").write_text(json.dumps({**config, "label_names": list(synsets())}))
    assert score([folder], val, tmp_path / "out").results


def test_an_incomplete_set_is_not_called_by_its_name(model: Path, val: Path) -> None:
    with pytest.raises(DataError, match="3 of the 1,000 classes have images") as refused:
        evaluate([str(model)], "in1k-val", [str(val)], Options(workers=0))
    assert "partial" in refused.value.fix


def test_own_classes_are_found_by_name(photos: Path, tmp_path: Path) -> None:
    """The head's classes stand in another order than the folders, and it knows one more."""
    folders = sorted(path.name for path in photos.iterdir() if path.is_dir())
    model = make_classifier(tmp_path / "net", classes=4)
    config = json.loads((model / "config.json").read_text())
    config["label_names"] = [folders[2], "zebra", folders[0], folders[1]]
    (model / "config.json").write_text(json.dumps(config))
    (result,) = score([model], photos, tmp_path / "out", "own").results
    assert (result.protocol, result.data, result.samples) == ("own@1", photos.name, 36)
    assert set(result.details["per_class"]) == set(folders)
    guesses = load_predictions(tmp_path / "out" / result.predictions)
    assert guesses.labels[:, 0].tolist() == [2] * 12 + [3] * 12 + [0] * 12
    config["label_names"][0] = "giraffe"
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=f"no class for: {folders[2]}"):
        score([model], photos, tmp_path / "out", "own")


def test_class_folders_below_a_folder_of_their_own(photos: Path, tmp_path: Path) -> None:
    """Training images lay in ``animals/ant``, and so the class is called."""
    shutil.copytree(photos, tmp_path / "data" / "animals")
    model = make_classifier(tmp_path / "net", classes=3)
    config = json.loads((model / "config.json").read_text())
    folders = sorted(path.name for path in photos.iterdir() if path.is_dir())
    config["label_names"] = [f"animals/{name}" for name in folders]
    (model / "config.json").write_text(json.dumps(config))
    (result,) = score([model], tmp_path / "data", tmp_path / "out", "own").results
    assert (result.samples, result.data) == (36, "animals")
    (tmp_path / "data" / "animals").rename(tmp_path / "data" / "val")
    (result,) = score([model], tmp_path / "data", tmp_path / "out", "own").results
    assert result.data == "data val"


def test_training_images_are_no_validation_images(photos: Path, tmp_path: Path) -> None:
    """Where some were set aside by a list, that list names them."""
    model = make_classifier(tmp_path / "net", classes=3)
    shutil.copytree(photos, tmp_path / "data" / "train")
    with pytest.raises(DataError, match=r"a train/ folder and no val/") as refused:
        score([model], tmp_path / "data", tmp_path / "out", "own")
    assert "split.json#val" in refused.value.fix
    split = make_split(open_index(photos), share=0.25, seed=0)
    write_split(split, tmp_path / "split.json")
    place = Path(f"split:{tmp_path / 'split.json'}#val")
    (result,) = score([model], place, tmp_path / "out", "own").results
    assert result.samples == len(split.val) == 9


def test_own_classes_of_a_head_without_names(photos: Path, tmp_path: Path) -> None:
    fits = make_classifier(tmp_path / "fits", classes=3)
    assert score([fits], photos, tmp_path / "out", "own").results[0].samples == 36
    other = make_classifier(tmp_path / "other", classes=5)
    with pytest.raises(DataError, match="3 class folders for a head of 5 classes"):
        score([other], photos, tmp_path / "out", "own")


def test_half_precision_ends_before_the_head(model: Path, val: Path, tmp_path: Path) -> None:
    options = Options(partial=True, workers=0, out=tmp_path, dtype="bfloat16")
    (result,) = evaluate([str(model)], "in1k-val", [str(val)], options).results
    assert result.dtype == "bfloat16"
    inputs = torch.randn(3, 3, 16, 16)
    classifier = load_classifier(model)
    half, full = (logits_of(classifier, inputs, kind) for kind in ("bfloat16", "float32"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.allclose(half, full, atol=0.1)


def test_the_same_evaluation_twice_at_once_is_refused(
    model: Path, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.shards.LOCK_SECONDS", 0.1)
    within: list[UsageError] = []

    def again(model_: Classifier, inputs: torch.Tensor, dtype: str) -> torch.Tensor:
        if not within:
            with pytest.raises(UsageError, match="another process") as refused:
                score([model], val, tmp_path / "out")
            within.append(refused.value)
        return logits_of(model_, inputs, dtype)

    monkeypatch.setattr(classify, "logits_of", again)
    assert score([model], val, tmp_path / "out").results
    assert within


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["NET", "NET", "in1k-val", "--data", "."], "named twice"),
        (["in1k-val", "--data", "."], "which model, or which benchmark?"),
        (["NET", "in1k-x", "--data", "."], "no benchmark is called 'in1k-x'"),
        (["NET", "in1k-vall", "--data", "."], "no benchmark is called 'in1k-vall': in1k-val?"),
        (["NET", "in1k-val", "--data", ".", "--dtype", "int4"], "no precision"),
        (["NET", "in1k-val", "--data", "VAL", "--transform", "vgg"], "no transform"),
        (["NET", "in1k-val", "--data", "a", "--data", "b"], "two data folders"),
        (["NET", "in1k-val", "--data", "in1k-q=a"], "no set is called 'in1k-q'"),
        (["NET", "in1k-val", "--data", "in1k-a=a"], "needs the images of in1k-val"),
        (["NET", "in1k-val", "--data", "VAL", "--pooling", "mean"], "takes no --pooling"),
        (["NET", "in1k-val", "--data", "VAL", "--cache", "c"], "takes no --cache"),
        (["NET", "knn", "--data", "VAL", "--batch", "2"], "takes no --batch"),
    ],
)
def test_what_cannot_be_asked(
    words: list[str],
    text: str,
    model: Path,
    val: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"NET": str(model), "VAL": str(val)}
    command = [places.get(word, word) for word in words]
    assert zoo(["eval", *command, "--partial", "--out", str(tmp_path)]) == Exit.USAGE
    assert text in capsys.readouterr().err
