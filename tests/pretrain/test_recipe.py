"""Overrides: typed, checked, and refused with the valid keys at hand."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.recipe import (
    Recipe,
    as_record,
    differences,
    find_recipe,
    flatten,
    list_recipes,
    recipe_function,
)
from zoo.errors import UsageError

NAME = "tinymim-vit-t"
KEYS = [key for key, _ in flatten(recipe_function(NAME)())]


def get(recipe: Recipe, key: str) -> object:
    return dict(flatten(recipe))[key]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("training.epochs", "100", 100.0),
        ("training.epochs", "0.5", 0.5),
        ("training.steps", "20", 20),
        ("training.steps", "null", None),
        ("training.compile", "true", True),
        ("training.compile", "null", None),
        ("training.precision", "bf16", "bf16"),
        ("training.optim.betas", "[0.8, 0.9]", (0.8, 0.9)),
        ("training.optim.clip_norm", "3", 3.0),
        ("training.optim.lr_per_256", "1e-3", 1e-3),
        ("data.source", "folder:/some where/a=b", "folder:/some where/a=b"),
        ("data.source", "folder:/1", "folder:/1"),
        ("data.workers", "0", 0),
        ("name", "7", "7"),
        ("name", "null", "null"),
        ("student.width", "384", 384),
        ("method.teacher.source", "org/name@main", "org/name@main"),
        ("method.teacher.block", "3", 3),
        ("method.jitter", "[0, 0.1, 0.2]", (0.0, 0.1, 0.2)),
    ],
)
def test_override_has_the_type_of_its_field(key: str, text: str, value: object) -> None:
    found = get(find_recipe(NAME, [f"{key}={text}"]), key)
    assert found == value
    if key != "method.jitter":
        assert type(found) is type(value) or isinstance(value, float)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("training.steps", "true"),
        ("training.steps", "0"),
        ("training.steps", "-3"),
        ("training.steps", "1.5"),
        ("training.steps", "many"),
        ("training.steps", ""),
        ("training.epochs", "NaN"),
        ("training.epochs", "Infinity"),
        ("training.epochs", "-1"),
        ("training.optim.lr_per_256", "nan"),
        ("training.optim.betas", "[0.9]"),
        ("training.optim.betas", "[0.9, 1.0]"),
        ("training.optim.betas", "0.9, 0.95"),
        ("training.precision", "fp16"),
        ("training.compile", "1"),
        ("training.compile", "yes"),
        ("training.keep_checkpoints", "1"),
        ("data.crop_scale", "[NaN, 1]"),
        ("data.crop_scale", "[0.5, 2]"),
        ("data.crop_scale", "[0.9, 0.1]"),
        ("data.crop_ratio", "[0, 1]"),
        ("student.width", "null"),
        ("student.heads", "5"),
        ("method.teacher.block", "0"),
        ("method.teacher.precision", "fp64"),
        ("method.drop_path", "1"),
    ],
)
def test_wrong_value_is_refused_and_named(key: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_recipe(NAME, [f"{key}={text}"])
    assert key.split(".")[-1] in str(caught.value)
    assert caught.value.fix


def test_unknown_key_lists_the_valid_ones() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'training\.epochs'") as caught:
        find_recipe(NAME, ["training.epoch=3"])
    assert "training.global_batch" in caught.value.where
    with pytest.raises(UsageError, match="did you mean") as caught:
        find_recipe(NAME, ["training.optim.beta=3"])
    assert "training.optim.betas" in caught.value.where
    with pytest.raises(UsageError, match="unknown recipe key 'mehtod'"):
        find_recipe(NAME, ["mehtod=mae"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training", "key.path=value"),
        ("training=3", "has parts"),
        ("training.optim=3", "has parts"),
        ("training.epochs.more=3", "has no parts"),
        ("=3", "unknown recipe key"),
        (".=3", "unknown recipe key"),
        ("training..epochs=3", "unknown recipe key"),
    ],
)
def test_malformed_override(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_recipe(NAME, [override])


def test_sizes_are_judged_together_not_one_by_one() -> None:
    student = find_recipe(NAME, ["student.width=100", "student.heads=5"]).student
    assert (student.width, student.heads) == (100, 5)
    swapped = find_recipe(NAME, ["student.heads=5", "student.width=100"]).student
    assert swapped == student


def test_last_of_two_overrides_wins() -> None:
    assert find_recipe(NAME, ["training.steps=3", "training.steps=5"]).training.steps == 5


def test_recipe_itself_stays_as_it_was() -> None:
    before = recipe_function(NAME)()
    find_recipe(NAME, ["training.steps=3"])
    assert recipe_function(NAME)() == before
    assert dataclasses.is_dataclass(before)


_texts = st.text(max_size=12) | st.sampled_from(
    ["null", "true", "1", "-1", "1e400", "NaN", "[]", "[[1]]", "{}", "0.5", '"a"', "9" * 400]
)
_keys = st.sampled_from([*KEYS, "training", "student", ""]) | st.text(max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_keys, _texts), max_size=3), st.text(max_size=5))
def test_any_text_is_accepted_or_a_usage_error(pairs: list[tuple[str, str]], loose: str) -> None:
    try:
        recipe = find_recipe(
            NAME, [*(f"{key}={text}" for key, text in pairs), *[loose] * bool(loose)]
        )
    except UsageError:
        return
    json.dumps(as_record(recipe), allow_nan=False)


@pytest.mark.parametrize(
    "named",
    [
        *("NAMED = dict(a=1)", "NAMED = {'a': 'b=1'}", "NAMED = {'a': [1]}", "NAMED = 3"),
        *("NAMED = {'a': ['no-equals']}", "def ("),
    ],
)
def test_a_file_whose_named_overrides_are_no_plain_values_is_refused(
    tmp_path: Path, named: str
) -> None:
    (tmp_path / "mine.py").write_text(named)
    with pytest.raises(UsageError, match="cannot be read"):
        find_recipe(str(tmp_path / "mine.py"))


def test_named_overrides_join_the_name_and_must_not_contradict() -> None:
    named = find_recipe("img2vec-vit-t", ["mask-25", "training.epochs=3"])
    assert named.name == "img2vec-vit-t-mask-25"
    assert as_record(named)["method.mask_ratio"] == 0.25
    for other in ("mask-40", "mask-25", "method.mask_ratio=0.3"):
        for both in (["mask-25", other], [other, "mask-25"]):
            with pytest.raises(UsageError, match="set already"):
                find_recipe("img2vec-vit-t", both)
    with pytest.raises(UsageError, match="mask-99") as caught:
        find_recipe("img2vec-vit-t", ["mask-99"])
    assert "mask-15, mask-25, mask-40" in caught.value.where


@pytest.mark.parametrize("name", list_recipes())
def test_record_is_json_and_leaves_out_what_may_change(name: str) -> None:
    recipe = recipe_function(name)()
    record = as_record(recipe)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["method"] == recipe.method.name
    free = record.keys() - as_record(recipe, runtime=False).keys()
    assert free == {
        "data.workers",
        "data.max_bad",
        "data.max_bad_share",
        "training.save_every_steps",
        "training.save_every_minutes",
        "training.keep_checkpoints",
        "training.rank_timeout_seconds",
        "training.loggers",
        "signal.every_steps",
        "signal.images",
    }


def test_differences_name_both_sides() -> None:
    found = differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": None})
    assert found == ["b: 2 → 3", "c: 'absent' → None"]


def test_unknown_recipe_suggests_one() -> None:
    with pytest.raises(UsageError, match=re.escape("did you mean 'tinymim-vit-t'")):
        find_recipe("tinymim-vit-tt")


def test_recipe_file_must_define_its_own_name(tmp_path) -> None:
    place = tmp_path / "my_run.py"
    place.write_text("x = 1\n")
    with pytest.raises(UsageError, match="a function of its own name"):
        find_recipe(str(place))
