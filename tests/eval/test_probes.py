"""Probes through ``zoo eval``: several ranks, kills, two at once, and ImageNet's own rules."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from banks import small_pieces
from evalsets import THREE, plain_files, val_files, write_tar, write_tree
from models import make_convnet, make_model
from photos import make_photos
from runs import Run, run, zoo

from eval.classes import CLASSES, class_of
from eval.predictions import read_saved
from eval.probe import extract
from eval.probe_data import class_of_column, open_probe_data
from eval.probes import PROBES, evaluate_probe
from pretrain.index import open_index
from zoo.errors import DataError, Exit, UsageError
from zoo.folder import load_model

CPU = torch.device("cpu")
# What may differ between two evaluations of the same.
FREE = {"seconds", "ranks", "environment"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_photos(root / "train", per_class=15, seed=1)
    make_photos(root / "val", per_class=7, seed=2)
    return root


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training and 30 validation images, of the classes 0, 2 and 10."""
    root = tmp_path_factory.mktemp("imagenet")
    write_tree(root / "train", plain_files(THREE))
    write_tree(root / "val", val_files())
    return root


def words(model: Path, benchmark: str, data: Path, place: Path, *more: str) -> list[str]:
    places = ["--data", str(data), "--cache", str(place / "cache"), "--out", str(place / "out")]
    return ["eval", str(model), benchmark, *places, "--workers", "0", "--device", "cpu", *more]


def result(place: Path) -> dict[str, Any]:
    (file,) = (place / "out").glob("*.json")
    return json.loads(file.read_text())


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[key] == other[key] for key in one.keys() - FREE)


def shards(place: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in (place / "cache").rglob("features/*/[0-9]*.npy")}


def litter(place: Path) -> list[str]:
    return [str(path) for path in place.rglob(".tmp-*")]


def test_knn_is_a_plain_vote_over_all_similarities(model: Path, data: Path, tmp_path: Path) -> None:
    assert zoo(words(model, "knn", data, tmp_path, "--pooling", "mean")) == 0
    found = result(tmp_path)
    loaded = load_model(model)
    train, val = open_index(data / "train"), open_index(data / "val")
    bank, queries = (
        torch.nn.functional.normalize(
            extract(loaded, index, pooling="mean", device=CPU, workers=0).double(), dim=1
        ).numpy()
        for index in (train, val)
    )
    assert train.labels is not None
    assert val.labels is not None
    for k in (10, 20):
        order = np.argsort(-(queries @ bank.T), axis=1, kind="stable")[:, :k]
        votes = np.zeros((len(val), 3))
        for q, near in enumerate(order):
            np.add.at(votes[q], train.labels[near], np.exp(bank[near] @ queries[q] / 0.07))
        top1 = 100 * float((votes.argmax(1) == val.labels).mean())
        assert found["details"]["top-1 by neighbours"][str(k)] == pytest.approx(top1)
    assert found["value"] == found["details"]["top-1 by neighbours"]["20"]
    saved = read_saved(next(tmp_path.rglob(found["predictions"])))
    assert saved.predictions.top5[:, 0].tolist() == votes.argmax(1).tolist()
    share = votes.max(1) / votes.sum(1)
    assert saved.predictions.confidence.tolist() == pytest.approx(share.tolist(), rel=1e-4)
    assert saved.names == tuple(str(val.path(i).relative_to(val.root)) for i in range(len(val)))
    assert saved.header.classes == tuple(val.classes)
    # 100 and 200 are more than there are.
    assert found["details"]["top-1 by neighbours"].keys() == {"10", "20"}
    assert found["settings"] == {"neighbours": 20, "temperature": 0.07, "pooling": "mean"}


@pytest.mark.parametrize("benchmark", ["knn", "linear-sweep"])
def test_ranks_change_no_sample(model: Path, data: Path, tmp_path: Path, benchmark: str) -> None:
    """45 and 21 images in shards of 8: neither divides by 2 or 3."""
    for ranks in (1, 2, 3):
        command = words(model, benchmark, data, tmp_path / str(ranks))
        assert set(run(command, ranks=ranks, prepare=small_pieces(8))) == {0}
    found = [result(tmp_path / str(ranks)) for ranks in (1, 2, 3)]
    assert [f["ranks"] for f in found] == [1, 2, 3]
    assert [f["samples"] for f in found] == [21, 21, 21]
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    if benchmark == "knn":
        rows = [next((tmp_path / str(r)).rglob("*.parquet")).read_bytes() for r in (1, 2, 3)]
        assert rows[0] == rows[1] == rows[2]
    kept = [shards(tmp_path / str(ranks)) for ranks in (1, 2, 3)]
    assert len(kept[0]) == 6 + 3
    assert kept[0] == kept[1] == kept[2]


def test_a_killed_extraction_continues_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_photos(data / "train", per_class=40, seed=1)
    make_photos(data / "val", per_class=4, seed=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(words(model, "knn", data, whole), prepare=small_pieces(4)) == [0]
    expected = shards(whole)
    assert len(expected) == 30 + 3
    kills, before = 0, 0
    times: dict[Path, int] = {}
    while kills < 3:
        started = Run(words(model, "knn", data, killed), prepare=small_pieces(4))
        while started.running and len(shards(killed)) <= before:
            time.sleep(0.001)
        started.kill()
        kept = shards(killed)
        if len(kept) == len(expected):
            break
        assert before < len(kept)  # what was there is not made again, and more has come
        kills, before = kills + 1, len(kept)
        times = {path: path.stat().st_mtime_ns for path in killed.rglob("[0-9]*.npy")}
    assert kills
    assert run(words(model, "knn", data, killed), prepare=small_pieces(4)) == [0]
    assert shards(killed) == expected
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert same(result(killed), result(whole))


def test_two_at_once_share_one_cache(model: Path, data: Path, tmp_path: Path) -> None:
    command = words(model, "knn", data, tmp_path)
    started = [Run(command, prepare=small_pieces(4)) for _ in range(2)]
    assert [each.wait() for each in started] == [[0], [0]]
    assert len(shards(tmp_path)) == 12 + 6
    assert not litter(tmp_path)
    assert run(words(model, "knn", data, tmp_path / "alone"), prepare=small_pieces(4)) == [0]
    assert shards(tmp_path / "alone") == shards(tmp_path)
    assert same(result(tmp_path / "alone"), result(tmp_path))


def test_a_linear_probe_stopped_by_a_signal_continues_to_the_same_head(
    model: Path, data: Path, tmp_path: Path
) -> None:
    assert run(words(model, "linear", data, tmp_path / "whole")) == [0]
    command = words(model, "linear", data, tmp_path / "stopped")
    started = Run(command)
    while started.running and not list((tmp_path / "stopped").rglob("log.jsonl")):
        time.sleep(0.01)
    started.terminate()
    assert started.wait() in ([Exit.PREEMPTED], [Exit.DONE])
    assert run(command) == [0]
    heads = [next((tmp_path / part).rglob("head.safetensors")) for part in ("whole", "stopped")]
    assert heads[0].read_bytes() == heads[1].read_bytes()
    assert same(result(tmp_path / "whole"), result(tmp_path / "stopped"))
    found = result(tmp_path / "whole")
    expected = {"pooling": "cls", "epochs": 90, "batch": 32, "norm_batch": 32, "lr": 6.4}
    assert found["settings"] == expected
    assert found["value"] > 50  # each class leans to a colour of its own


def test_a_linear_probe_over_ranks(model: Path, data: Path, tmp_path: Path) -> None:
    assert run(words(model, "linear", data, tmp_path), ranks=2) == [0, 0]
    found = result(tmp_path)
    assert (found["ranks"], found["settings"]["norm_batch"]) == (2, 16)
    assert found["value"] > 50


def test_the_sweep_reports_what_it_chose_without_the_validation_images(
    model: Path, data: Path, tmp_path: Path
) -> None:
    assert zoo(words(model, "linear-sweep", data, tmp_path)) == 0
    found = result(tmp_path)
    assert len(found["details"]["heads"]) == 39
    chosen = found["details"]["chosen on held-out training images"]
    flattered = found["details"]["chosen on the validation images, as papers do"]
    assert found["value"] == pytest.approx(chosen["val top-1"])
    assert flattered["val top-1"] >= chosen["val top-1"]
    assert chosen["held-out top-1"] >= flattered["held-out top-1"]


@pytest.mark.parametrize("benchmark", ["knn", "linear-sweep"])
def test_a_convnet_has_no_class_token(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], benchmark: str
) -> None:
    convnet = make_convnet(tmp_path / "convnet")
    if benchmark == "knn":
        assert zoo(words(convnet, benchmark, data, tmp_path)) == Exit.USAGE
        assert "--pooling mean" in capsys.readouterr().err
        assert zoo(words(convnet, benchmark, data, tmp_path, "--pooling", "mean")) == 0
    else:  # it tries all that there are
        assert zoo(words(convnet, benchmark, data, tmp_path)) == 0
        assert len(result(tmp_path)["details"]["heads"]) == 13


def test_half_precision_is_another_result(model: Path, data: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        assert zoo(words(model, "knn", data, tmp_path, "--dtype", dtype)) == 0
    found = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    assert {f["dtype"] for f in found} == {"float32", "bfloat16"}
    assert zoo(words(model, "knn", data, tmp_path, "--dtype", "int8")) == Exit.USAGE


@pytest.mark.parametrize("benchmark", [name for name in PROBES if name.startswith("in1k")])
def test_imagenet_must_be_whole_or_is_labelled(
    model: Path, imagenet: Path, tmp_path: Path, benchmark: str
) -> None:
    arguments: dict[str, Any] = {"workers": 0, "device": "cpu", "cache": tmp_path}
    with pytest.raises(DataError, match="have images"):
        evaluate_probe(str(model), benchmark, imagenet, **arguments)
    found = evaluate_probe(str(model), benchmark, imagenet, partial=True, **arguments)
    assert not found.complete
    assert found.data.startswith("ImageNet-1k: in1k-train (partial")
    assert "in1k-val (partial" in found.data
    assert (found.protocol, found.samples) == (f"{benchmark}@1", 30)


def test_labels_are_imagenets_whatever_part_of_it_is_there(imagenet: Path) -> None:
    data = open_probe_data(imagenet, imagenet=True, partial=True)
    assert data.classes == CLASSES
    assert class_of_column(data.train).tolist() == [class_of()[name] for name in THREE]
    assert set(data.train.labels) == set(data.val.labels) == {0, 2, 10}
    assert data.train_index().fingerprint == data.train.fingerprint


def test_training_images_with_validation_names_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", val_files())
    write_tree(tmp_path / "val", val_files())
    with pytest.raises(DataError, match="ImageNet's own validation images, not in1k-train"):
        open_probe_data(tmp_path, imagenet=True, partial=True)


def test_the_same_images_are_no_test(data: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).symlink_to(data / "train")
    with pytest.raises(DataError, match="the same files"):
        open_probe_data(tmp_path, imagenet=False, partial=False)


def test_archives_serve_all_but_the_linear_probe(model: Path, tmp_path: Path) -> None:
    files = plain_files(("ant", "bee"), count=15)
    write_tar(tmp_path / "train" / "all.tar", files, sort=True)
    write_tree(tmp_path / "val", plain_files(("ant", "bee"), count=3, form="v{}.jpg"))
    assert zoo(words(model, "knn", tmp_path, tmp_path / "place")) == 0
    with pytest.raises(UsageError, match="class folders"):
        evaluate_probe(
            str(model), "linear", tmp_path, workers=0, device="cpu", cache=tmp_path / "place"
        )
