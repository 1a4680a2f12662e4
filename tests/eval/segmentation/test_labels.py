"""Lists of classes: the forms there are, which one is ADE20K's, and what is refused."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from segsets import THREE, ade20k_names

from eval.segmentation import colours
from eval.segmentation.colours import ade20k_facts, distinct_colours
from eval.segmentation.labels import Labels, read_labels
from zoo.errors import DataError

FORMS = {
    "classes.txt": "sky\nroad\ncar\n",
    "objectInfo3.txt": "Idx\tRatio\tName\n1\t0.5\tsky\n2\t0.3\troad\n3\t0.2\tcar\n",
    "objectInfo3.csv": "Idx,Ratio,Name\n1,0.5,sky\n2,0.3,road\n3,0.2,car\n",
}
"""The same three classes."""


def read(root: Path, files: dict[str, str | bytes]) -> Labels:
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (root / name).write_bytes(data)
    return read_labels(root)


def refused(root: Path, files: dict[str, str | bytes]) -> DataError:
    with pytest.raises(DataError) as caught:
        read(root, files)
    assert caught.value.fix
    assert str(root) in caught.value.where
    return caught.value


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("change", ["", "crlf", "bom", "no last line end", "blank end"])
def test_the_three_forms_say_the_same(tmp_path: Path, name: str, change: str) -> None:
    text = FORMS[name]
    if change == "crlf":
        text = text.replace("\n", "\r\n")
    text = {"no last line end": text.rstrip("\n"), "blank end": text + "\n\n"}.get(change, text)
    found = read(tmp_path, {name: ("\ufeff" if change == "bom" else "") + text})
    assert found.names == found.synonyms == THREE
    assert len(found) == 3
    assert found.source == tmp_path / name
    assert not found.is_ade20k
    assert np.array_equal(found.palette, distinct_colours(3))
    other = tmp_path / "other"
    other.mkdir()
    assert found.digest == read(other, {"classes.txt": FORMS["classes.txt"]}).digest


def test_columns_and_rows_in_any_order(tmp_path: Path) -> None:
    text = "NAME, idx ,Stuff\ncar,3,0\nsky,1,1\nroad,02,1\n"
    assert read(tmp_path, {"ObjectInfo.CSV": text}).names == THREE


def test_lists_that_agree_may_lie_together(tmp_path: Path) -> None:
    colours_too = "Idx\tColor\tName\n1\t#0a0b0c\tsky\n2\t#FF0000\troad\n3\t#00ff00\tcar\n"
    found = read(tmp_path, {**FORMS, "objectInfo3.txt": colours_too})
    assert found.source.name == "objectInfo3.csv"
    assert found.palette.tolist() == [[10, 11, 12], [255, 0, 0], [0, 255, 0]]
    assert found.palette.dtype == np.uint8


@pytest.mark.parametrize(("other", "place"), [("sky\nroad\nbus\n", 3), ("sky\n", 2)])
def test_lists_that_differ_are_refused(tmp_path: Path, other: str, place: int) -> None:
    error = refused(tmp_path, {**FORMS, "classes.txt": other})
    assert f"from class {place} on" in error.what
    assert "objectInfo3.csv and classes.txt" in error.where


def test_names_are_first_synonyms(tmp_path: Path) -> None:
    text = (
        'Idx,Name\n1,"building, edifice"\n2,plant;flora\n3,"screen, door"\n4,"screen, projector"\n'
    )
    found = read(tmp_path, {"objectInfo.csv": text})
    # Two begin the same, and are shown in full.
    assert found.names == ("building", "plant", "screen, door", "screen, projector")
    assert found.synonyms[0] == "building, edifice"


def test_separators_do_not_make_another_list(tmp_path: Path) -> None:
    tabs, commas = tmp_path / "tabs", tmp_path / "commas"
    tabs.mkdir()
    commas.mkdir()
    one = read(tabs, {"objectInfo.txt": "Idx\tName\n1\tpool table, billiard table\n2\tsky\n"})
    two = read(commas, {"objectInfo.csv": "Idx,Name\n1,pool;table;billiard;table\n2,sky\n"})
    assert one.digest == two.digest
    assert one.digest != read(tabs, {"objectInfo.txt": "Idx\tName\n1\tpool\n2\tsky\n"}).digest


def ade20k_table(separator: str, between: str) -> str:
    """As published: the .csv has ``;`` also where a name has a space."""
    rows = [["Idx", "Ratio", "Train", "Val", "Name"]]
    for number, name in enumerate(ade20k_names(), 1):
        rows.append([str(number), "0.1", "1", "1", f"{name} x, thing".replace(", ", between)])
        if between == ";":
            rows[-1][-1] = rows[-1][-1].replace(" ", between)
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows(rows)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["objectInfo150.txt", "objectInfo150.csv", "classes.txt"])
def test_ade20k_is_recognised_in_every_form(tmp_path: Path, form: str) -> None:
    text = {
        "objectInfo150.txt": ade20k_table("\t", ", "),
        "objectInfo150.csv": ade20k_table(",", ";"),
        "classes.txt": "\n".join(ade20k_names()),
    }
    found = read(tmp_path, {form: text[form]})
    facts = ade20k_facts()
    assert facts is not None
    assert found.is_ade20k
    assert found.names == facts[0]
    assert len(set(found.names)) == 150
    assert np.array_equal(found.palette, facts[1])
    assert read(tmp_path, dict(text)).digest == found.digest


def test_ade20k_in_another_order_is_not_ade20k(tmp_path: Path) -> None:
    names = list(ade20k_names())
    names[3], names[4] = names[4], names[3]
    found = read(tmp_path, {"classes.txt": "\n".join(names)})
    assert not found.is_ade20k
    assert found.names == tuple(names)


def test_ade20k_without_mmsegmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ade20k_table(",", ";")
    monkeypatch.setattr(colours, "find_spec", lambda name: None)
    ade20k_facts.cache_clear()
    try:
        found = read(tmp_path, {"objectInfo150.csv": text})
    finally:
        monkeypatch.undo()
        ade20k_facts.cache_clear()
    assert found.is_ade20k
    assert len(set(found.names)) == 150
    assert np.array_equal(found.palette, distinct_colours(150))
    assert ade20k_facts() is not None


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("", "no table of classes"),
        ("Idx,Name\n", "0 classes"),
        ("Idx;Name\n1;sky\n", "no table of classes"),
        ("Idx,Label\n1,sky\n", "no table of classes"),
        ("Idx,Name,name\n1,sky,sky\n", "no table of classes"),
        ("Idx,Name\n0,other\n1,sky\n", "no number of a class: '0'"),
        ("Idx,Name\n1,sky\n3,car\n", "none has number 2"),
        ("Idx,Name\n1,sky\n1,car\n", "class 1 twice"),
        ("Idx,Name\n-1,sky\n", "no number of a class: '-1'"),
        ("Idx,Name\n1.0,sky\n", "no number of a class: '1.0'"),
        ("Idx,Name\n١,sky\n", "no number of a class"),
        ("Idx,Name\n1,\n", "an empty name"),
        ("Idx,Name\n1,;\n", "an empty name"),
        ("Idx,Name\n1,sky\n2,sky\n", "'sky' twice"),
        ("Idx,Name\n1,pool;table\n2,pool table\n", "'pool table' twice"),
        ("Idx,Name\n1,sky\x07\n", "cannot be printed"),
        ('Idx,Name\n1,"sky\nblue"\n', "cannot be printed"),
        ("Idx,Name\n1,sky\0\n", "cannot be printed"),
        (f"Idx,Name\n1,{'x' * 201}\n", "201 characters"),
        ("Idx,Name\n1,road, wet\n", "3 fields where the first line has 2"),
        ('Idx,Name\n1,"sky\n', "no table"),
        (f"Idx,Name\n1,{'x' * 200_000}\n", "no table"),
        ("Idx,Name,Color\n1,sky,red\n", "no colour: 'red'"),
        ("Idx,Name,Color\n1,sky,#12345\n", "no colour"),
        (b"Idx,Name\n1,caf\xe9\n", "not UTF-8, at byte 14"),
        ("Idx,Name\n1,sky\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, table: str | bytes, what: str) -> None:
    assert what in refused(tmp_path, {"objectInfo.csv": table}).what


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("", "a line without a class", 1),
        ("\nsky\n", "a line without a class", 1),
        ("sky\n\ncar\n", "a line without a class", 2),
        ("sky\n# things\ncar\n", "a comment: '# things'", 2),
        ("sky\nsky\n", "'sky' twice", 0),
    ],
)
def test_plain_lists_that_are_refused(tmp_path: Path, text: str, what: str, line: int) -> None:
    error = refused(tmp_path, {"classes.txt": text})
    assert what in error.what
    assert not line or error.where.endswith(f"line {line}")


def test_a_mask_has_room_for_254_classes(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(1, 256)]
    assert len(read(tmp_path, {"classes.txt": "\n".join(names[:254])})) == 254
    assert "255 classes" in refused(tmp_path, {"classes.txt": "\n".join(names)}).what


def test_a_set_without_a_list(tmp_path: Path) -> None:
    error = refused(tmp_path, {".classes.txt": "sky", "sceneCategories.txt": "x"})
    assert "no list of classes" in error.what
    assert "classes.txt" in error.fix
    (tmp_path / "classes.txt").mkdir()
    assert "no list of classes" in refused(tmp_path, {}).what
    assert "cannot be read" in refused(tmp_path / "nowhere", {}).what


PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)
WORDS = PRINTABLE.filter(lambda word: not set(word) & set(';,#"\ufeff'))
LISTS = st.lists(WORDS, min_size=1, max_size=20, unique=True)
ON_ONE_FOLDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)


@ON_ONE_FOLDER
@given(names=LISTS, form=st.sampled_from(["classes.txt", "objectInfo.csv", "objectInfo.txt"]))
def test_what_was_written_is_read(tmp_path: Path, names: list[str], form: str) -> None:
    folder = tmp_path / form.replace(".", "-")
    folder.mkdir(exist_ok=True)
    buffer = io.StringIO()
    if form == "classes.txt":
        buffer.write("\n".join(names))
    else:
        writer = csv.writer(buffer, delimiter="," if form.endswith("csv") else "\t")
        writer.writerows([("Idx", "Name"), *enumerate(names, 1)])
    found = read(folder, {form: buffer.getvalue()})
    assert found.names == tuple(names)
    assert found.palette.shape == (len(names), 3)


@ON_ONE_FOLDER
@given(
    content=st.binary(max_size=80) | st.text(max_size=80).map(lambda t: t.encode(errors="replace")),
    head=st.sampled_from(
        [b"", b"Idx,Name\n", b"Idx\tName\n1\tsky\n", b"\xef\xbb\xbfIdx,Name,Color\n"]
    ),
    form=st.sampled_from(["classes.txt", "objectInfo.csv", "objectInfo.txt"]),
)
def test_anything_is_a_list_or_refused(
    tmp_path: Path, content: bytes, head: bytes, form: str
) -> None:
    folder = tmp_path / form.replace(".", "-")
    folder.mkdir(exist_ok=True)
    (folder / form).write_bytes(head + content)
    found = error = None
    try:
        found = read_labels(folder)
    except DataError as caught:
        error = caught
    if found is not None:
        assert 1 <= len(found) == len(set(found.names)) <= 254
        assert all(name.isprintable() and name.strip() for name in found.names)
    else:
        assert error is not None
        assert error.fix
        assert "\n" not in error.what + error.where
