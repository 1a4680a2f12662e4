"""Model folders of fine-tuned ViTs: named classes, the same logits everywhere, their lineage."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from models import (
    CONVNET,
    LABELS,
    TEACHER,
    classifier_weights,
    make_classifier,
    make_model,
    make_timm,
)
from ownhub import OwnHub
from PIL import Image
from pushes import FAST
from timm.data.dataset_info import CustomDatasetInfo
from torch import Tensor

import zoo
from pretrain.teachers.tokens import open_tokens
from zoo.card import BaseRecord, Card, TeacherRecord, read_card
from zoo.classes import LONGEST_NAME, Classes, name_classes, read_classes
from zoo.errors import IntegrityError, UsageError
from zoo.folder import count_classes, load_any_vit, load_classifier, load_model, save_model
from zoo.graph import describe, read
from zoo.hub import pull_model
from zoo.package import packed
from zoo.push import push
from zoo.terms import Terms
from zoo.verify import verify_folder
from zoo.vit import Tap, taps

NAME = "me/insects"
CARD = Card(name="x", method="finetune", heads=6, last_trained_block=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_classifier(tmp_path / "insects", descriptions=("small", "", "tall"))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits(net: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net.eval()(images)


def test_timm_gives_the_folders_logits_and_names(folder: Path, images: Tensor) -> None:
    model = load_classifier(folder)
    assert (model.labels, model.classes, count_classes(folder)) == (LABELS, 3, 3)
    theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert theirs.pretrained_cfg["label_names"] == list(LABELS)
    assert theirs.pretrained_cfg["label_descriptions"]["cow's parsley"] == "tall"
    assert theirs.pretrained_cfg["num_classes"] == theirs.num_classes == 3
    assert theirs.pretrained_cfg["classifier"] == "head"
    assert torch.equal(logits(theirs, images), logits(model.net, images))
    info = CustomDatasetInfo(
        theirs.pretrained_cfg["label_names"], theirs.pretrained_cfg["label_descriptions"]
    )
    assert info.index_to_description(2) == "tall"
    fresh: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert torch.equal(fresh.fc_norm.weight, theirs.fc_norm.weight)
    assert fresh.head.weight.shape == (7, TEACHER.width)


def test_the_logits_are_maes_fine_tuning_head(folder: Path, images: Tensor) -> None:
    """Mean of the patch tokens, a norm, a linear layer: from the published description."""
    weights = classifier_weights(3)
    last = Tap(TEACHER.depth, "block")
    with torch.no_grad():
        pooled = taps(load_model(folder).vit, images, [last])[last][:, 1:].mean(1)
        normed = torch.nn.functional.layer_norm(
            pooled, (TEACHER.width,), weights["fc_norm.weight"], weights["fc_norm.bias"], 1e-6
        )
        expected = normed @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(logits(load_classifier(folder).net, images), expected)


def test_features_are_the_tokens_before_the_heads_norm(folder: Path, images: Tensor) -> None:
    model = load_model(folder)
    last = Tap(TEACHER.depth, "block")
    with torch.no_grad():
        tokens = taps(model.vit, images, [last])[last]
        assert torch.equal(zoo.features(folder, images, pooling="tokens"), tokens)
        assert torch.equal(zoo.features(folder, images), tokens[:, 1:].mean(1))
        assert torch.equal(zoo.features(folder, images, pooling="cls"), tokens[:, 0])
        theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        torch.testing.assert_close(theirs.forward_features(images), tokens)
        # The network alone says the same as zoo.features of it.
        torch.testing.assert_close(zoo.load(folder)(images), tokens[:, 1:].mean(1))


@pytest.mark.parametrize("own", [{"reg_tokens": 2}, {"class_token": False}])
def test_timms_own_classifiers_are_read_before_the_heads_norm_too(
    own: dict, tmp_path: Path, images: Tensor
) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    arguments = {"num_classes": 5, "global_pool": "avg", **sizes, **own}
    folder = make_timm(tmp_path / "net", "vit_tiny_patch16_224", **arguments)
    theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    prefix = theirs.num_prefix_tokens
    with torch.no_grad():
        tokens = theirs.forward_features(images)[:, prefix:]
        pooled = load_any_vit(folder).net(images)
        assert torch.equal(pooled, tokens.mean(1))
        teacher = open_tokens(str(folder))
        inputs01 = torch.rand(2, 3, 32, 32)
        inputs = teacher.preprocess.normalise(inputs01)
        torch.testing.assert_close(teacher(inputs01), theirs.forward_features(inputs)[:, prefix:])


def test_a_fine_tuned_folder_is_a_folder_like_any_other(folder: Path, images: Tensor) -> None:
    card = read_card(folder / "zoo.json")
    assert (card.classes, card.digest) == (3, load_model(folder).digest)
    assert set(verify_folder(folder).files) >= {"config.json", "model.safetensors", "README.md"}
    readable = read(str(folder))
    assert readable.outputs == ("logits",)
    assert json.loads(describe(readable)["labels"]) == list(LABELS)
    assert torch.equal(readable.net(images)[0], logits(load_classifier(folder).net, images))
    assert load_model(folder, image_size=48).vit.pos_embed.shape == (1, 37, 48)  # type: ignore[union-attr]


# Names


def test_folders_without_names(tmp_path: Path) -> None:
    config = make_classifier(tmp_path / "net") / "config.json"
    layout = json.loads(config.read_text())
    del layout["label_names"]
    (tmp_path / "net" / "zoo.json").unlink()
    config.write_text(json.dumps(layout))
    assert load_classifier(tmp_path / "net").labels == ()
    assert "label_names" not in json.loads((make_model(tmp_path / "m") / "config.json").read_text())


@pytest.mark.parametrize(
    "stated",
    [
        {"label_names": {"2": "c", "0": "a", "1": "b"}},  # timm's other form
        {"label_names": None, "pretrained_cfg": {"label_names": ["a", "b", "c"]}},
        {"label_names": None, "labels": ["a", "b", "c"]},
    ],
)
def test_every_form_in_which_timm_reads_names(folder: Path, stated: dict) -> None:
    assert relabelled(folder, **stated).labels == ("a", "b", "c")


def relabelled(folder: Path, **stated: Any) -> Any:
    config = folder / "config.json"
    (folder / "zoo.json").unlink(missing_ok=True)
    layout = json.loads(config.read_text())
    layout.pop("label_descriptions", None)
    layout["pretrained_cfg"] |= stated.pop("pretrained_cfg", {})
    layout |= stated
    config.write_text(json.dumps({k: v for k, v in layout.items() if v is not None}))
    return load_classifier(folder)


BAD: dict[str, Any] = {
    "one too many": ["a", "b", "c", "d"],
    "one missing": ["a", "b"],
    "twice": ["a", "b", "a"],
    "too long": ["a", "b", "c" * (LONGEST_NAME + 1)],
    "empty": ["a", "b", " "],
    "a line break": ["a", "b", "c\nd"],
    "an escape": ["a", "b", "\x1b[31m"],
    "a number": ["a", "b", 3],
    "one text": "abc",
    "gaps": {"0": "a", "1": "b", "3": "c"},
}


@pytest.mark.parametrize("names", BAD.values(), ids=BAD.keys())
def test_names_that_cannot_be_are_refused(folder: Path, names: Any) -> None:
    with pytest.raises(IntegrityError, match="not named as they must be") as caught:
        relabelled(folder, label_names=names)
    assert f"{folder / 'config.json'}: label_names" in caught.value.where


@pytest.mark.parametrize("described", [["small"], {"ant": 5}, {"ant": "a\nb"}, {"ant": "x" * 3000}])
def test_descriptions_that_cannot_be_are_refused(folder: Path, described: Any) -> None:
    with pytest.raises(IntegrityError, match="description"):
        relabelled(folder, label_descriptions=described)


@given(st.lists(st.one_of(st.text(max_size=5), st.integers(), st.none()), max_size=4))
def test_what_can_be_written_can_be_read_and_nothing_else(names: list[Any]) -> None:
    good = all(isinstance(n, str) and n.strip() and n.isprintable() for n in names)
    if good and len(set(names)) == len(names):
        written = name_classes(names)
        layout = json.loads(json.dumps(written.as_layout()))
        assert written.names == tuple(names)
        stated = layout.get("label_names", [])
        assert read_classes(stated, {}, len(names), Path("c")) == written
        return
    with pytest.raises(UsageError, match="cannot be named so"):
        name_classes(names)
    with pytest.raises(IntegrityError):
        read_classes(names, {}, len(names), Path("c"))


def test_one_description_to_a_class(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 descriptions of 3 classes"):
        make_classifier(tmp_path / "net", descriptions=("a", "b"))
    assert not (tmp_path / "net").exists()
    assert Classes(names=("a",)).as_layout() == {"label_names": ["a"]}


def test_weights_must_be_those_of_the_classifier(tmp_path: Path) -> None:
    weights = classifier_weights(3)
    with pytest.raises(IntegrityError, match="another shape") as caught:
        save_model(tmp_path / "net", TEACHER, weights, CARD, labels=["a", "b"])
    assert "head.weight" in caught.value.where
    plain = {k.replace("fc_norm", "norm"): tensor for k, tensor in weights.items()}
    with pytest.raises(IntegrityError, match="missing"):
        save_model(tmp_path / "net", TEACHER, plain, CARD, labels=LABELS)
    with pytest.raises(UsageError, match="only a ViT's"):
        save_model(tmp_path / "net", CONVNET, weights, CARD, labels=LABELS)
    assert not (tmp_path / "net").exists()


# Lineage


BASE = BaseRecord(
    name="org/mae-vit-s",
    digest="ab" * 32,
    license="cc-by-nc-4.0",
    method="tinymim",
    ancestors={"teacher mae-vit-b": "cc-by-nc-sa-4.0"},
)


def test_a_models_own_lineage_becomes_that_of_its_base(tmp_path: Path) -> None:
    teacher = TeacherRecord(name="big", digest="cd" * 32, block=2, license="cc-by-nc-4.0")
    card = replace(
        CARD,
        name="small",
        method="tinymim",
        teacher=teacher,
        licenses={"code": "mit", "weights": "mit", "teacher big": "cc-by-nc-4.0"},
    )
    weights = load_model(make_model(tmp_path / "m")).vit.state_dict()
    save_model(tmp_path / "small", TEACHER, weights, card)
    small = load_model(tmp_path / "small")
    base = small.as_base()
    assert base == BaseRecord(
        name="small",
        digest=small.digest,
        license="mit",
        method="tinymim",
        ancestors={"teacher big": "cc-by-nc-4.0"},
    )
    tuned = load_classifier(make_classifier(tmp_path / "tuned", base=base))
    assert tuned.card is not None
    assert tuned.card.base == base
    assert tuned.ancestors == {"small": "mit", "big": "cc-by-nc-4.0"}
    again = tuned.as_base()  # fine-tuned once more
    assert again.licenses == {"base tuned": "not stated", "base small": "mit", **base.ancestors}


def test_records_from_before_still_read(folder: Path) -> None:
    record = json.loads((folder / "zoo.json").read_text())
    for key in ("classes", "base"):
        del record[key]
    (folder / "zoo.json").write_text(json.dumps(record))
    card = read_card(folder / "zoo.json")
    assert (card.classes, card.base) == (None, None)


@pytest.mark.parametrize("license_", ["mit", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"])
def test_the_bases_licence_counts_as_an_ancestors(
    tmp_path: Path, settings: Path, license_: str
) -> None:
    """The base asks for no commerce, its own teacher for the same licence."""
    made = make_classifier(tmp_path / "net", base=BASE, licenses={"weights": "not stated"})
    terms = Terms(repository=NAME, license=license_)
    if license_ == "cc-by-nc-sa-4.0":
        with packed(str(made), terms) as package:
            assert package.license == license_
            assert "base_model: org/mae-vit-s" in package.page()
        return
    with pytest.raises(IntegrityError, match="stands against") as caught, packed(str(made), terms):
        pass
    assert "teacher mae-vit-b" in caught.value.where
    assert ("base org/mae-vit-s" in caught.value.where) == (license_ == "mit")


# Published


def test_pushed_and_pulled_it_gives_the_same_logits(
    hub: OwnHub, api: HfApi, folder: Path, images: Tensor
) -> None:
    expected = logits(load_classifier(folder).net, images)
    with packed(str(folder), Terms(repository=NAME, license="mit")) as package:
        push(package, patience=FAST)
    by_timm: Any = timm.create_model(f"hf-hub:{NAME}", pretrained=True)
    assert torch.equal(logits(by_timm, images), expected)
    assert by_timm.pretrained_cfg["label_names"] == list(LABELS)
    pulled = load_classifier(pull_model(NAME).folder)
    assert torch.equal(logits(pulled.net, images), expected)
    assert (pulled.labels, pulled.digest) == (LABELS, load_classifier(folder).digest)


def test_names_that_cannot_be_are_not_published(folder: Path, settings: Path) -> None:
    config = folder / "config.json"
    layout = json.loads(config.read_text()) | {"label_names": ["a", "b", "a"]}
    config.write_text(json.dumps(layout))
    card = read_card(folder / "zoo.json")
    files = {name: file for name, file in card.files.items() if name != "config.json"}
    (folder / "zoo.json").write_text(replace(card, files=files).to_json())
    with (
        pytest.raises(IntegrityError, match="'a' twice"),
        packed(str(folder), Terms(repository=NAME, license="mit")),
    ):
        pass


def test_the_page_shows_classes_and_a_snippet_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["*bold* <b>", "two_words", *(f"class {i:03}" for i in range(110))]
    folder = make_classifier(tmp_path / "net", labels, base=BASE)
    text = (folder / "README.md").read_text()
    page: Any = ModelCard(text, ignore_metadata_errors=False)
    assert page.data.pipeline_tag == "image-classification"
    assert {"finetune", "vit"} <= set(page.data.tags)
    assert "self-supervised" not in page.data.tags
    for line in (
        "a classifier of 112 classes, fine-tuned from org/mae-vit-s",
        "Fine-tuned from: org/mae-vit-s (digest `abababababab`), pre-trained with tinymim.",
        r"0. \*bold\* \<b\>",
        r"1. two\_words",
        "99. class 097",
        "… and 12 more: `label_names` in `config.json`.",
    ):
        assert line in page.text
    snippet = page.text.split("```python\n")[1].split("```")[0]
    assert "local-dir:PATH" in snippet
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace("local-dir:PATH", f"local-dir:{folder}"), {})
    lines = capsys.readouterr().out.splitlines()
    image = zoo.transform(folder)(tmp_path / "photo.jpg").unsqueeze(0)
    best = int(logits(load_classifier(folder).net, image).argmax())
    assert len(lines) == 5
    assert lines[0].endswith(labels[best])
