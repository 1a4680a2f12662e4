"""The class lists and ReaL's labels: against timm's files, their digests and its own reader."""

import hashlib
import json
import subprocess
import sys
from importlib.resources import as_file, files

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.imagenet_info import ImageNetInfo
from timm.data.readers.class_map import load_class_map

from eval.classes import (
    VAL_IMAGES,
    Subset,
    class_names,
    class_of,
    columns,
    label_sets,
    real_labels,
    real_labels_of,
    real_labels_sha256,
    synsets,
    synsets_of,
    val_number,
)
from zoo.errors import DataError

INFO = files("timm.data") / "_info"
# The lists were compared with their authors' own before these digests were noted.
DIGESTS = {
    "imagenet_synsets.txt": "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
    "imagenet_a_indices.txt": "e81223a35add6e78f9afe6f215652c1926ebefe1d8efc26c6e923d7ac9143937",
    "imagenet_a_synsets.txt": "9826a24166e74ce62fb87b27889874ca26917542c745712309d6e25855d63bc2",
    "imagenet_r_indices.txt": "91e09d2ff0a002104bc0d37a892a7e75ffc2cc0db47b2b506047a3493b9116d2",
    "imagenet_r_synsets.txt": "a6a0729f7a99230280639cab6e51e01485a3b41a676ea35621a501c9d6e83ca4",
    "imagenet_real_labels.json": "d83e9bff374c631aae8439eb064c7019acc56e1b3bc3f56b8380c2a710b0220b",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_installed_lists_are_the_verified_ones(name: str) -> None:
    assert hashlib.sha256((INFO / name).read_bytes()).hexdigest() == DIGESTS[name]


def test_class_numbers_are_places_among_sorted_synsets() -> None:
    assert len(synsets()) == 1000
    assert list(synsets()) == sorted(set(synsets()))
    assert (synsets()[0], synsets()[999]) == ("n01440764", "n15075141")
    assert class_of()["n15075141"] == 999
    assert len(class_of()) == len(class_names()) == 1000
    assert class_names()[0].startswith("tench")


def test_classes_and_their_names_are_timms() -> None:
    theirs = ImageNetInfo("imagenet-1k")
    assert list(synsets()) == theirs.label_names()
    assert list(class_names()) == theirs.label_descriptions()


def test_a_table_of_results_waits_for_no_network_library() -> None:
    """timm and torchvision cost ten seconds, and there is no network to build."""
    code = (
        "import eval.results_verb, sys; sys.exit(bool({'timm', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("subset", ["a", "r"])
def test_columns_are_what_timm_reads(subset: Subset) -> None:
    chosen = columns(subset)
    with as_file(INFO / f"imagenet_{subset}_synsets.txt") as path:
        folders = load_class_map(str(path))
    assert chosen.shape == (200,)
    assert torch.equal(chosen, chosen.unique())
    assert [class_of()[synset] for synset in folders] == chosen.tolist()
    assert list(folders) == list(synsets_of(subset)) == sorted(folders)


def test_a_and_r_share_86_classes() -> None:
    assert len(set(synsets_of("a")) & set(synsets_of("r"))) == 86
    assert columns("all").tolist() == list(range(1000))
    assert synsets_of("all") == synsets()


def test_real_labels_are_the_files() -> None:
    labels = real_labels()
    sizes = (labels >= 0).sum(1)
    assert labels.shape == (VAL_IMAGES, 9)
    assert int((sizes == 0).sum()) == 3_163
    assert int((sizes > 0).sum()) == 46_837
    assert int((sizes == 1).sum()) == 39_394
    assert real_labels_sha256() == DIGESTS["imagenet_real_labels.json"]
    sets = json.loads((INFO / "imagenet_real_labels.json").read_text())
    assert [[c for c in row if c >= 0] for row in labels.tolist()] == sets


def test_real_labels_are_found_by_file_name() -> None:
    names = [
        "ILSVRC2012_val_00050000.JPEG",
        "ILSVRC2012_val_00000001_n01751748.JPEG",
        "ILSVRC2012_val_00000001.png",
    ]
    assert torch.equal(real_labels_of(names), real_labels()[[49_999, 0, 0]])
    assert real_labels_of([]).shape == (0, 9)


@given(number=st.integers(1, VAL_IMAGES))
def test_a_name_tells_its_number(number: int) -> None:
    assert val_number(f"ILSVRC2012_val_{number:08d}.JPEG") == number


@given(
    name=st.one_of(
        st.text(),
        st.integers(VAL_IMAGES + 1, 99_999_999).map("ILSVRC2012_val_{:08d}.JPEG".format),
        st.integers(0, VAL_IMAGES).map("ILSVRC2012_val_{}.JPEG".format),
        st.sampled_from(
            [
                "ILSVRC2012_val_00000000.JPEG",
                "val/ILSVRC2012_val_00000001.JPEG",
                "ILSVRC2012_val_00000001.JPEG\n",
                "ILSVRC2012_val_0000000١.JPEG",
                "ILSVRC2012_test_00000001.JPEG",
            ]
        ),
    )
)
def test_no_other_name_has_a_number(name: str) -> None:
    with pytest.raises(DataError, match="not the name"):
        val_number(name)


def test_sets_are_filled_up() -> None:
    assert label_sets([[5], [], [1, 2]]).tolist() == [[5, -1], [-1, -1], [1, 2]]
    assert label_sets([[], []]).shape == (2, 0)
    assert label_sets([]).shape == (0, 0)
