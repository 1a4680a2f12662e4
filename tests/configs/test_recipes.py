"""Every recipe in the folder is found, complete, plain, and makes a network."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

from eval.finetune import Finetune
from pretrain.masked import CellMask
from pretrain.methods.img2vec import Img2Vec
from pretrain.methods.mae import MAE
from pretrain.methods.simclr import SimCLR
from pretrain.methods.tinymim import TinyMIM
from pretrain.recipe import Recipe, find_recipe, list_recipes, named_overrides, recipe_function
from zoo.convnet import ConvnetConfig, empty_convnet
from zoo.vit import config_of, empty_vit

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(file for file in FOLDER.glob("*.py") if file.name != "__init__.py")


def _name(file: Path) -> str:
    return file.stem.replace("_", "-")


NAMES = [_name(file) for file in FILES]
MOST_LINES = 60

# The published teachers whose widths a recipe relies on: width, heads, blocks.
HUB_TEACHERS = {
    "hf-hub:timm/vit_base_patch16_224.mae": (768, 12, 12),
    "hf-hub:timm/vit_large_patch16_224.mae": (1024, 16, 24),
}


def test_every_file_is_found() -> None:
    assert list_recipes() == NAMES
    assert len(NAMES) == len(list(FOLDER.iterdir())) - len(_others())
    assert len(NAMES) >= 14


def _others() -> list[Path]:
    return [p for p in FOLDER.iterdir() if p.name in {"__init__.py", "__pycache__"}]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_found_by_its_name_and_every_field_has_its_type(name: str) -> None:
    recipe = find_recipe(name)
    assert isinstance(recipe, Recipe)
    assert recipe.name == name
    assert recipe_function(name).__name__ == name.replace("-", "_")


@pytest.mark.parametrize("name", NAMES)
def test_its_student_can_be_built(name: str) -> None:
    student = find_recipe(name).student
    if isinstance(student, ConvnetConfig):
        net = empty_convnet(student.architecture, student.arguments)
    else:
        net = empty_vit(student)
        assert config_of(net) == student
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_its_heads_divide(name: str) -> None:
    recipe = find_recipe(name)
    method = recipe.method
    if isinstance(method, MAE | Img2Vec):
        assert method.decoder_width % method.decoder_heads == 0
        return
    if isinstance(method, SimCLR | Finetune):
        return
    assert isinstance(method, TinyMIM)
    width, heads, depth = _teacher(method.teacher.source)
    heads = method.teacher.relation_heads or heads
    assert width % heads == 0
    assert recipe.student.width % heads == 0
    assert (method.teacher.block or depth) <= depth


IMG2VEC = [name for name in NAMES if isinstance(find_recipe(name).method, Img2Vec)]


def _cell(source: str) -> int:
    """Side of a teacher's cell, as its maker's recipe or DINO's ResNet-50 has it."""
    if source == "models/dino-rn50":
        return 32
    maker = find_recipe(_maker(source)).method
    assert isinstance(maker, SimCLR)
    assert maker.stride is not None
    return maker.stride


def img2vec(name: str) -> Img2Vec:
    method = find_recipe(name).method
    assert isinstance(method, Img2Vec)
    return method


@pytest.mark.parametrize("name", IMG2VEC)
def test_its_masks_follow_its_teachers_cells(name: str) -> None:
    recipe = find_recipe(name)
    method = img2vec(name)
    cell = _cell(method.teacher.source)
    assert method.teacher.stride is None
    assert method.mask_unit is None
    mask = CellMask(student=recipe.student, unit=cell, ratio=method.mask_ratio)
    if recipe.student.image_size == 224:
        assert (mask.cells, mask.masked, mask.visible_patches) == (49, 30, 76)


@pytest.mark.parametrize("name", [name for name in NAMES if named_overrides(name)])
def test_its_named_overrides_fit_and_join_its_name(name: str) -> None:
    for named in named_overrides(name):
        recipe = find_recipe(name, [named])
        assert recipe != replace(find_recipe(name), name=recipe.name)
        assert recipe.name == f"{name}-{named}"


def test_img2vec_is_there_in_four_sizes_with_lower_masks_for_the_small() -> None:
    assert [f"img2vec-vit-{size}" in IMG2VEC for size in "tsbl"] == [True] * 4
    assert [len(named_overrides(f"img2vec-vit-{size}")) for size in "tsbl"] == [3, 2, 0, 0]
    depths = [img2vec(f"img2vec-vit-{size}").decoder_depth for size in "tsbl"]
    assert depths == [2, 2, 2, 4]


FINETUNE = [name for name in NAMES if isinstance(find_recipe(name).method, Finetune)]


def test_fine_tuning_is_there_in_three_sizes_with_the_published_counts() -> None:
    assert [f"finetune-in1k-vit-{size}" for size in "bst"] == FINETUNE
    counts = []
    for recipe in map(find_recipe, FINETUNE):
        method = recipe.method
        assert isinstance(method, Finetune)
        net = empty_vit(recipe.student, method.classes)
        counts.append(sum(parameter.numel() for parameter in net.parameters()))
        made_by = find_recipe(_maker(method.init or ""))
        assert made_by.student == recipe.student
    assert counts == [86_567_656, 22_050_664, 5_717_416]


def test_fine_tuning_recipes_are_those_of_the_papers() -> None:
    for name in FINETUNE:
        recipe = find_recipe(name)
        assert recipe.training.optim.peak_lr(recipe.training.global_batch) == 2e-3
        assert recipe.method == replace(_mae_finetune(), init=recipe.method.init)  # type: ignore[attr-defined]
    deit = find_recipe("finetune-in1k-vit-t", ["deit"]).training
    assert deit.optim.peak_lr(deit.global_batch) == 5e-4 * 1024 / 512
    lite = find_recipe("finetune-in1k-vit-t", ["mae-lite"])
    assert lite.training.optim.peak_lr(lite.training.global_batch) == 4e-3
    assert lite.method == Finetune(
        init="runs/tinymim-vit-t/export",
        classes=1000,
        layer_decay=0.85,
        drop_path=0.0,
        mixup=0.2,
        cutmix=0.0,
        smoothing=0.0,
        erase=0.0,
    )


def _mae_finetune() -> Finetune:
    return Finetune(
        init=None,
        classes=1000,
        layer_decay=0.65,
        drop_path=0.1,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
        erase=0.25,
    )


def _maker(source: str) -> str:
    """The recipe whose export a teacher is."""
    match = re.fullmatch(r"runs/([a-z0-9/-]+)/export", source)
    assert match, f"a teacher is a run's export or a published one, not {source}"
    return match[1].replace("/", "-")


def _teacher(source: str) -> tuple[int, int, int]:
    """Width, relation heads and blocks of a recipe's teacher, through the chain of recipes."""
    if source in HUB_TEACHERS:
        return HUB_TEACHERS[source]
    maker = find_recipe(_maker(source))
    student = maker.student
    if isinstance(maker.method, TinyMIM):  # its card records what its last block was taught with
        heads = maker.method.teacher.relation_heads or _teacher(maker.method.teacher.source)[1]
        return student.width, heads, student.depth
    return student.width, student.heads, student.depth


def test_the_chain_hands_sixteen_relation_heads_down() -> None:
    for size, source in (("b", 16), ("s", 16), ("t", 16)):
        method = find_recipe(f"tinymim-vit-{size}").method
        assert isinstance(method, TinyMIM)
        assert _teacher(method.teacher.source)[1] == source


@pytest.mark.parametrize("name", NAMES)
def test_the_batches_and_epochs_are_possible(name: str) -> None:
    training = find_recipe(name).training
    assert training.global_batch % training.rank_batch == 0
    assert training.epochs is None or training.warmup_epochs < training.epochs


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_its_docstring_holds_its_command(file: Path) -> None:
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    summary = text.partition("\n")[0]
    assert summary.endswith((".", ":")) or "." in summary
    assert f"    zoo pretrain {file.stem.replace('_', '-')}" in text


FORBIDDEN = (
    *(ast.If, ast.For, ast.While, ast.IfExp, ast.Try, ast.With, ast.Lambda, ast.ClassDef),
    *(ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp, ast.Global),
)


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_it_is_one_plain_function(file: Path) -> None:
    source = file.read_text()
    tree = ast.parse(source)
    tables = [node for node in tree.body if isinstance(node, ast.Assign)]
    of_tables = sum((node.end_lineno or 0) - node.lineno + 1 for node in tables)
    assert len(source.splitlines()) - of_tables <= MOST_LINES
    odd = [type(n).__name__ for n in ast.walk(tree) if isinstance(n, FORBIDDEN)]
    assert not odd
    docstring, *imports, function = tree.body
    if isinstance(imports[-1], ast.Assign):  # plain values, read without running the file
        named = imports.pop()
        assert isinstance(named, ast.Assign)
        assert ast.unparse(named.targets[0]) == "NAMED"
        assert list(ast.literal_eval(named.value)) == list(named_overrides(_name(file)))
    assert isinstance(docstring, ast.Expr)
    assert isinstance(function, ast.FunctionDef)
    assert function.name == file.stem
    for node in imports:
        assert isinstance(node, ast.ImportFrom), "imports and one function, nothing else"
        assert (node.module or "").partition(".")[0] in {"eval", "pretrain", "zoo"}
