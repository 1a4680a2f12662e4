"""Which room may import which, and how long a file and a function may be.  Read, not run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("zoo", "pretrain", "eval", "configs")
MAY_IMPORT = {
    "zoo": {"zoo"},
    "pretrain": {"pretrain", "zoo"},
    "eval": {"eval", "pretrain", "zoo"},
    "configs": {"eval", "pretrain", "zoo"},
}
FRONT_DOOR = {"zoo/cli.py", "zoo/eval_verbs.py"}
"""They import the rooms, and only inside a verb."""
FILES = sorted(f for room in ROOMS for f in (ROOT / room).rglob("*.py"))
OURS = [*FILES, *sorted(f for d in ("tests", "benchmarks") for f in (ROOT / d).rglob("*.py"))]
MOST_LINES, MOST_FUNCTION_LINES = 400, 60


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module a file imports, wherever in it, with the names taken: ``a.b.c``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_on_load(tree: ast.Module) -> Iterator[str]:
    """The same, outside functions."""
    for statement in tree.body:
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(statement)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_all_files_are_seen() -> None:
    found = {room: sum(f.is_relative_to(ROOT / room) for f in FILES) for room in ROOMS}
    expected = {room: len(list((ROOT / room).glob("**/*.py"))) for room in ROOMS}
    assert found == expected
    assert found["zoo"] >= 12
    assert found["pretrain"] >= 20
    assert found["eval"] >= 6
    assert found["configs"] >= 15
    assert len(OURS) > len(FILES) + 10


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    name = name_of(path)
    tree = ast.parse(path.read_text())
    read = imports_on_load(tree) if name in FRONT_DOOR else imports(tree)
    rooms = {room_of(module) for module in read} & set(ROOMS)
    assert rooms <= MAY_IMPORT[name.partition("/")[0]]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nobody_imports_the_front_door_or_a_recipe(path: Path) -> None:
    modules = set(imports(ast.parse(path.read_text())))
    assert not {m for m in modules if room_of(m) == "configs"}
    if name_of(path) != "zoo/__main__.py":
        assert not {m for m in modules if (m + ".").startswith("zoo.cli.")}
    if name_of(path) not in FRONT_DOOR:
        assert not {m for m in modules if (m + ".").startswith("zoo.eval_verbs.")}


def test_the_loop_knows_no_method_and_no_benchmark() -> None:
    modules = set(imports(ast.parse((ROOT / "pretrain" / "loop.py").read_text())))
    assert any(m.startswith("pretrain.objective") for m in modules)
    forbidden = ("pretrain.methods", "pretrain.teachers", "eval")
    assert not [m for m in modules if m.startswith(forbidden)]


def test_mmsegmentation_has_one_door() -> None:
    behind = {"mmseg", "mmengine", "mmcv", "cv2"}
    importing = {
        name_of(path).rpartition("/")[0]
        for path in FILES
        if {room_of(module) for module in imports(ast.parse(path.read_text()))} & behind
    }
    assert importing == {"eval/segmentation"}


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_short_files_and_functions(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert path.stem not in {"utils", "util", "misc", "helpers", "common"}
    assert len(source.splitlines()) <= MOST_LINES
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: n for f in functions if (n := _lines(f)) > MOST_FUNCTION_LINES}
    assert not long


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_the_builtin_eval_is_never_rebound(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            rebinding = [a.name for a in node.names if room_of(a.name) == "eval" and not a.asname]
            assert not rebinding, "write: from eval.x import y"
