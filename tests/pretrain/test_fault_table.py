"""The table of faults names every row there is, and tests that exist."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "reliability.md").read_text()
ROWS = [*(f"P{n}" for n in range(1, 19)), *(f"D{n}" for n in range(1, 10))]
_TEST = re.compile(r"`([\w./]+\.py)::(\w+)`(\*?)")


def rows() -> dict[str, str]:
    """By number, the cell that names a row's tests."""
    found = [re.fullmatch(r"\| ([PD]\d+) \|.*\|([^|]+)\|", line) for line in PAGE.splitlines()]
    cells = [(match[1], match[2]) for match in found if match]
    assert len(cells) == len(dict(cells)), "a row stands twice"
    return dict(cells)


def functions_of(file: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(file.read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_is_there() -> None:
    assert list(rows()) == ROWS
    for missing in ("D10", "D11"):
        assert re.search(rf"\b{missing}\b", PAGE), "say where the row is"


def test_every_row_names_tests_that_exist_and_says_which_are_slow() -> None:
    named = {row: _TEST.findall(cell) for row, cell in rows().items()}
    assert all(named.values())
    for file, test, star in _TEST.findall(PAGE):
        function = functions_of(HERE / file).get(test)
        assert function is not None, f"{file} has no {test}"
        slow = any("mark.slow" in ast.unparse(mark) for mark in function.decorator_list)
        assert slow == bool(star), f"{test}: a star is for make soak"


def test_a_row_is_shown_by_ordinary_tests_too() -> None:
    for row, cell in rows().items():
        assert any(not star for _, _, star in _TEST.findall(cell)), row
