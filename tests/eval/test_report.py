"""Pages that need nothing but themselves, and figures that refuse what they cannot show."""

import base64
import re
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from eval.report import Page, Relation, Scale, Table, bars, curves, relation_maps, save_png


def _relation(grid: int = 4, query: tuple[int, int] = (1, 2)) -> Relation:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    maps = {name: rng.random((grid, grid)) for name in ("teacher", "student")}
    return Relation(image_HW3=image, query=query, maps=maps)


def _page() -> Page:
    page = Page("A zoo", "of small networks")
    page.heading("Scores").text("One.", "Two.")
    page.table(Table(columns=["name", "%"], rows=[["a", "1.0"], ["b", "2.0"]], highlight=[1]))
    page.figure(curves({"a": ([0, 1], [2.0, 1.0])}, ylabel="loss"), "Loss.", "It falls.")
    page.figure(bars({"a": 1.0, "b": -2.0}, xlabel="%", errors={"b": 0.5}), "Bars.", "Two bars.")
    return page.figure(relation_maps([_relation(), _relation(8, (7, 0))]), "Maps.", "Heat maps.")


def _images(html: str) -> list[tuple[str, bytes]]:
    found = re.findall(r'<img src="data:image/([a-z+]+);base64,([^"]+)"', html)
    return [(kind, base64.b64decode(data)) for kind, data in found]


def test_page_is_self_contained():
    html = _page().html()
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[^\"]+", "", html))
    sources = re.findall(r'(?:src|href|srcset|action|data)\s*=\s*["\']?([^"\'>]*)', html)
    assert len(sources) == 3
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<script|<link|<iframe|@import|url\(|\son\w+=", html)
    assert "default-src 'none'" in html


def test_figures_are_embedded_with_size_and_alt():
    html = _page().html()
    images = _images(html)
    assert [kind for kind, _ in images] == ["svg+xml", "svg+xml", "png"]
    assert images[0][1].startswith(b"<?xml")
    assert images[2][1].startswith(b"\x89PNG")
    assert re.findall(r'alt="([^"]*)"', html) == ["It falls.", "Two bars.", "Heat maps."]
    assert len(re.findall(r'width="\d+" height="\d+"', html)) == 3
    # An SVG may name its vocabularies, and fetch nothing.
    for _, svg in images[:2]:
        assert not re.search(rb'href="(?!#|data:)', svg)


def test_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a.html", "b.html"):
        _page().write(tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text() == _page().html()


def test_markup_is_shown_not_obeyed():
    evil = '<script>alert("1")</script>&'
    page = Page(evil, evil).heading(evil).text(evil)
    page.table(Table(columns=[evil, evil], rows=[[evil, evil]], caption=evil))
    html = page.figure(bars({"<b>": 1.0}, xlabel="%"), evil, evil).html()
    assert "<script" not in html
    assert 'alert("1")' not in html
    # Title twice; the table's caption is its label, too.
    assert html.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;") == 13


def test_table_marks_heads_sides_and_highlight():
    table = Table(columns=["n", "%", "note"], rows=[["a", "1", "x"], ["b", "2", "y"]])
    html = Page("t").table(table).html()
    assert html.count('<th scope="col"') == 3
    assert html.count('<th scope="row" class="left">') == 2
    assert html.count('<td class="right">') == 4
    assert 'class="highlight"' not in html
    table = Table(
        columns=["n", "note"], rows=[["a", "x"]], sides=["left", "left"], highlight=[0], caption="C"
    )
    html = Page("t").table(table).html()
    assert (
        '<tr class="highlight"><th scope="row" class="left">a</th><td class="left">x</td>' in html
    )
    assert "<figcaption>C</figcaption>" in html


def test_a_note_stands_below_its_row():
    rows = [["a", "1"], ["b", "2"]]
    html = Page("t").table(Table(columns=["n", "%"], rows=rows, notes=["<i>why</i>", ""])).html()
    assert html.count('<tr class="note">') == html.count('<tr class="noted">') == 1
    below = html.partition('<tr class="noted">')[2].partition("</tr>")[2].lstrip()
    assert below.startswith('<tr class="note"><td colspan="2"><div>&lt;i&gt;why&lt;/i&gt;</div>')


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": [["a"]]},
        {"rows": [["a", "1", "2"]]},
        {"rows": [["a", "1"]], "sides": ["left"]},
        {"rows": [["a", "1"]], "highlight": [1]},
        {"rows": [["a", "1"]], "notes": ["x", "y"]},
    ],
)
def test_crooked_table_is_refused(wrong):
    with pytest.raises(ValueError):
        Table(columns=["name", "%"], **wrong)


def test_curves_carry_their_names_and_gaps():
    series = {f"loss {k}": ([0, 1, 2], [1.0, float("nan"), 2.0 + k]) for k in range(9)}
    figure = curves(series, ylabel="loss", log_y=True)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == list(series)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(series)
    looks = {(str(line.get_color()), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 9
    assert (axes.get_yscale(), axes.get_ylabel(), axes.get_xlabel()) == ("log", "loss", "step")
    Page("t").figure(figure, "", "")
    assert not curves({"a": ([0], [1.0])}, ylabel="loss").legends


def test_bars_are_written_with_their_values():
    figure = bars({"a": 61.25, "b": -3.0}, xlabel="%", errors={"a": 1.5}, highlight=["a"])
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.texts] == ["61.2 ± 1.5", "\N{MINUS SIGN}3.0"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()
    left, right = axes.get_xlim()
    assert left < -3 < 61.25 < right
    # The first bar is on top, and bars start at zero.
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert bars({"a": 50.0, "b": 51.0}, xlabel="%").axes[0].get_xlim()[0] == 0


def test_relation_maps_mark_the_query_in_every_panel():
    figure = relation_maps([_relation(), _relation(8, (7, 0))])
    assert len(figure.axes) == 2 * 3
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "teacher", "student"]
    for axes in figure.axes[:3]:
        assert axes.patches[0].get_bbox().bounds == (15.5, 7.5, 8, 8)  # type: ignore[attr-defined]
    for axes in figure.axes[3:]:
        assert axes.patches[0].get_bbox().bounds == (-0.5, 27.5, 4, 4)  # type: ignore[attr-defined]


def test_relation_map_is_brightest_where_the_relation_is_greatest():
    relation = _relation()
    map_GG = np.zeros((4, 4))
    map_GG[2, 3] = 1e-3
    figure = relation_maps(
        [Relation(image_HW3=relation.image_HW3, query=(0, 0), maps={"t": map_GG})]
    )
    light_GG = np.asarray(figure.axes[1].images[0].get_array()).mean(-1)
    light_GG = light_GG.reshape(4, 8, 4, 8).mean((1, 3))
    assert np.unravel_index(light_GG.argmax(), (4, 4)) == (2, 3)
    constant = Relation(image_HW3=relation.image_HW3, query=(0, 0), maps={"t": np.ones((4, 4))})
    Page("t").figure(relation_maps([constant]), "", "")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: curves({}, ylabel="loss"),
        lambda: curves({"a": ([0, 1], [1.0])}, ylabel="loss"),
        lambda: bars({}, xlabel="%"),
        lambda: bars({"a": 1.0}, xlabel="%", errors={"b": 1.0}),
        lambda: bars({"a": 1.0}, xlabel="%", highlight=["b"]),
        lambda: relation_maps([]),
        lambda: relation_maps([_relation(query=(4, 0))]),
        lambda: relation_maps([_relation(query=(-1, 0))]),
        lambda: relation_maps(
            [
                Relation(
                    image_HW3=np.zeros((8, 8, 3), np.uint8), query=(0, 0), maps={"a": np.ones(4)}
                )
            ]
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw):
    with pytest.raises(ValueError):
        draw()


def test_drawing_leaves_no_global_state():
    before = dict(mpl.rcParams)
    _page().html()
    assert dict(mpl.rcParams) == before
    code = "import sys; from eval.report import Page; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_scale_means_one_colour_for_one_value():
    low, high = np.full((4, 4), 0.5), np.eye(4)
    shown = [
        Relation(image_HW3=np.zeros((8, 8, 3), np.uint8), query=(0, 0), maps={"a": one, "b": two})
        for one, two in ((low, high), (high, -high))
    ]
    figure = relation_maps(shown, scale=Scale(low=-1, high=1, label="cosine"))
    *panels, bar = figure.axes
    assert len(panels) == 2 * 3
    assert bar.get_xlabel() == "cosine"
    assert bar.get_xlim() == (-1, 1)
    flat, eye, same, negative = (np.asarray(panels[i].images[0].get_array()) for i in (1, 2, 4, 5))
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1  # uniform is shown as uniform
    assert np.array_equal(eye, same)
    red, blue = eye[0, 0], negative[0, 0]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert eye[0, -1].min() > 0.9  # zero is white
    Page("t").figure(figure, "", "")


def test_each_map_may_have_a_query_and_a_grid_of_its_own(tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    queries = {"a": (0, 0), "b": (1, 3)}
    one_grid = Relation(image_HW3=image, query=queries, maps=dict.fromkeys("ab", np.eye(4)))
    figure = relation_maps([one_grid])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "2"]
    assert [len(axes.patches) for axes in figure.axes] == [4, 2, 2]
    assert figure.axes[2].patches[0].get_bbox().bounds == (23.5, 7.5, 8, 8)  # type: ignore[attr-defined]
    two_grids = Relation(image_HW3=image, query=queries, maps={"a": np.eye(2), "b": np.eye(4)})
    figure = relation_maps([two_grids])
    assert not figure.axes[0].texts
    assert figure.axes[1].patches[0].get_bbox().bounds == (-0.5, -0.5, 16, 16)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="several sizes"):
        relation_maps([Relation(image_HW3=image, query=(0, 0), maps=dict(two_grids.maps))])
    for name in ("maps.png", "again.png"):
        save_png(relation_maps([two_grids]), tmp_path / name)
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "maps.png").read_bytes() == (tmp_path / "again.png").read_bytes()
