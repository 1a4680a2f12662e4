"""The page of a model: front matter that the Hub's client reads, and the facts of the record."""

from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from zoo.card import Card, Score, TeacherRecord
from zoo.page import Publication, readme

CARD = Card(
    name="tinymim-vit-s",
    method="tinymim",
    heads=6,
    last_trained_block=11,
    fresh_parameters=["blocks.11.norm2.weight"],
    teacher=TeacherRecord(
        name="mae-vit-b", digest="ab" * 32, block=12, license="cc-by-nc-4.0", relation_heads=12
    ),
    recipe={"name": "tinymim-vit-s", "data.source": "folder:train"},
    steps=93_600,
    licenses={"code": "Apache-2.0", "weights": "CC-BY-NC 4.0", "teacher mae-vit-b": "cc-by-nc-4.0"},
)
SCORE = Score(
    protocol="knn@1",
    metric="top-1",
    value=61.2,
    standard_error=0.784,
    samples=3925,
    data="imagenette",
    data_fingerprint="ab" * 32,
    settings={"neighbours": 20, "pooling": "cls"},
)
DIVERSITY = replace(SCORE, protocol="diversity@1", metric="token diversity", value=0.41)
LAYOUT = {"architecture": "vit_small_patch16_224", "num_classes": 0}
PUBLISHED = Publication(
    repository="me/name",
    datasets=("ILSVRC/imagenet-1k",),
    base_model="timm/vit_base_patch16_224.mae",
    about="My own *words*.",
)


def page_of(card: Card = CARD, publication: Publication | None = None, **layout: Any) -> Any:
    text = readme(card, {**LAYOUT, **layout}, 21_665_664, publication)
    return ModelCard(text, ignore_metadata_errors=False)


def test_the_page_is_one_the_hub_reads() -> None:
    page = page_of()
    assert page.data.library_name == "timm"
    assert page.data.license == "cc-by-nc-4.0"
    assert page.data.pipeline_tag == "image-feature-extraction"
    assert {"timm", "tinymim", "self-supervised", "vit"} <= set(page.data.tags)
    for fact in (
        "21.7 M-parameter",
        "6 heads",
        "93,600 steps",
        "mae-vit-b, block 12, 12 relation heads",
        "`blocks.11.norm2.weight`",
        "Not measured.",
        "- weights: CC-BY-NC 4.0",
        "- teacher mae-vit-b: cc-by-nc-4.0",
        "local-dir:PATH",
        "- data: folder:train",
    ):
        assert fact in page.text
    assert page.data.eval_results is None


def test_a_published_page_says_where_it_is() -> None:
    page = page_of(publication=PUBLISHED)
    assert 'create_model("hf-hub:me/name", pretrained=True)' in page.text
    assert "My own *words*." in page.text
    assert page.data.datasets == ["ILSVRC/imagenet-1k"]
    assert page.data.base_model == "timm/vit_base_patch16_224.mae"


def test_a_licence_that_the_hub_does_not_list_is_linked() -> None:
    card = replace(CARD, licenses={"weights": "My Licence 2"})
    page = page_of(card, replace(PUBLISHED, license_file="LICENSE"))
    assert page.data.license == "other"
    assert (page.data.license_name, page.data.license_link) == ("my-licence-2", "LICENSE")


def test_a_classifier_is_said_to_be_one() -> None:
    assert page_of(num_classes=10).data.pipeline_tag == "image-classification"


def test_scores_stand_in_the_model_index_with_protocol_and_evidence() -> None:
    page = page_of(replace(CARD, scores=[SCORE, DIVERSITY]))
    name, results = model_index_to_eval_results(page.data.to_dict()["model-index"])
    assert name == "tinymim-vit-s"
    knn, diversity = results
    assert (knn.metric_type, knn.metric_value) == ("accuracy", 61.2)
    assert knn.metric_name == "knn@1 top-1 (neighbours 20, pooling cls)"
    assert (knn.dataset_name, knn.dataset_revision) == ("imagenette", "ab" * 32)
    assert knn.metric_args == {
        "standard_error": 0.784,
        "samples": 3925,
        "settings": {"neighbours": 20, "pooling": "cls"},
    }
    assert (diversity.metric_type, diversity.metric_value) == ("token_diversity", 0.41)
    assert page.data.metrics == ["accuracy", "token_diversity"]
    assert (
        "| knn@1 (neighbours 20, pooling cls) | imagenette | top-1 | 61.20 ± 0.78 | 3,925 |"
        in page.text
    )


@pytest.mark.parametrize("name", ["é", "a: b", "- x", "# y", '"q"', "{{x}}", "yes", "null", "1.0"])
def test_odd_words_do_not_break_the_front_matter(name: str) -> None:
    card = replace(CARD, name=name, scores=[replace(SCORE, data=name, settings={name: name})])
    page = page_of(card, replace(PUBLISHED, about=f"{name}\n---\n{name}"))
    assert page.data.model_name == name
    assert page.data.eval_results[0].dataset_name == name
    assert name in page.text
