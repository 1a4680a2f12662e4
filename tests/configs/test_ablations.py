"""TinyMIM's tables as named overrides: all there, the paper's figures beside them, each trains."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from models import make_model
from photos import make_photos

from pretrain.launch import pretrain
from pretrain.log import read_log
from pretrain.methods.tinymim import TinyMIM
from pretrain.recipe import Recipe, find_recipe, named_overrides
from zoo.cli import main
from zoo.vit import ViTConfig

NAMED = named_overrides("ablations")
ROWS = ["", *NAMED]
# Rows of each table that are not the recipe's own: those of the spec less the chosen one.
COUNTS = {5: 2, 6: 6, 7: 3, 8: 9, 10: 4, 11: 6, 12: 2, 13: 4}
STEPS = 20


def test_every_table_is_there() -> None:
    tables = [int(name.split("-")[1]) for name in NAMED]
    assert {table: tables.count(table) for table in tables} == COUNTS
    assert len(ROWS) == 37
    # Table 9 scores the ViT-B of Table 8 on ADE20K.
    assert sum("(Table 9)" in named.figure for named in NAMED.values()) == 3


def test_every_row_has_the_papers_figure() -> None:
    for name, named in NAMED.items():
        top1 = re.match(r"\d\d\.\d", named.figure)
        assert top1, name
        assert 70 < float(top1[0]) < 86
        assert named.overrides, name


def test_no_two_rows_are_the_same_run() -> None:
    seen: dict[Recipe, str] = {}
    for name in ROWS:
        recipe = replace(find_recipe("ablations", [name] if name else []), name="")
        assert recipe not in seen, f"{name} is {seen[recipe]}"
        seen[recipe] = name


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            main(["pretrain", "--list", "ablations", *extra])
        assert stop.value.code == 0
    plain, _, listed = capsys.readouterr().out.partition("{")
    assert re.search(r"^table-6-qkv +84\.3  method\.targets=\[q,k,v\]$", plain, re.M)
    rows = json.loads("{" + listed)
    assert list(rows) == list(NAMED)
    assert rows["table-7-qk-vv-plain"] == {"overrides": ["method.softmax=false"], "figure": "84.4"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"), per_class=8, size=32)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each teacher of the recipes an eighth as wide and a quarter as deep."""
    folder = tmp_path_factory.mktemp("teachers")
    for size in SIZES:
        make_model(folder / size, SIZES[size], seed=1)
    return folder


SIZES = {
    "l": ViTConfig(width=128, depth=6, heads=16, patch=8, image_size=32),
    "b": ViTConfig(width=96, depth=3, heads=12, patch=8, image_size=32),
    "s": ViTConfig(width=48, depth=3, heads=6, patch=8, image_size=32),
}


def in_small(recipe: Recipe, photos: Path, teachers: Path) -> Recipe:
    """The same choices in a small network, on a few images."""
    method, student = recipe.method, recipe.student
    assert isinstance(method, TinyMIM)
    size = re.findall(r"(?:vit|mae|tinymim)[_-](?:vit[_-])?([lbs])", _source(method))[0]
    small = ViTConfig(
        width=student.width // 8, depth=3, heads=student.heads, patch=8, image_size=32
    )
    teacher = replace(method.teacher, source=str(teachers / size), relation_heads=None)
    if teacher.block:
        teacher = replace(teacher, block=teacher.block // 4)
    return replace(
        recipe,
        student=small,
        method=replace(
            method,
            teacher=teacher,
            jitter=(0.0, 0.0, 0.0),
            reconstruction=replace(
                method.reconstruction, decoder_width=32, decoder_depth=1, decoder_heads=4
            ),
        ),
        data=replace(recipe.data, source=f"folder:{photos}", crop_scale=(1.0, 1.0), workers=0),
        training=replace(
            recipe.training,
            steps=STEPS,
            warmup_steps=2,
            global_batch=16,
            rank_batch=16,
            log_every_steps=1,
            optim=replace(recipe.training.optim, lr_per_256=0.05),
        ),
    )


def _source(method: TinyMIM) -> str:
    """The teacher's place, in words that tell its size."""
    source = method.teacher.source
    return {
        "hf-hub:timm/vit_large_patch16_224.mae": "vit_l",
        "hf-hub:timm/vit_base_patch16_224.mae": "vit_b",
        "runs/ablations/export": "vit-b",
        "runs/ablations-table-11-s-from-mae-b/export": "vit-s",
    }.get(source, source)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_trains_in_small(name: str, photos: Path, teachers: Path, tmp_path: Path) -> None:
    recipe = find_recipe("ablations", [name] if name else [])
    export = pretrain(in_small(recipe, photos, teachers), tmp_path / "run", device="cpu")
    losses = [row["total"] for row in read_log(tmp_path / "run" / "log.jsonl")]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert (export / "model.safetensors").is_file()
