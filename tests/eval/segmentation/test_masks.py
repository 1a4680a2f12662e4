"""Masks: what their numbers mean, and everything that is refused before a network sees it."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faults import assert_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from segsets import grey, indexed, photo, raw_png, scene, write_pair

from eval.segmentation.masks import Contents, check_pairs, read_mask
from zoo.errors import DataError, Exit

PAIR = ("images/training/a.jpg", "annotations/training/a.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One good pair of three classes, 12 x 16 pixels."""
    write_pair(tmp_path, "training", "a", scene(0, 3))
    return tmp_path


def check(root: Path, stems: str = "a", classes: int = 3) -> Contents:
    files = [(f"images/training/{s}.jpg", f"annotations/training/{s}.png") for s in stems]
    return check_pairs(root, files, classes)


def refused(root: Path, stems: str = "a", classes: int = 3) -> DataError:
    with pytest.raises(DataError) as caught:
        check(root, stems, classes)
    assert caught.value.fix
    return caught.value


def mask_refused(root: Path, data: bytes, classes: int = 3) -> str:
    """What is said of a mask, by itself and in its set."""
    (root / PAIR[1]).write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_mask(root / PAIR[1], classes)
    alone, in_set = caught.value, refused(root, classes=classes)
    assert alone.where == str(root / PAIR[1])
    assert alone.fix == in_set.fix
    what, _, detail = alone.what.partition(": ")
    assert what == in_set.what
    assert in_set.where == f"{root}: {PAIR[1]} ({detail})"
    return alone.what


@pytest.mark.parametrize("form", [grey, indexed])
def test_numbers_from_zero_and_what_is_ignored(
    tmp_path: Path, form: Callable[[np.ndarray], bytes]
) -> None:
    (tmp_path / "mask.png").write_bytes(form(np.array([[0, 1, 2], [3, 255, 1]], np.uint8)))
    found = read_mask(tmp_path / "mask.png", 3)
    assert found.dtype == np.uint8
    assert found.tolist() == [[255, 0, 1], [2, 255, 0]]


def test_a_palette_of_few_bits(tmp_path: Path) -> None:
    data = raw_png(4, 3, depth=4, colour_type=3, row=b"\x01\x23")
    palette = b"PLTE" + bytes(48)
    at = data.index(b"IDAT") - 4
    chunk = struct.pack(">I", 48) + palette + struct.pack(">I", zlib.crc32(palette))
    (tmp_path / "mask.png").write_bytes(data[:at] + chunk + data[at:])
    assert read_mask(tmp_path / "mask.png", 3).tolist() == [[255, 0, 1, 2]] * 3


def test_the_most_classes_there_can_be(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(grey(np.arange(256, dtype=np.uint8)[:, None].repeat(2, 1)))
    found = read_mask(tmp_path / "mask.png", 254)
    assert found[:, 0].tolist() == [255, *range(254), 255]


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(
    masks=st.lists(
        hnp.arrays(np.uint8, (3, 5), elements=st.sampled_from([0, 1, 2, 3, 255])),
        min_size=1,
        max_size=4,
    )
)
def test_pixels_are_counted(tmp_path: Path, masks: list[np.ndarray]) -> None:
    for stem, mask in zip("abcd", masks, strict=False):
        write_pair(tmp_path, "training", stem, mask)
    found = check(tmp_path, "abcd"[: len(masks)])
    assert found.pixels.dtype == np.int64
    assert found.pixels.tolist() == [sum((m == v).sum() for m in masks) for v in (1, 2, 3)]
    assert found.empty == tuple(i for i, m in enumerate(masks) if not np.isin(m, [1, 2, 3]).any())


def test_progress(root: Path) -> None:
    done: list[int] = []
    check_pairs(root, [PAIR] * 300, 3, done.append)
    assert sum(done) == 300
    assert len(done) > 1


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (raw_png(16, 12, depth=8, colour_type=2, row=bytes(48)), "8-bit RGB colours"),
        (raw_png(16, 12, depth=8, colour_type=6, row=bytes(64)), "8-bit RGB colours with alpha"),
        (raw_png(16, 12, depth=8, colour_type=4, row=bytes(32)), "8-bit grey with alpha"),
        (raw_png(16, 12, depth=16, colour_type=0, row=bytes(32)), "16-bit grey"),
        (raw_png(16, 12, depth=4, colour_type=0, row=bytes(8)), "4-bit grey"),
        (raw_png(16, 12, depth=1, colour_type=0, row=bytes(2)), "1-bit grey"),
    ],
)
def test_masks_without_class_numbers(root: Path, data: bytes, form: str) -> None:
    what = mask_refused(root, data)
    assert what == f"a mask that does not hold class numbers: {form}"


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", photo(12, 16), grey(scene(0, 3))[:-30], grey(scene(0, 3))[:60]],
    ids=["empty", "text", "jpeg", "cut", "cut more"],
)
def test_masks_that_are_no_png(root: Path, data: bytes) -> None:
    assert "a mask that cannot be read: " in mask_refused(root, data)


def test_masks_of_an_insane_size(root: Path) -> None:
    head = raw_png(60_000, 60_000, depth=8, colour_type=0, row=b"")
    assert "exceeds limit" in mask_refused(root, head)
    head = raw_png(8_000, 8_000, depth=8, colour_type=0, row=b"")
    assert "over the limit" in mask_refused(root, head)
    assert "over the limit" in mask_refused(root, grey(np.ones((1, 201), np.uint8)))


def test_a_mask_that_is_gone(root: Path) -> None:
    (root / PAIR[1]).unlink()
    assert "No such file" in refused(root).where
    with pytest.raises(DataError, match="No such file"):
        read_mask(root / PAIR[1], 3)


def test_no_flipped_bit_gets_through(root: Path) -> None:
    # Of such masks Pillow decodes one in eight, to other classes.
    good = grey(np.random.default_rng(0).integers(0, 4, (12, 16), np.uint8))
    start, random = good.index(b"IDAT"), np.random.default_rng(1)
    (root / PAIR[1]).write_bytes(good)
    check(root)
    for _ in range(60):
        data = bytearray(good)
        data[random.integers(start, len(good) - 16)] ^= 1 << random.integers(8)
        (root / PAIR[1]).write_bytes(data)
        assert refused(root).what == "a mask that cannot be read"


@pytest.mark.parametrize(("value", "classes"), [(4, 3), (254, 3), (151, 150), (254, 253)])
def test_numbers_above_the_last_class(root: Path, value: int, classes: int) -> None:
    mask = scene(0, 3)
    mask[0, 0] = value
    what = mask_refused(root, grey(mask), classes)
    assert (
        what
        == f"a mask with a number that no class has: {value}, where the last class is {classes}"
    )
    error = refused(root, classes=classes)
    told, where = "a mask with a number that no class has", f"{root}: {PAIR[1]} ({value}, where"
    fix = "check that the list of classes belongs to these masks"
    assert_error(error, Exit.DATA, what=told, where=where, fix=fix)


def test_sizes_that_differ(root: Path) -> None:
    for stem in "bc":
        write_pair(root, "training", stem, scene(0, 3))
        (root / f"annotations/training/{stem}.png").write_bytes(grey(scene(0, 3, 16, 12)))
    error = refused(root, "abc")
    assert error.what == "2 masks of another size than their images"
    assert error.where == (
        f"{root}: annotations/training/b.png (12 x 16, the image 16 x 12), "
        "annotations/training/c.png (12 x 16, the image 16 x 12)"
    )
    fix = "make each mask for its own image"
    assert_error(error, Exit.DATA, what=error.what, where=error.where, fix=fix)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_exif_tag_turns_the_image_and_not_the_mask(root: Path, form: str) -> None:
    (root / PAIR[0]).write_bytes(photo(12, 16, orientation=6, form=form))
    error = refused(root)
    assert "16 x 12, the image 12 x 16, turned by its EXIF tag" in error.where
    assert "EXIF" in error.fix
    (root / PAIR[1]).write_bytes(grey(scene(0, 3, 16, 12)))
    assert check(root).pixels.sum() > 0
    (root / PAIR[0]).write_bytes(photo(16, 12, orientation=3, form=form))
    check(root)


def test_a_damaged_tag_is_no_tag(root: Path) -> None:
    whole = photo(12, 16, orientation=6)
    (root / PAIR[0]).write_bytes(whole.replace(b"Exif\0\0", b"Exif\0\0XX"))
    check(root)


@pytest.mark.parametrize("data", [b"", b"GIF89a", photo(12, 16)[:40]])
def test_images_that_cannot_be_read(root: Path, data: bytes) -> None:
    (root / PAIR[0]).write_bytes(data)
    error = refused(root)
    assert error.what == "an image that cannot be read"
    assert PAIR[0] in error.where


def test_the_first_ten_of_the_first_kind(root: Path) -> None:
    stems = "bcdefghijklmn"
    for stem in stems:
        write_pair(root, "training", stem, scene(0, 9))  # above the last class
    (root / "annotations/training/c.png").write_bytes(b"")
    assert refused(root, stems).where == (
        f"{root}: annotations/training/c.png (no image of this kind)"
    )
    write_pair(root, "training", "c", scene(0, 9))
    error = refused(root, stems)
    assert error.what == "13 masks with a number that no class has"
    assert "annotations/training/k.png" in error.where
    assert "annotations/training/l.png" not in error.where
    assert "4, 5, 6, 7, 8, 9, where the last class is 3" in error.where
    assert error.where.endswith(" and 3 more")
