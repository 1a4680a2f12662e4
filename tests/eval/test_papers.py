"""Published figures: the file is sound, and each is compared with nothing but its own kind."""

import re
from typing import Any

import pytest
from resultfiles import result

from eval.benchmarks import newest
from eval.papers import (
    CATALOG_CELLS,
    Inputs,
    Published,
    error_of_difference,
    papers,
    parse_papers,
    published,
)
from eval.protocols import PROTOCOLS
from eval.segmentation.protocols import SEG_PROTOCOLS
from zoo.catalog import load_catalog
from zoo.entry import METRICS

DEIT = "deit_tiny_patch16_224.fb_in1k"
LIKE_TIMM = {"image_size": 224, "crop_pct": 0.9, "interpolation": "bicubic"}
GOOD = """
format = 1
[metrics]
val = ["in1k-val@1", "top-1"]
[[sources]]
title = "a paper"
date = 2026-01-02
transform = {image_size = 224}
[sources.models]
m = {val = 50}
"""


@pytest.fixture(autouse=True)
def _no_catalog_of_ones_own(settings: Any) -> None: ...


def values(metric: str = "top-1", **changes: Any) -> list[tuple[float, str]]:
    found = published(result(**changes), metric, load_catalog().models)
    return [(one.value, one.source) for one in found]


def test_the_file_speaks_of_protocols_and_metrics_that_there_are() -> None:
    table = papers()
    assert len(table.sources) >= 6
    for protocol, metric in table.metrics.values():
        assert metric in PROTOCOLS[protocol].metrics
        assert newest(protocol.partition("@")[0])
    count = sum(len(figures) for source in table.sources for figures in source.models.values())
    assert count >= 21 * 8


def test_the_reference_scores_are_as_published() -> None:
    timm = {name: row for s in papers().sources if s.title.startswith("timm")
            for name, row in s.models.items()}  # fmt: skip
    assert len(timm) == 21
    assert timm[DEIT] == {"val": 72.19, "val-top5": 91.1, "real": 80.026, "v2": 59.92,
                          "sketch": 20.14, "a-clean": 89.69, "a": 7.213, "r-clean": 89.64,
                          "r": 32.713}  # fmt: skip
    assert "a" not in timm["resnet50.tv_in1k"]


def test_every_metric_of_the_catalog_has_its_protocols_or_none() -> None:
    assert CATALOG_CELLS.keys() == METRICS.keys()
    known = {(p.id, metric) for p in PROTOCOLS.values() for metric in p.metrics}
    known |= {(p.id, p.metric) for p in SEG_PROTOCOLS.values()}
    probes = {"in1k-linear@1", "in1k-knn@1", "in1k-finetune@1"}
    cells = [cell for cells in CATALOG_CELLS.values() for cell in cells]
    assert [cell for cell in cells if cell not in known and cell[0] not in probes] == []


def test_a_catalog_model_has_its_papers_figures() -> None:
    assert values() == [(83.0, "TinyMIM Table 3")]
    assert values(protocol="in1k-a@1") == [(27.5, "TinyMIM Table 4")]
    assert values(protocol="in1k-real@1") == []
    assert values("top-5") == []
    assert values(model="somebody-elses") == []


def test_the_two_scales_of_imagenet_c_never_meet() -> None:
    like = {"model": "mae-vit-b", "protocol": "in1k-c@1"}
    assert values("mce-alexnet-normalised", **like) == [(51.7, "MAE paper, robustness")]
    assert values("mean-error-unnormalised", **like) == [(37.8, "TinyMIM Table 4")]
    like["model"] = "tinymim-vit-b"
    assert values("mce-alexnet-normalised", **like) == []
    assert values("mean-error-unnormalised", **like) == [(32.7, "TinyMIM Table 4")]
    found = published(result(**like), "mean-error-unnormalised", load_catalog().models)
    assert "inferred" in found[0].note


def test_another_linear_protocol_is_not_maes() -> None:
    assert values(model="mae-vit-b", protocol="in1k-linear@1") == [(67.8, "MAE repository")]
    assert values(model="dino-rn50", protocol="in1k-linear@1") == []
    assert values(model="mae-vit-b", protocol="in1k-linear-sweep@1") == []
    assert values(model="dino-rn50", protocol="in1k-knn@1") == [(67.5, "DINO repository")]


def test_models_are_known_by_their_repositories_and_by_what_their_cards_say() -> None:
    names = ["mae-vit-b", "timm/vit_base_patch16_224.mae", "vit_base_patch16_224.mae"]
    assert len({str(values(model=name, protocol="in1k-a@1")) for name in names}) == 1
    assert values(model="my-run", details={"published_as": "tinymim-vit-t"})[0][0] == 75.8
    assert values(model="tinymim-vit-s", details={"published_as": "other"}) == []
    assert values(model=f"timm/{DEIT}", transform=LIKE_TIMM)[0][0] == 72.19
    assert values(model=f"me/{DEIT}", transform=LIKE_TIMM) == []


def test_the_figure_with_the_same_crop_is_the_one_to_compare() -> None:
    theirs = [(72.19, "timm's result tables, 2025-10-30"), (72.2, "DeiT's repository, 2026-11-21")]
    assert values(model=DEIT, transform=LIKE_TIMM) == theirs
    assert values(model=DEIT, transform={**LIKE_TIMM, "crop_pct": 0.875}) == theirs[::-1]


@pytest.mark.parametrize(
    ("transform", "rank"),
    [
        (LIKE_TIMM, 0),
        ({**LIKE_TIMM, "crop_pct": 1.0}, 1),
        ({**LIKE_TIMM, "interpolation": "bilinear"}, 1),
        ({**LIKE_TIMM, "image_size": 384}, 2),
        ({}, 2),
    ],
)
def test_inputs_that_differ(transform: dict[str, Any], rank: int) -> None:
    inputs = Inputs(image_size=224, crop_pct=0.9, interpolation="bicubic")
    assert Published(value=1, source="", inputs=inputs).mismatch(transform) == rank
    anything = Published(value=1, source="", inputs=Inputs(image_size=224))
    assert anything.mismatch(transform) == (rank if rank == 2 else 0)


def test_the_error_of_a_difference() -> None:
    figure = Published(value=80.0, source="", inputs=Inputs(image_size=224))
    # 100·√(0.8·0.2/10000) = 0.4; with 0.3 of ours, 0.5.
    accuracy = {"metric": "top-1", "standard_error": 0.3, "samples": 10_000}
    assert error_of_difference(79.0, figure, **accuracy) == pytest.approx(0.5)
    other = {**accuracy, "metric": "mce-alexnet-normalised", "standard_error": 3.0}
    assert error_of_difference(79.0, figure, **other) == pytest.approx(3 * 2**0.5)
    none = {"metric": "top-1", "standard_error": 0.0, "samples": 0}
    assert error_of_difference(79.0, figure, **none) == 0


def test_a_file_of_published_figures_is_read_strictly() -> None:
    assert parse_papers(GOOD).sources[0].models == {"m": {"val": 50.0}}


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("format = 1", "format = 2", "format"),
        ("val = 50", "val = nan", "finite|number"),
        ("val = 50", "val = -1", "greater"),
        ("val = 50", 'val = "50"', "number"),
        ("val = 50", "vall = 50", "no such metric: vall"),
        ("date = 2026-01-02", 'date = "soon"', "date"),
        ("date = 2026-01-02", "date = 2026-01-02T10:00:00", "datetime"),
        ("date = 2026-01-02\n", "", "date"),
        ("image_size = 224", "image_size = 224, crop = 1", "crop"),
        ('["in1k-val@1", "top-1"]', '["in1k-val@1"]', "metrics"),
        ("format = 1", "format = ", "Invalid"),
    ],
)
def test_a_broken_one_is_not(old: str, new: str, what: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError) as refused:
        parse_papers(GOOD.replace(old, new))
    assert re.search(what, str(refused.value))
