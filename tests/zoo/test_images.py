"""Decoding: whatever bytes come, an image or a DataError; preprocessing as the card says."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import assert_error
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import v2

from zoo.errors import DataError, Exit, UsageError
from zoo.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess, decode, normalise, read_image

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60))
)


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixel."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk


JPEG = encoded(SMOOTH, "JPEG")
PNG = encoded(SMOOTH, "PNG")
WEBP = encoded(SMOOTH, "WEBP")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_decodes_as_pillow_does(kind: str) -> None:
    data = encoded(SMOOTH, kind)
    pixels = decode(data, "here")
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_other_jpeg_colours_equal_pillow(mode: str) -> None:
    data = encoded(Image.fromarray(SMOOTH).convert(mode), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data, "here"), expected)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    pixels = decode(encoded(grey, "PNG"), "here")
    assert np.array_equal(pixels, np.stack([grey >> 8] * 3, axis=2))


def test_palette_with_transparency_keeps_its_colours_without_a_warning() -> None:
    palette = Image.new("P", (4, 2))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1] * 4)
    pixels = decode(encoded(palette, "PNG", transparency=b"\x00\x80"), "here")
    assert pixels[0].tolist() == [[10, 20, 30], [200, 100, 50]] * 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "1"])
def test_alpha_is_dropped(mode: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    if mode != "1":
        image.putalpha(0)
    pixels = decode(encoded(image, "PNG"), "here")
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert pixels.any()


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = encoded(SMOOTH, "JPEG", exif=exif)
    assert turned != JPEG
    assert np.array_equal(decode(turned, "here"), decode(JPEG, "here"))


BAD = {
    "empty": b"",
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "gif": encoded(SMOOTH, "GIF"),
    "tiff": encoded(SMOOTH, "TIFF"),
    "bomb over Pillow's own limit": png_header(60_000, 60_000),
    "bomb between Pillow's warning and its error": png_header(10_000, 9_500),
    "bomb below Pillow's limit": png_header(10_000, 5_001),
    "strip": png_header(30_000, 1),
    "no pixels": png_header(0, 5),
    "jpeg magic only": b"\xff\xd8\xff",
    **{f"jpeg cut at {share}": JPEG[: int(len(JPEG) * share)] for share in (0.05, 0.5, 0.95)},
    **{f"png cut at {share}": PNG[: int(len(PNG) * share)] for share in (0.01, 0.5, 0.95)},
    **{f"webp cut at {share}": WEBP[: int(len(WEBP) * share)] for share in (0.05, 0.5)},
    "png with a flipped byte": PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_whole_image_is_refused(data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        decode(data, "shelf/7.jpg")
    error, fix = caught.value, "replace the file, or remove it"
    assert_error(error, Exit.DATA, what="image", where="shelf/7.jpg", fix=fix)
    assert " at 0x" not in error.what  # equal in every process


def test_a_big_jpeg_is_refused_from_its_header() -> None:
    start = JPEG.index(b"\xff\xc0") + 5  # height and width in the frame header
    big = JPEG[:start] + struct.pack(">HH", 60_000, 60_000) + JPEG[start + 4 :]
    with pytest.raises(DataError, match="60,000 x 60,000"):
        decode(big, "here")


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from([JPEG, PNG, WEBP]),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_gives_an_image_or_a_data_error(data: bytes, edits: list) -> None:
    damaged = bytearray(data)
    for place, value in edits:
        damaged[int(place * len(damaged))] = value
    try:
        pixels = decode(bytes(damaged), "here")
    except DataError:
        return
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.dtype == np.uint8


def test_read_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)
    assert np.array_equal(read_image(path), decode(JPEG, "here"))


def test_unreadable_files_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert caught.value.where == str(path)


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "caf\udce9.jpg")
    assert str(caught.value).encode()


def test_an_io_error_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [OSError(5, "Input/output error"), JPEG]

    def flaky(_: Path) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(Path, "read_bytes", flaky)
    assert read_image(Path("a.jpg")).shape == (60, 80, 3)
    assert not answers
    answers += [OSError(5, "Input/output error")] * 2
    with pytest.raises(DataError) as caught:
        read_image(Path("a.jpg"))
    what, fix = "the file cannot be read: Input/output error", "check that it is there"
    assert_error(caught.value, Exit.DATA, what=what, where="a.jpg", fix=fix)


@pytest.mark.parametrize("size", [(60, 80), (80, 60), (300, 40), (41, 33), (1, 1)])
def test_eval_crop_is_resize_then_centre_crop(size: tuple[int, int]) -> None:
    pixels = np.array(Image.fromarray(SMOOTH).resize(size))
    crop = Preprocess(image_size=28).eval_crop(pixels)
    assert crop.dtype == torch.uint8
    assert crop.shape == (3, 28, 28)
    recipe = v2.Compose([v2.Resize(32, v2.InterpolationMode.BICUBIC), v2.CenterCrop(28)])
    expected = v2.functional.pil_to_tensor(recipe(Image.fromarray(pixels)))
    assert (crop.int() - expected.int()).abs().max() <= 2


@settings(deadline=None)
@given(
    st.integers(1, 120),
    st.integers(1, 120),
    st.integers(1, 60),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from(["center", "squash"]),
    st.integers(0, 2**32 - 1),
)
def test_resized_as_timm_resizes_with_pillow(
    height: int, width: int, side: int, interpolation: Any, crop_mode: Any, seed: int
) -> None:
    """Black and white dots: nothing shows a wrong size or order of passes better."""
    dots = np.random.default_rng(seed).integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
    own = Preprocess(
        image_size=side, crop_pct=0.9, interpolation=interpolation, crop_mode=crop_mode
    )
    theirs = create_transform(
        side,
        use_prefetcher=True,
        interpolation=interpolation,
        crop_pct=0.9,
        crop_mode=crop_mode,
    )
    expected = torch.as_tensor(theirs(Image.fromarray(dots)))  # type: ignore[operator]
    assert (own.eval_crop(dots).int() - expected.int()).abs().max() <= 2


def test_normalise_is_to_tensor_and_normalize() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    preprocess = Preprocess(image_size=5, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    expected = v2.functional.normalize(images / 255, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert torch.equal(preprocess.normalise(images), expected)
    assert expected.dtype == torch.float32
    assert torch.equal(
        normalise(images), v2.functional.normalize(images / 255, [*IMAGENET_MEAN], [*IMAGENET_STD])
    )
    assert torch.equal(normalise(images / 255), normalise(images))


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"crop_pct": 0.0}, {"std": (0.0, 1.0, 1.0)}])
def test_impossible_preprocessing_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Preprocess(**{"image_size": 224, **wrong})
