"""The table's cells against hand-computed differences; what is told apart, and what is marked."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from resultfiles import result

import eval.table as module
from eval.benchmarks import Benchmark, benchmarks
from eval.result_files import Found
from eval.results import Result
from eval.table import Cell, as_published, make_cells, select
from zoo.catalog import load_catalog
from zoo.errors import UsageError

DIGEST = benchmarks()["in1k-val@1"].digest


@pytest.fixture(autouse=True)
def _no_catalog_of_ones_own(settings: Any) -> None: ...


def found(*results: Result) -> list[Found]:
    return [Found(result=r, file=Path("results", f"{r.stem}.json")) for r in results]


def cells(*results: Result) -> list[Cell]:
    return make_cells(found(*results), load_catalog().models)


def val(**changes: Any) -> Result:
    return result(**{"protocol_digest": DIGEST, **changes})


def test_ours_less_the_papers() -> None:
    # TinyMIM-S: 83.0.  Its binomial error squared: 100²·0.83·0.17/50000 = 0.02822 points².
    (cell,) = cells(val(value=82.5, standard_error=0.17))
    assert (cell.compared, cell.published[0].value) == (True, 83.0)
    assert cell.difference == pytest.approx(-0.5)
    assert cell.difference_in_errors == pytest.approx(-0.5 / (0.17**2 + 0.02822) ** 0.5)
    assert cell.remarks == ("published: TinyMIM Table 3, 224 px",)
    assert cell.variant == ""


def test_a_model_without_published_figures_has_no_difference() -> None:
    (cell,) = cells(val(model="mine"))
    assert (cell.published, cell.compared) == ((), False)
    assert cell.difference is cell.difference_in_errors is None
    assert cell.remarks == ()


def imagenet_c(**changes: Any) -> Result:
    digest = benchmarks()["in1k-c@1"].digest
    of = {"protocol": "in1k-c@1", "metric": "mce-alexnet-normalised", "model": "mae-vit-b"}
    rest = {"protocol_digest": digest, "value": 51.3, "standard_error": 0.15}
    return result(**{**of, **rest, "samples": 3_750_000, **changes})


@pytest.mark.parametrize(
    "detail", [{"value": 37.9, "standard_error": 0.3}, {"percent": 37.9, "standard_error": 0.3}]
)
def test_both_scales_of_imagenet_c_stand_apart(detail: dict[str, float]) -> None:
    mce, mean = cells(imagenet_c(details={"mean-error-unnormalised": detail}))
    assert (mce.metric, mce.value, mce.published[0].value) == ("mce-alexnet-normalised", 51.3, 51.7)
    assert (mean.metric, mean.value) == ("mean-error-unnormalised", 37.9)
    assert mean.published[0].value == 37.8
    assert mce.difference_in_errors == pytest.approx(-0.4 / (0.15 * 2**0.5))
    assert mean.difference_in_errors == pytest.approx(0.1 / (0.3 * 2**0.5))


def test_the_second_scale_need_not_state_an_error() -> None:
    _, mean = cells(imagenet_c(details={"mean-error-unnormalised": 37.9}))
    assert mean.difference == pytest.approx(0.1)
    assert mean.standard_error is mean.difference_in_errors is None


@pytest.mark.parametrize("detail", [None, "37.9", True, [37.9], {}, {"value": None}, 10**400])
def test_what_is_no_number_is_no_second_scale(detail: Any) -> None:
    assert len(cells(imagenet_c(details={"mean-error-unnormalised": detail}))) == 1


def test_top5_stands_there_where_somebody_published_it() -> None:
    like = {"image_size": 224, "crop_pct": 0.9, "interpolation": "bicubic"}
    top5 = {"top-5": {"percent": 91.0, "standard_error": 0.13}}
    name = "timm/deit_tiny_patch16_224.fb_in1k"
    first, second = cells(val(model=name, transform=like, value=72.0, details=top5))
    assert (first.metric, first.difference) == ("top-1", pytest.approx(-0.19))
    assert (second.metric, second.difference) == ("top-5", pytest.approx(-0.1))
    assert len(cells(val(details=top5))) == 1


@pytest.mark.parametrize(
    ("changes", "remark", "why"),
    [
        ({"complete": False, "samples": 49_000}, "49,000 of 50,000", "the set is incomplete"),
        ({"protocol_digest": "00" * 32}, "digest differs", "the rules differ"),
        ({"transform": {"image_size": 448}}, "", "ours is at 448 px"),
        ({"transform": {}}, "", "our input size is not known"),
    ],
)
def test_what_is_not_of_the_same_kind_is_not_compared(
    changes: dict[str, Any], remark: str, why: str
) -> None:
    (cell,) = cells(val(**changes))
    assert cell.published[0].value == 83.0
    assert cell.difference is None
    assert remark in "; ".join(cell.remarks)
    assert f"not compared, {why}" in cell.remarks[-1]


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"dtype": "float16"}, "in float16, not float32"),
        ({"settings": {"transform": "mae"}}, "not the protocol's transform but mae"),
        ({"protocol_digest": ""}, "does not state its protocol's digest"),
    ],
)
def test_what_differs_from_the_protocol_is_marked(changes: dict[str, Any], remark: str) -> None:
    (cell,) = cells(val(**changes))
    assert cell.remarks == (remark, "published: TinyMIM Table 3, 224 px")
    assert cell.compared


@pytest.mark.parametrize(
    ("protocol", "samples", "told"),
    [
        ("in1k-c@1", 60_000, "an incomplete set: 60,000 of 3,750,000 images"),
        ("in1k-sketch@1", 50_880, "an incomplete set: 50,880 of 50,889 images"),
        ("in1k-real@1", 46_000, "an incomplete set: 46,000 images"),
        ("in1k-a@1", 7_500, "an incomplete set: 7,500 images"),
    ],
)
def test_how_much_is_missing(protocol: str, samples: int, told: str) -> None:
    (cell,) = cells(result(protocol=protocol, model="m", samples=samples, complete=False))
    assert told in cell.remarks


def test_an_unknown_protocol_is_marked() -> None:
    (cell,) = cells(result(protocol="somebodys-own@3", dtype="bfloat16"))
    assert cell.standing == "a protocol that this version of tinyzoo does not know"
    assert cell.remarks == ("in bfloat16, not float32",)
    assert cell.as_dict()["remarks"] == [cell.standing, *cell.remarks]


def test_a_protocol_that_has_moved_on_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    later = Benchmark(id="in1k-val@12", about="stricter", digest="12" * 32)
    known = {**benchmarks(), later.id: later}
    monkeypatch.setattr("eval.benchmarks.benchmarks", lambda: known)
    monkeypatch.setattr(module, "benchmarks", lambda: known)
    old, now, future = (
        val(protocol_digest="12" * 32, protocol=f"in1k-val@{version}", model="m")
        for version in (3, 12, 13)
    )
    first, second, third, fourth = cells(val(), old, now, future)
    assert first.standing == "the protocol has moved on to in1k-val@12"
    assert first.compared
    assert second.standing == ""
    assert third.standing == "of a newer version of tinyzoo: here in1k-val@12 is the newest"
    assert fourth.standing == "the protocol has moved on to in1k-val@12"
    assert [c.result.protocol for c in (second, third, fourth)] == [
        "in1k-val@12",
        "in1k-val@13",
        "in1k-val@3",
    ]


def test_the_same_name_of_two_models_is_told_apart() -> None:
    both = cells(val(model_digest="12" * 32), val(model_digest="34" * 32))
    assert [c.model for c in both] == ["tinymim-vit-s (12121212)", "tinymim-vit-s (34343434)"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": "other", "data_fingerprint": "ee" * 32}, ["imagenet", "other"]),
        ({"data_fingerprint": "ee" * 32}, ["imagenet (cdcdcdcd)", "imagenet (eeeeeeee)"]),
        ({"dtype": "float16"}, ["float16", "float32"]),
        ({"seed": 3}, ["seed 0", "seed 3"]),
        ({"settings": {"k": 5}}, ["k 5", "k not stated"]),
    ],
)
def test_two_files_of_one_cell_are_both_shown(changes: dict[str, Any], expected: list[str]) -> None:
    assert [c.variant for c in cells(val(), val(**changes))] == expected


def test_another_transform_is_told_by_what_differs() -> None:
    other = {"image_size": 448, "crop_pct": 1.0, "interpolation": "bicubic"}
    both = cells(val(), val(transform=other))
    assert [c.variant for c in both] == [
        "image_size 224, crop_pct 0.875",
        "image_size 448, crop_pct 1.0",
    ]


def test_two_models_own_transforms_are_no_variants() -> None:
    both = cells(val(), val(model="m", model_digest="12" * 32, transform={"image_size": 96}))
    assert [c.variant for c in both] == ["", ""]


def test_runs_that_differ_in_nothing_are_told_by_their_files() -> None:
    one, two = val(value=80.0), val(value=81.0)
    places = [Found(result=one, file=Path("a/x.json")), Found(result=two, file=Path("b/x.json"))]
    both = make_cells(places, load_catalog().models)
    assert [(c.value, c.variant) for c in both] == [(80.0, "a/x.json"), (81.0, "b/x.json")]


MANY = [
    val(),
    val(model="b", model_digest="12" * 32),
    val(dtype="float16"),
    imagenet_c(details={"mean-error-unnormalised": 37.9}),
    val(protocol="zzz@1", protocol_digest=""),
    val(protocol="in1k-a@1", protocol_digest="", samples=7500),
]


@examples(max_examples=25)
@given(st.permutations(MANY))
def test_the_order_does_not_depend_on_the_files_order(results: list[Result]) -> None:
    expected = [(c.result.protocol, c.metric, c.model, c.variant) for c in cells(*MANY)]
    assert [(c.result.protocol, c.metric, c.model, c.variant) for c in cells(*results)] == expected
    protocols = [protocol for protocol, *_ in expected]
    assert protocols == ["in1k-val@1"] * 3 + ["in1k-a@1"] + ["in1k-c@1"] * 2 + ["zzz@1"]


def test_selecting() -> None:
    all_ = found(*MANY)
    assert len(select(all_, model="tinymim-vit-s")) == 4
    assert len(select(all_, model="121212")) == 1
    assert len(select(all_, benchmark="in1k-val")) == len(select(all_, benchmark="in1k-val@1")) == 3
    assert len(select(all_, model="b", benchmark="in1k-val")) == 1
    assert select(all_) == all_


@pytest.mark.parametrize(
    ("asked", "what", "fix"),
    [
        ({"model": "tinymim-vits"}, "did you mean 'tinymim-vit-s'", "b, mae-vit-b, tinymim-vit-s"),
        ({"model": "12"}, "called '12'", "b, mae-vit-b"),
        ({"benchmark": "in1k-vall"}, "did you mean 'in1k-val@1'", "in1k-a@1, in1k-c@1"),
        ({"benchmark": "in1k-val@2"}, "called 'in1k-val@2'", "in1k-val@1"),
        ({"model": "b", "benchmark": "in1k-a"}, "called 'in1k-a'", "in1k-val@1"),
    ],
)
def test_selecting_nothing_says_what_there_is(asked: dict[str, str], what: str, fix: str) -> None:
    with pytest.raises(UsageError) as refused:
        select(found(*MANY), **asked)
    assert what in refused.value.what
    assert fix in refused.value.fix


def test_a_model_may_be_compared_with_another_names_figures() -> None:
    mine = found(val(model="my-run", value=76.0), val(model="b", model_digest="12" * 32))
    first, second = make_cells(
        as_published(mine, {"my-run": "tinymim-vit-t"}), load_catalog().models
    )
    assert first.published == ()
    assert second.difference == pytest.approx(76.0 - 75.8)
    with pytest.raises(UsageError, match="no result of a model called 'me'"):
        as_published(mine, {"me": "tinymim-vit-t"})
