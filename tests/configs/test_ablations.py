"""TinyMIM's tables as named overrides: all there, the paper's figures beside them, each trains."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

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


CHOSEN = {
    "student": 768,
    "heads": 12,
    "teacher": "hf-hub:timm/vit_large_patch16_224.mae",
    "block": 18,
    "targets": "qk vv",
    "softmax": True,
    "mask": 0.0,
    "reconstruction": 0.0,
    "teacher_drops": 0.0,
    "drops": 0.1,
    "epochs": 100,
}
"""84.6 % top-1, the best of Tables 7, 12 and 13."""
_MAE_B = {"teacher": "hf-hub:timm/vit_base_patch16_224.mae", "block": None}
_SMALL, _TINY = {"student": 384, "heads": 6}, {"student": 192, "heads": 3}
_LONG = {"epochs": 300}
_SMALL_LONG = {**_SMALL, **_LONG, "teacher": "runs/tinymim-vit-b/export", "block": None}
_TINY_LONG = {**_TINY, **_LONG, "teacher": "runs/tinymim-vit-s/export", "block": None}
_RECONSTRUCTED = {"mask": 0.75, "reconstruction": 1.0}
PAPER: dict[str, tuple[str, dict[str, Any]]] = {
    "table-5-class-token": ("80.6", {"targets": "class_token"}),
    "table-5-class-token-reconstruction": ("82.1", {"targets": "class_token", **_RECONSTRUCTED}),
    "table-6-output": ("83.7", {"targets": "output", "block": None}),
    "table-6-ffn": ("84.2", {"targets": "ffn"}),
    "table-6-ffn-residual": ("81.8", {"targets": "block"}),
    "table-6-attention": ("84.1", {"targets": "attention"}),
    "table-6-attention-residual": ("81.3", {"targets": "attention_residual"}),
    "table-6-qkv": ("84.3", {"targets": "q k v"}),
    "table-7-qq-kk-vv-plain": ("84.4", {"targets": "qq kk vv", "softmax": False}),
    "table-7-qq-kk-vv": ("84.5", {"targets": "qq kk vv"}),
    "table-7-qk-vv-plain": ("84.4", {"softmax": False}),
    "table-8-t-class-token": ("70.6", {**_TINY_LONG, "targets": "class_token"}),
    "table-8-t-feature": ("73.4", {**_TINY_LONG, "targets": "q k v"}),
    "table-8-t-relation": ("75.8", _TINY_LONG),
    "table-8-s-class-token": ("79.6", {**_SMALL_LONG, "targets": "class_token"}),
    "table-8-s-feature": ("80.8", {**_SMALL_LONG, "targets": "q k v"}),
    "table-8-s-relation": ("83.0", _SMALL_LONG),
    "table-8-b-class-token": ("82.6; mIoU 46.2 (Table 9)", {"targets": "class_token", **_LONG}),
    "table-8-b-feature": ("83.8; mIoU 47.7 (Table 9)", {"targets": "q k v", **_LONG}),
    "table-8-b-relation": ("85.0; mIoU 52.2 (Table 9)", _LONG),
    "table-10-block-12": ("83.6; mIoU 48.7", {"block": 12}),
    "table-10-block-15": ("84.1; mIoU 49.8", {"block": 15}),
    "table-10-block-21": ("84.8; mIoU 50.6", {"block": 21}),
    "table-10-block-24": ("84.4; mIoU 50.0", {"block": 24}),
    "table-11-s-from-mae-b": ("82.3", {**_SMALL, **_MAE_B}),
    "table-11-s-from-mae-l": ("82.1", _SMALL),
    "table-11-s-from-tinymim-b": (
        "82.6",
        {**_SMALL, "teacher": "runs/ablations/export", "block": None},
    ),
    "table-11-t-from-mae-s": (
        "74.1",
        {**_TINY, "teacher": "runs/mae-vit-s/export", "block": None},
    ),
    "table-11-t-from-mae-b": ("74.4", {**_TINY, **_MAE_B}),
    "table-11-t-from-tinymim-s": (
        "75.0",
        {**_TINY, "teacher": "runs/ablations-table-11-s-from-mae-b/export", "block": None},
    ),
    "table-12-masked": ("83.9", {"mask": 0.75}),
    "table-12-masked-reconstruction": ("84.0", _RECONSTRUCTED),
    "table-13-teacher-0-student-0": ("84.3", {"drops": 0.0}),
    "table-13-teacher-0-student-2": ("84.3", {"drops": 0.2}),
    "table-13-teacher-0-student-3": ("84.1", {"drops": 0.3}),
    "table-13-teacher-1-student-1": ("83.9", {"teacher_drops": 0.1}),
}


def test_every_table_is_there() -> None:
    tables = [int(name.split("-")[1]) for name in NAMED]
    assert {table: tables.count(table) for table in tables} == COUNTS
    assert len(ROWS) == 37
    # Table 9 scores the ViT-B of Table 8 on ADE20K.
    assert sum("(Table 9)" in named.figure for named in NAMED.values()) == 3


def settled(recipe: Recipe) -> dict[str, Any]:
    """What the rows of the tables differ in."""
    method = recipe.method
    assert isinstance(method, TinyMIM)
    return {
        "student": recipe.student.width,
        "heads": recipe.student.heads,
        "teacher": method.teacher.source,
        "block": method.teacher.block,
        "targets": " ".join(method.targets),
        "softmax": method.softmax,
        "mask": method.mask_ratio,
        "reconstruction": method.reconstruction.weight,
        "teacher_drops": method.teacher.drop_path,
        "drops": method.drop_path,
        "epochs": recipe.training.epochs,
    }


def test_every_row_is_the_papers_with_its_figure() -> None:
    rows = {name: (named.figure, find_recipe("ablations", [name])) for name, named in NAMED.items()}
    found = {name: (figure, settled(recipe)) for name, (figure, recipe) in rows.items()}
    assert settled(find_recipe("ablations", [])) == CHOSEN
    assert found == {name: (figure, {**CHOSEN, **row}) for name, (figure, row) in PAPER.items()}


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
    """Each teacher of the recipes an eighth as wide, and a third or a quarter as deep."""
    folder = tmp_path_factory.mktemp("teachers")
    for size in SIZES:
        make_model(folder / size, SIZES[size], seed=1)
    return folder


SIZES = {
    "l": ViTConfig(width=128, depth=8, heads=16, patch=8, image_size=32),
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
        teacher = replace(teacher, block=teacher.block // 3)
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
