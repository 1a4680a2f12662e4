"""The table in its five forms: what is written can be read back, and nothing in it is obeyed."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from resultfiles import result

from eval.benchmarks import benchmarks
from eval.result_files import Found
from eval.table import Cell, make_cells
from eval.table_page import (
    as_dict,
    csv_table,
    csv_text,
    digits_of,
    html,
    markdown,
    markdown_text,
    signed,
    text,
    write,
)
from zoo.catalog import load_catalog
from zoo.errors import UsageError

NASTY = """x|y <b>"q"</b> & 'z' `c` *e* _f_ [l](http://a.b) \\| $m$ ~~s~~ https://a.b"""
MARKS = st.text("|<>&\"'`*_[]()\\#~$!ab .=+-@", min_size=1, max_size=30)


@pytest.fixture(autouse=True)
def _no_catalog_of_ones_own(settings: Any) -> None: ...


def cells(*names: str) -> list[Cell]:
    digest = benchmarks()["in1k-val@1"].digest
    found = [
        Found(
            result=result(model=name, model_digest=f"{n:064x}", protocol_digest=digest, value=82.5),
            file=Path(f"{n}.json"),
        )
        for n, name in enumerate(names)
    ]
    return make_cells(found, load_catalog().models)


class Cells(HTMLParser):
    """The texts of a page's table cells, and every tag in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag in {"td", "th"}:
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self.texts.append("")


def rendered(source: str) -> Cells:
    return Cells(MarkdownIt("gfm-like", {"linkify": False}).render(source))


def test_the_terminals_table() -> None:
    lines = text(cells("tinymim-vit-s", "mine")).splitlines()
    assert lines[:5] == [
        "in1k-val@1 · top-1, %",
        "model                  ours  published       difference  images",
        "mine           82.50 ± 0.17          –                –  50,000",
        "tinymim-vit-s  82.50 ± 0.17       83.0  −0.50 (−2.1 SE)  50,000",
        "    published: TinyMIM Table 3, 224 px",
    ]
    assert max(map(len, lines)) <= 100


def test_what_became_of_a_protocol_is_said_in_every_form() -> None:
    found = [Found(result=result(protocol="old-one@1"), file=Path("a.json"))]
    old = make_cells(found, {})
    told = "a protocol that this version of tinyzoo does not know"
    assert text(old).splitlines()[1].strip() == told
    pages = [markdown(old), csv_table(old), html(old), json.dumps(as_dict(old, []))]
    assert [page.count(told) for page in pages] == [1, 1, 1, 1]
    assert "A difference" not in text(old)


def test_long_names_are_cut_at_the_front() -> None:
    lines = text(cells("somebody/" + "a" * 80 + "-stage", "b")).splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("…aaa") and "-stage  " in line for line in lines)


def test_markdown_reads_back() -> None:
    page = rendered(markdown(cells("tinymim-vit-s", NASTY)))
    assert "tinymim-vit-s" in page.texts
    assert "−0.50 (−2.1 SE)" in page.texts
    assert "published: TinyMIM Table 3, 224 px" in page.texts
    assert [t.replace("\u200b", "") for t in page.texts].count(NASTY) == 1
    assert page.tags == {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td"}


@given(MARKS)
def test_nothing_in_a_cell_is_markup(words: str) -> None:
    page = rendered(f"| a | b |\n|---|---|\n| {markdown_text(words)} | end |\n")
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert [t.replace("\u200b", "") for t in page.texts if t.strip()] == [
        t for t in ("a", "b", words.strip(), "end") if t
    ]


def test_names_of_networks_stay_readable_in_markdown() -> None:
    assert markdown_text("vit_base_patch16_224.mae") == "vit_base_patch16_224.mae"


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_table(cells("tinymim-vit-s", NASTY)))))
    by_name = {row["model"]: row for row in rows}
    assert by_name.keys() == {"tinymim-vit-s", NASTY}
    row = by_name["tinymim-vit-s"]
    assert (float(row["value"]), float(row["published_value"])) == (82.5, 83.0)
    assert float(row["difference"]) == -0.5
    assert json.loads(row["transform"])["image_size"] == 224
    assert (row["compared"], row["samples"], row["file"]) == ("True", "50000", "0.json")
    assert by_name[NASTY]["published_value"] == by_name[NASTY]["difference"] == ""


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "＝1", "\n=1"])
def test_a_text_is_no_formula(start: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_text([{"a": start, "b": -1.5}], ["a", "b"])))
    assert row == {"a": f"'{start}", "b": "-1.5"}


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_any_text_survives_csv(words: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_text([{"a": words, "b": 0}], ["a", "b"]), newline=""))
    assert row["a"] in (words, f"'{words}")
    assert not re.match(r"\s*[=+\-@]", row["a"])


def test_json_says_all_of_it() -> None:
    record = json.loads(json.dumps(as_dict(cells("tinymim-vit-s"), ["a note"]), allow_nan=False))
    (cell,) = record["cells"]
    assert record["notes"] == ["a note"]
    assert cell["published"] == [{"value": 83.0, "source": "TinyMIM Table 3", "image_size": 224}]
    assert cell["difference"] == pytest.approx(-0.5)
    assert cell["difference_in_standard_errors"] == pytest.approx(-2.09207, rel=1e-5)
    due = {"protocol", "protocol_digest", "model_digest", "data_fingerprint", "code_version"}
    assert due <= cell.keys()


def test_the_page_needs_nothing_but_itself_and_obeys_nothing() -> None:
    source = html(cells("tinymim-vit-s", NASTY, "<script>alert(1)</script>"))
    page = Cells(source)
    assert NASTY in page.texts
    assert "<script>alert(1)</script>" in page.texts
    assert "published: TinyMIM Table 3, 224 px" in page.texts
    assert not page.tags & {"script", "b", "a", "img", "link", "iframe"}
    assert "default-src 'none'" in source
    assert not re.search(r'(?:src|href)\s*=\s*"(?!data:)', source)


@pytest.mark.parametrize("name", ["t.md", "t.json", "t.csv", "t.html", "T.MD"])
def test_the_files_ending_says_its_form(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, cells("tinymim-vit-s"), [])
    first = (tmp_path / name).read_text("utf-8")
    start = {".md": "# Results", ".json": "{", ".csv": "protocol,", ".html": "<!DOCTYPE html>"}
    assert first.startswith(start[Path(name).suffix.lower()])
    write(tmp_path / name, cells("tinymim-vit-s"), [])
    assert (tmp_path / name).read_text("utf-8") == first


@pytest.mark.parametrize("name", ["t", "t.xls", "t.md.bak", ".md"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no kind of file"):
        write(tmp_path / "out" / name, cells("a"), [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "digits"), [(None, 2), (0.0, 2), (0.2, 2), (0.015, 2), (0.004, 3), (0.0003, 4)]
)
def test_an_error_shows_a_digit_that_is_not_zero(error: float | None, digits: int) -> None:
    assert digits_of(error) == digits


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "+0.50"), (-0.5, "−0.50"), (0.0, "0.00"), (-0.001, "0.00")]
)
def test_signs(value: float, shown: str) -> None:
    assert signed(value, 2) == shown
