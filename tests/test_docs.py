"""The docs say what there is: every verb, recipe, exit code and folder, and nothing that is not."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from pretrain.recipe import list_recipes
from zoo.cli import app
from zoo.errors import Exit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_every_verb_is_in_the_readme() -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert len(verbs) >= 3
    assert [verb for verb in verbs if f"zoo {verb}" not in README] == []


def test_the_readme_lists_the_recipes_as_they_are() -> None:
    block = README.partition("$ zoo pretrain --list\n")[2].partition("```")[0]
    assert [line.split()[0] for line in block.splitlines()] == list_recipes()


def test_every_top_level_folder_is_in_the_readme() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    folders = [*wheel["targets"]["wheel"]["packages"], "tests", "benchmarks", "docs"]
    assert len(folders) == 7
    assert [name for name in folders if f"`{name}/`" not in README] == []


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "pretrain.md").read_text()
    assert [code for code in Exit if not re.search(rf"\| [\d, ]*\b{int(code)}\b", page)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_benchmark_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    names = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__"]
    assert len(names) >= 4
    assert [name for name in names if f"benchmarks.{name}" not in page] == []


def test_commands_in_the_docs_name_recipes_that_exist() -> None:
    known = {*list_recipes(), "NAME"}
    named = {
        name
        for page in PAGES
        for name in re.findall(r"zoo pretrain ([a-z][\w-]*|NAME)", page.read_text())
    }
    assert len(named) >= 4
    assert named <= known
