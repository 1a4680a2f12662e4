"""The same masks, sizes, classes and colours as mmsegmentation's own data sets have.

In a file of its own: the import of mmsegmentation takes ten seconds.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from segsets import ade20k_names, grey, indexed, photo, scene, write_set

from eval.segmentation.colours import ade20k_facts
from eval.segmentation.data import open_split
from eval.segmentation.masks import check_pairs, read_mask
from zoo.errors import DataError


@pytest.fixture(scope="module")
def mmseg() -> ModuleType:
    """Its data sets; not imported where only other tests are collected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmseg import datasets
    return datasets


@pytest.mark.parametrize("form", [grey, indexed])
def test_every_number_of_a_mask(
    tmp_path: Path, mmseg: ModuleType, form: Callable[[np.ndarray], bytes]
) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(form(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    asked = {"seg_map_path": str(path), "reduce_zero_label": True, "seg_fields": []}
    theirs = mmseg.LoadAnnotations()(asked)
    assert np.array_equal(read_mask(path, 254), theirs["gt_seg_map"])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_of_the_size_they_will_be_read_in(
    tmp_path: Path, mmseg: ModuleType, form: str, orientation: int
) -> None:
    files = ("image.jpg", "mask.png")
    (tmp_path / files[0]).write_bytes(photo(12, 16, orientation=orientation, form=form))
    from mmcv.transforms import LoadImageFromFile  # that pipelines begin with

    read: Any = LoadImageFromFile()({"img_path": str(tmp_path / files[0])})
    height, width = read["ori_shape"]
    (tmp_path / files[1]).write_bytes(grey(scene(0, 3, height, width)))
    check_pairs(tmp_path, [files], 3)
    (tmp_path / files[1]).write_bytes(grey(scene(0, 3, width, height)))
    with pytest.raises(DataError, match="another size"):
        check_pairs(tmp_path, [files], 3)


def test_the_same_pairs_are_found(tmp_path: Path, mmseg: ModuleType) -> None:
    root = write_set(tmp_path / "streets", {"training": 5})
    found = open_split(root, "training")
    assert found.endings is not None
    theirs = mmseg.BaseSegDataset(
        data_root=str(root),
        data_prefix={"img_path": "images/training", "seg_map_path": "annotations/training"},
        img_suffix=found.endings[0],
        seg_map_suffix=found.endings[1],
        metainfo={"classes": found.labels.names},
        reduce_zero_label=True,
    )
    paths = [
        (info["img_path"], info["seg_map_path"]) for info in map(theirs.get_data_info, range(5))
    ]
    assert paths == [(str(found.image(i)), str(found.mask(i))) for i in range(5)]
    assert len(theirs) == len(found)


def test_classes_and_colours_of_ade20k(mmseg: ModuleType) -> None:
    facts = ade20k_facts()
    assert facts is not None
    assert list(ade20k_names()) == [
        name.strip() for name in mmseg.ADE20KDataset.METAINFO["classes"]
    ]
    assert np.array_equal(facts[1], mmseg.ADE20KDataset.METAINFO["palette"])
