"""The nearest-neighbour probe: against a plain double loop, and through ``zoo eval``."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import make_photos

from eval.probe import KNN, accuracy, extract, knn_predict
from pretrain.index import open_index
from zoo.card import Card
from zoo.cli import main
from zoo.folder import load_model, save_model
from zoo.vit import ViTConfig, build_vit

TINY = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    card = Card(name="tiny", method="none", heads=3, last_trained_block=2)
    save_model(folder, TINY, build_vit(TINY, seed=3).state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_photos(root / "train", per_class=12, seed=1)
    make_photos(root / "val", per_class=5, seed=2)
    return root


def plain_knn(
    train: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int, knn: KNN
) -> list[int]:
    """The definition, one pair at a time, in double precision."""
    answers = []
    for query in queries:
        similarity = [
            float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)) for row in train
        ]
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[: knn.neighbours]
        votes = [0.0] * classes
        for i in nearest:
            votes[labels[i]] += math.exp(similarity[i] / knn.temperature)
        answers.append(int(np.argmax(votes)))
    return answers


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), neighbours=st.integers(1, 12), chunk=st.integers(1, 9))
def test_knn_is_its_definition(seed: int, neighbours: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    train, queries = rng.standard_normal((12, 5)), rng.standard_normal((8, 5))
    labels = rng.integers(0, 3, 12)
    knn = KNN(neighbours=neighbours)
    guesses = knn_predict(
        torch.from_numpy(train),
        torch.from_numpy(labels),
        torch.from_numpy(queries),
        classes=3,
        knn=knn,
        chunk=chunk,
    )
    assert guesses.tolist() == plain_knn(train, labels, queries, 3, knn)


def test_votes_do_not_overflow_in_half_precision() -> None:
    features = torch.ones(30, 4).half()
    labels = torch.tensor([0] * 10 + [1] * 20)
    guesses = knn_predict(features, labels, features[:2], classes=2, knn=KNN(neighbours=30))
    assert guesses.tolist() == [1, 1]


def test_accuracy_and_its_standard_error() -> None:
    value, error = accuracy(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 0]))
    assert value == 75
    assert error == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features_come_from_the_last_trained_block(model: Path, data: Path, pooling: str) -> None:
    loaded = load_model(model)
    index = open_index(data / "val")
    features = extract(loaded, index, pooling=pooling, device=torch.device("cpu"), workers=0)  # type: ignore[arg-type]
    with torch.no_grad():  # the last block, untrained, must not have touched them
        loaded.vit.get_parameter("blocks.2.mlp.fc2.weight").fill_(torch.nan)
    again = extract(loaded, index, pooling=pooling, device=torch.device("cpu"), workers=2, batch=4)  # type: ignore[arg-type]
    assert features.shape == (15, 24)
    assert torch.isfinite(features).all()
    assert torch.allclose(features, again, atol=1e-6)


def test_zoo_eval_writes_a_result(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "eval",
        str(model),
        "knn",
        "--data",
        str(data),
        "--out",
        str(tmp_path),
        "--workers",
        "0",
    ]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--json"])
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text()) == printed
    assert printed["protocol"] == "knn@1"
    assert printed["samples"] == 15
    assert printed["value"] > 60  # each class leans to a colour of its own
    assert printed["model_digest"] == load_model(model).digest
    assert printed["transform"]["image_size"] == 32


@pytest.mark.parametrize("damage", ["no val", "missing class", "flat", "truncated", "few"])
def test_bad_data_is_an_error_and_never_a_number(
    model: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    make_photos(data / "train", per_class=2 if damage == "few" else 8)
    if damage != "no val":
        make_photos(data / "val", per_class=3)
    if damage == "missing class":
        for file in (data / "val" / "bee").iterdir():
            file.unlink()
    elif damage == "flat":
        for split in ("train", "val"):
            for file in list((data / split).glob("*/*")):
                file.rename(data / split / f"{file.parent.name}{file.name}")
    elif damage == "truncated":
        bad = data / "val" / "bee" / "001.jpg"
        bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "eval",
                str(model),
                "knn",
                "--data",
                str(data),
                "--workers",
                "0",
                "--out",
                str(tmp_path / "r"),
            ]
        )
    said = capsys.readouterr()
    assert stop.value.code == (2 if damage == "few" else 3)
    assert not said.out
    assert not (tmp_path / "r").exists()
    if damage == "truncated":
        assert "bee/001.jpg" in said.err
    elif damage == "missing class":
        assert "bee" in said.err


def test_an_unknown_benchmark_names_the_known(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(model), "imagenet", "--data", "."])
    assert stop.value.code == 2
    assert "knn" in capsys.readouterr().err
