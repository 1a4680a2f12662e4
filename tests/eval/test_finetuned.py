"""in1k-finetune scores a recipe too: the card must say that there was one, and that it ended."""

import dataclasses
from pathlib import Path

import pytest
from classifiers import make_val

from eval.classes import synsets
from eval.run import Options, evaluate
from zoo.card import BaseRecord, Card, Score
from zoo.errors import DataError
from zoo.folder import save_model
from zoo.vit import ViTConfig, build_vit, empty_vit

CONFIG = ViTConfig(width=24, depth=1, heads=3, patch=8, image_size=16)
BASE = BaseRecord(name="org/mae-vit-b", digest="0" * 64, license="mit", method="mae")
LAST = Score(
    protocol="finetune-val@1",
    metric="top-1",
    value=1.0,
    standard_error=0.1,
    samples=30,
    data="val",
    data_fingerprint="f",
    settings={"epoch": 100, "chosen": "last"},
)
CARD = Card(
    name="finetune-in1k-vit-b",
    method="finetune",
    heads=3,
    last_trained_block=1,
    base=BASE,
    steps=500,
    data_fingerprint="t",
    scores=[LAST],
)


def score(folder: Path, card: Card) -> dict:
    weights = {
        **{n: t for n, t in build_vit(CONFIG, seed=0).state_dict().items() if "norm." not in n[:6]},
        **{
            name: tensor.new_zeros(tensor.shape, device="cpu")
            for name, tensor in empty_vit(CONFIG, 1000).state_dict().items()
            if name.startswith(("fc_norm", "head"))
        },
    }
    save_model(folder / "net", CONFIG, weights, card, labels=synsets())
    options = Options(partial=True, workers=0, out=folder / "out")
    val = str(make_val(folder / "val"))
    (result,) = evaluate([str(folder / "net")], "in1k-finetune", [val], options).results
    return result.as_dict()


def test_the_result_says_what_was_fine_tuned_and_how_long(tmp_path: Path) -> None:
    result = score(tmp_path, CARD)
    assert result["protocol"] == "in1k-finetune@1"
    assert result["settings"] == {
        "base": BASE.name,
        "base_digest": BASE.digest,
        "steps": 500,
        "training_images": "t",
        "recipe": CARD.name,
    }
    assert result["details"]["published_as"] == "mae-vit-b"


BEST = dataclasses.replace(LAST, settings={"epoch": 60, "chosen": "best"})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"base": None}, "does not say that a pre-trained model"),
        ({"method": "mae"}, "does not say that a pre-trained model"),
        ({"scores": [BEST]}, "weights of the best epoch"),
    ],
)
def test_another_card_is_refused(changes: dict, text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=text) as refused:
        score(tmp_path, dataclasses.replace(CARD, **changes))
    assert "in1k-val scores any classifier" in refused.value.fix
