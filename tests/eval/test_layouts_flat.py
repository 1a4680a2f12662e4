"""Validation images in one folder: which maps are read, and what is said where there is none."""

import csv
import io
from pathlib import Path

import pytest
from evalsets import SMALL, SYNSETS, THREE, flat_files, picture, val_files, val_pairs, write_tree
from hypothesis import given
from hypothesis import strategies as st

from eval.layouts import EvalSet, open_eval_set
from eval.layouts.flat import synset_in_name
from zoo.errors import DataError

PAIRS = val_pairs()
LABEL = {f"{name}.JPEG": SYNSETS.index(synset) for name, synset in PAIRS}


def kaggle(pairs: list[tuple[str, str]] = PAIRS) -> str:
    """With a box for each object, as Kaggle has it."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["ImageId", "PredictionString"])
    for i, (name, synset) in enumerate(pairs):
        rows.writerow([name, " ".join([f"{synset} 1 2 30 40"] * (1 + i % 3)) + " "])
    return text.getvalue()


def caffe(order: tuple[str, ...] = SYNSETS) -> str:
    return "".join(f"{name}.JPEG {order.index(synset)}\n" for name, synset in PAIRS)


def script() -> str:
    folders = "".join(f"mkdir -p {synset}\n" for synset in THREE)
    return folders + "".join(f"mv {name}.JPEG {synset}/\n" for name, synset in PAIRS)


def one_a_line() -> str:
    """TensorFlow's list: the class of every image by number, of those we have rightly so."""
    lines = [SYNSETS[0]] * 50_000
    for name, synset in PAIRS:
        lines[int(name[-8:]) - 1] = synset
    return "\n".join(lines) + "\n"


MAPS = {
    "LOC_val_solution.csv": kaggle(),
    "imagenet_2012_validation_synset_labels.txt": one_a_line(),
    "val.txt": caffe(),
    "valprep.sh": script(),
}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "val", flat_files())


def assert_right(found: EvalSet) -> None:
    assert found.complete
    assert {found.where(i): int(label) for i, label in enumerate(found.labels)} == LABEL
    assert [found.basename(i) for i in range(len(found))] == sorted(LABEL)


def refused(data: Path, **options: bool) -> DataError:
    with pytest.raises(DataError) as caught:
        open_eval_set(data, "in1k-val", due=SMALL, **options)
    assert caught.value.fix
    assert caught.value.where
    return caught.value


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("place", ["val", ""])
def test_a_map_beside_the_images(flat: Path, name: str, place: str) -> None:
    (flat.parent / place / name).write_text(MAPS[name])
    assert_right(open_eval_set(flat, "in1k-val", due=SMALL))
    assert_right(open_eval_set(flat.parent, "in1k-val", due=SMALL))


@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val"])
def test_the_tree_of_kaggle(tmp_path: Path, given: str) -> None:
    write_tree(tmp_path / "ILSVRC/Data/CLS-LOC/val", flat_files())
    write_tree(tmp_path / "ILSVRC/Data/CLS-LOC/train", {f"{THREE[0]}/x.JPEG": picture(0)})
    (tmp_path / "LOC_val_solution.csv").write_text(kaggle())
    assert_right(open_eval_set(tmp_path / given, "in1k-val", due=SMALL))


def test_without_a_map(flat: Path) -> None:
    error = refused(flat)
    assert "nothing says which is of which class" in error.what
    assert "LOC_val_solution.csv" in error.fix


def test_names_may_carry_the_class(tmp_path: Path) -> None:
    """As in the Hub's archive of the validation images."""
    files = {
        name.partition("/")[2].replace(".JPEG", f"_{name[:9]}.JPEG"): data
        for name, data in val_files().items()
    }
    found = open_eval_set(write_tree(tmp_path / "val", files), "in1k-val", due=SMALL)
    assert found.complete
    assert {found.basename(i): int(label) for i, label in enumerate(found.labels)} == LABEL


@given(st.text(), st.sampled_from(SYNSETS))
def test_a_synset_in_a_name(stem: str, synset: str) -> None:
    assert synset_in_name(f"{synset}_{stem}.JPEG".encode(errors="replace")) == synset
    assert synset_in_name(f"{stem}.jpg".encode(errors="replace")) in {
        None,
        stem[:9],
        stem[-9:],
    } or ("n" in stem)


def test_the_order_of_ilsvrc_is_refused(flat: Path) -> None:
    path = flat.parent / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("490\n361\n171\n" * 3)
    for extra in ("none", "meta.mat"):
        (flat.parent / extra).write_bytes(b"MATLAB")
        error = refused(flat)
        assert "an order of ILSVRC's own" in error.what
        assert error.where == str(path)
        assert "map_clsloc.txt" in error.fix
        assert "meta.mat" in error.fix


def test_the_order_of_ilsvrc_with_its_map(flat: Path) -> None:
    kit = flat.parent / "ILSVRC2015_devkit" / "data"
    numbers = {synset: 1000 - i for i, synset in enumerate(SYNSETS)}
    lines = [str(numbers[synset]) for synset in one_a_line().split()]
    order = "".join(f"{synset} {n} some_name\n" for synset, n in numbers.items())
    name = "ILSVRC2015_clsloc_validation_ground_truth.txt"
    write_tree(kit, {name: "\n".join(lines).encode(), "map_clsloc.txt": order.encode()})
    assert_right(open_eval_set(flat, "in1k-val", due=SMALL))
    (kit / "map_clsloc.txt").write_text("".join(order.splitlines(keepends=True)[1:]))
    assert "each of ImageNet's 1,000 synsets once" in refused(flat).what


def test_labels_of_another_order_are_noticed(flat: Path) -> None:
    """A list in the order of ILSVRC under the name of a good one: its counts are right."""
    turned = (*SYNSETS[::-1],)
    due_labels = {synset: THREE[(i + 1) % 3] for i, synset in enumerate(THREE)}
    lines = [f"{name}.JPEG {SYNSETS.index(due_labels[synset])}\n" for name, synset in PAIRS]
    (flat / "val.txt").write_text("".join(lines))
    assert "the classes are permuted: 0.0%" in refused(flat).what
    (flat / "val.txt").write_text(caffe(turned))
    assert refused(flat, partial=True)


def test_a_class_map_says_what_numbers_mean(flat: Path) -> None:
    """timm's: a synset a line, the line is the number."""
    turned = (*SYNSETS[::-1],)
    (flat / "val.txt").write_text(caffe(turned))
    (flat / "class_map.txt").write_text("\n".join(turned))
    assert_right(open_eval_set(flat, "in1k-val", due=SMALL))
    (flat / "class_map.txt").write_text("\n".join(turned[:-1]))
    assert "1,000 synsets once" in refused(flat).what


def test_a_list_of_classes_is_no_map_of_images(flat: Path) -> None:
    (flat / "val.txt").write_text("\n".join(SYNSETS))
    assert "the order of the 1,000 classes" in refused(flat).what


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("LOC_val_solution.csv", kaggle(PAIRS[:-1]), "no class for ILSVRC2012_val_"),
        ("LOC_val_solution.csv", kaggle([*PAIRS, (PAIRS[0][0], THREE[2])]), "contradicts"),
        ("LOC_val_solution.csv", f"ImageId,P\n{PAIRS[0][0]},\n", "line 2"),
        ("LOC_val_solution.csv", f"{PAIRS[0][0]},{THREE[0]} 1 1 1 1 {THREE[1]} 1\n", "line 1"),
        ("LOC_val_solution.csv", f"{PAIRS[0][0]},{'n' * 200_000}\n", "cannot be read"),
        ("val.txt", caffe() + "ILSVRC2012_val_00000001.JPEG 1000\n", "'1000', which is no class"),
        ("val.txt", caffe() + "ILSVRC2012_val_00000001.JPEG -1\n", "is not an image and its class"),
        ("val.txt", caffe() + "ILSVRC2012_val_00050001.JPEG 1\n", "image 50001"),
        ("val.txt", caffe() + "ILSVRC2012_val_00000000.JPEG 1\n", "image 0"),
        ("val.txt", caffe() + "ILSVRC2012_val_00000001.JPEG tench\n", "is not an image"),
        ("val.txt", "", "no class for ILSVRC2012_val_"),
        ("val.txt", "\0\udcff", "cannot be read"),
        ("valprep.sh", script() + "mv ILSVRC2012_val_00000001.JPEG n99999999/\n", "n99999999"),
    ],
)
def test_bad_maps(flat: Path, name: str, text: str, what: str) -> None:
    (flat / name).write_text(text, errors="surrogateescape")
    error = refused(flat)
    assert what in error.what
    assert str(flat / name) in error.where


def test_other_names_without_folders(tmp_path: Path) -> None:
    error = refused(write_tree(tmp_path / "val", {**flat_files(), "cat.jpg": picture(0)}))
    assert "cat.jpg" in error.what


def test_names_of_no_class(tmp_path: Path) -> None:
    error = refused(write_tree(tmp_path / "val", {"n99999999_1.JPEG": picture(0)}))
    assert "n99999999" in error.what
