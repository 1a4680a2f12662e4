"""ImageNet-C's tree of types and severities."""

from dataclasses import replace
from pathlib import Path

import pytest
from evalsets import SMALL, SYNSETS, picture, val_name, val_numbers_of, write_tar, write_tree

from eval.corruptions import EXTRA_TYPES, SEVERITIES, TYPES
from eval.layouts import open_eval_set
from zoo.errors import DataError

TWO = SYNSETS[0], SYNSETS[2]
DUE = replace(SMALL, images=2, synsets=TWO, per_class=1, types=TYPES, severities=SEVERITIES)
FAMILIES: dict[str, str] = dict(
    zip(TYPES, ["noise"] * 3 + ["blur"] * 4 + ["weather"] * 4 + ["digital"] * 4, strict=True)
)


def files(types: tuple[str, ...] = TYPES, *, families: bool = False) -> dict[str, bytes]:
    return {
        (f"{FAMILIES[kind]}/" if families else "")
        + f"{kind}/{level}/{synset}/{val_name(val_numbers_of(synset)[0])}": picture(level)
        for kind in types
        for level in SEVERITIES
        for synset in TWO
    }


def refused(data: Path, **options: bool) -> DataError:
    with pytest.raises(DataError) as caught:
        open_eval_set(data, "in1k-c", due=DUE, **options)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("families", [False, True])
def test_a_whole_tree(tmp_path: Path, families: bool) -> None:
    found = open_eval_set(write_tree(tmp_path, files(families=families)), "in1k-c", due=DUE)
    assert (found.name, found.complete, len(found)) == ("in1k-c", True, 150)
    assert len(found.groups) == 75
    assert {g[:2] for g in found.groups} == {(t, s) for t in TYPES for s in SEVERITIES}
    assert [g.start for g in found.groups] == list(range(0, 150, 2))
    for kind, level, start, stop in found.groups:
        assert found.labels[start:stop].tolist() == [0, 2]
        assert f"{kind}/{level}/{SYNSETS[0]}/" in found.where(start)
    assert found.basename(0) == val_name(val_numbers_of(SYNSETS[0])[0])


def test_the_extra_types_stand_apart(tmp_path: Path) -> None:
    write_tree(tmp_path, files((*TYPES, *EXTRA_TYPES)))
    found = open_eval_set(tmp_path, "in1k-c", due=DUE)
    assert found.complete
    assert len(found.groups) == 95
    assert {g.type for g in found.groups} - set(TYPES) == set(EXTRA_TYPES)


def test_a_missing_type_is_said_in_the_name(tmp_path: Path) -> None:
    write_tree(tmp_path, files((*TYPES[1:], *EXTRA_TYPES)))
    error = refused(tmp_path)
    assert error.what == "70 of the 75 types and severities of in1k-c are there"
    assert "gaussian_noise/1, gaussian_noise/2" in error.where
    found = open_eval_set(tmp_path, "in1k-c", due=DUE, partial=True)
    assert found.name == (
        "in1k-c (partial: 140 of 150 images, 2 of 2 classes, 70 of 75 types and severities)"
    )


def test_a_missing_image_of_one_severity(tmp_path: Path) -> None:
    tree = files()
    del tree[f"fog/3/{TWO[1]}/{val_name(val_numbers_of(TWO[1])[0])}"]
    error = refused(write_tree(tmp_path, tree))
    assert error.where == f"{tmp_path}: fog/3: missing: {TWO[1]}"
    found = open_eval_set(tmp_path, "in1k-c", due=DUE, partial=True)
    assert "149 of 150 images" in found.name


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (f"fog/6/{TWO[0]}/1.jpg", "fog/6"),
        (f"mist/1/{TWO[0]}/1.jpg", "mist/1"),
        (f"fog/{TWO[0]}/1.jpg", f"fog/{TWO[0]}"),
        ("fog/1/1.jpg", "fog/1"),
        ("1.jpg", "loose images"),
        ("fog/1/tench/1.jpg", "fog/1/tench"),
        (f"copy/fog/1/{TWO[0]}/1.jpg", "several places: fog/1"),
        (f"fog/1/{TWO[0]}/1.jpg", "3 images where"),
        (f"fog/1/{SYNSETS[1]}/1.jpg", SYNSETS[1]),
    ],
)
def test_what_does_not_fit(tmp_path: Path, name: str, what: str) -> None:
    write_tree(tmp_path, {**files(), name: picture(0)})
    error = refused(tmp_path, partial=True)
    assert what in error.what


def test_the_tars_it_is_published_in(tmp_path: Path) -> None:
    folder = open_eval_set(write_tree(tmp_path / "tree", files()), "in1k-c", due=DUE)
    for family in ("noise", "blur", "weather", "digital"):
        types = tuple(kind for kind in TYPES if FAMILIES[kind] == family)
        write_tar(tmp_path / "tars" / f"{family}.tar", files(types))
    tars = open_eval_set(tmp_path / "tars", "in1k-c", due=DUE)
    assert tars.fingerprint == folder.fingerprint
    assert tars.groups == folder.groups
    assert all((tars.read(i) == folder.read(i)).all() for i in range(0, 150, 7))
