"""Arrays and files as uint8 (n, C, H, W): layouts, ranges, every format, every refusal."""

import os
import subprocess
import sys

import numpy as np
import pytest
from image_helpers import picture, save
from PIL import Image

from pkd.data.arrays import channels_first, pixel_range, resize, to_bytes
from pkd.data.image_files import SUFFIXES, BadImage, image_files, is_colour, read_image
from pkd.utils.errors import DataError, PkdError

GREY, RGB = np.arange(2 * 5 * 7).reshape(2, 5, 7), np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
LAYOUTS = {
    "(n, H, W)": (GREY, None, GREY[:, None]),
    "(n, 1, H, W)": (GREY[:, None], None, GREY[:, None]),
    "(n, H, W, 1)": (GREY[..., None], None, GREY[:, None]),
    "(n, 3, H, W)": (RGB, None, RGB),
    "(n, H, W, 3)": (np.moveaxis(RGB, 1, 3), None, RGB),
    "flat (H, W)": (GREY.reshape(2, -1), (5, 7), GREY[:, None]),
    "flat (H, -1)": (GREY.reshape(2, -1), [5, -1], GREY[:, None]),
    "flat (C, H, W)": (RGB.reshape(2, -1), (3, 5, 7), RGB),
    "flat (H, W, C)": (np.moveaxis(RGB, 1, 3).reshape(2, -1), (5, 7, 3), RGB),
}


@pytest.mark.parametrize(("given", "shape", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_becomes_channels_first(given, shape, expected):
    np.testing.assert_array_equal(channels_first(given, shape), expected)


@pytest.mark.parametrize(
    ("shape", "image_shape", "word"),
    [
        ((4, 35), None, "image_shape="),
        ((4, 35), (5, 6), r"image_shape=\(5, 6\)"),
        ((4, 35), (35,), "cannot be used"),
        ((4, 5, 7, 4), None, "3 \\(RGB\\)"),
        ((4, 2, 5, 7), None, "3 \\(RGB\\)"),
        ((4, 3, 5, 7, 1), None, "3 \\(RGB\\)"),
        ((4,), None, "cannot be used"),
    ],
)
def test_other_layouts_are_refused_with_those_that_are_known(shape, image_shape, word):
    with pytest.raises(DataError, match=word):
        channels_first(np.zeros(shape), image_shape)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([3, 9], np.uint8, (0, 255)),
        ([0.2, 0.7], np.float32, (0, 1)),
        ([0, 1], bool, (0, 1)),
        ([0, 16], np.float64, (0, 16)),
        ([-2, 3], np.float32, (-2, 3)),
        ([0, 65535], np.uint16, (0, 65535)),
        ([7, 7], np.int64, (7, 8)),
    ],
)
def test_range_of_pixels_follows_their_kind(values, dtype, expected):
    assert pixel_range(np.array(values, dtype)) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_pixels_become_256_levels_rounded_and_clipped(dtype):
    images = np.array([0, 1, 8, 15, 16, 17], dtype)
    before = images.copy()
    found = to_bytes(images, (1, 16))
    assert found.dtype == np.uint8
    assert found.tolist() == [0, 0, 119, 238, 255, 255]
    np.testing.assert_array_equal(images, before)


def test_bytes_stay_as_they_are():
    images = np.arange(256, dtype=np.uint8)
    assert to_bytes(images, (0, 255)) is images
    np.testing.assert_array_equal(to_bytes(images / 255, (0, 1)), images)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG", ".JPeG"])
@pytest.mark.parametrize("colour", [False, True])
def test_every_format_is_read(suffix, colour, tmp_path):
    path = save(picture(0, 16, colour), tmp_path / f"image{suffix}")
    assert is_colour(path) is (colour or suffix == ".webp")  # WebP knows no grey
    for channels, wanted in ((1, False), (3, True)):
        read = read_image(path, wanted, 16)
        assert read.shape == (channels, 16, 16)
        assert read.dtype == np.uint8
        assert read[:, 7:12, 7:12].mean() > 150 > 80 > read[:, :3, :3].mean()


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (100, 60), (33, 200), (32, 32)])
@pytest.mark.parametrize("colour", [False, True])
def test_files_are_resized_as_arrays_are(size, colour, tmp_path):
    pixels = np.random.default_rng(0).integers(
        0, 256, (*size, 3) if colour else size, dtype=np.uint8
    )
    path = save(Image.fromarray(pixels), tmp_path / "image.png")
    expected = resize(channels_first(pixels[None]), 32)[0].numpy()
    difference = np.abs(read_image(path, colour, 32).astype(int) - expected)
    assert difference.max() <= 1  # where float32 sums of another order lie about a half
    assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK", "I;16", "I"])
def test_every_mode_of_a_file_becomes_grey_or_rgb(mode, tmp_path):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    if mode == "1":
        grey = (grey > 127).astype(np.uint8) * 255
    if mode.startswith("I"):
        image = Image.fromarray(grey.astype(np.uint16 if ";" in mode else np.int32) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    path = save(image, tmp_path / ("image.tiff" if mode in ("CMYK", "I") else "image.png"))
    assert is_colour(path) is (mode in ("P", "RGBA", "CMYK"))
    for channels, wanted in ((1, False), (3, True)):
        expected = np.broadcast_to(grey, (channels, 8, 8)).astype(int)
        assert np.abs(read_image(path, wanted, 8) - expected).max() <= 1


def test_a_photo_is_turned_as_its_exif_data_say(tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255  # the upper half, which after a turn to the right is the right one
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "image.png", exif=exif)
    read = read_image(tmp_path / "image.png", False, 16)[0]
    assert read[:, 8:].min() == 255
    assert read[:, :8].max() == 0


def broken(path):
    path.write_bytes(path.read_bytes()[:200])


def floating(path):
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(path, "TIFF")


def deep(path):
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(path, "TIFF")


BAD = {
    "cut": (broken, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "identify"),
    "text": (lambda path: path.write_text("an image"), "identify"),
    "missing": (os.remove, "No such file"),
    "floating": (floating, "8 or 16 bits"),
    "deep": (deep, "8 or 16 bits"),
}


@pytest.mark.parametrize(("damage", "word"), BAD.values(), ids=BAD)
def test_a_bad_image_is_named(damage, word, tmp_path):
    path = save(picture(0, 40), tmp_path / "image.png")
    damage(path)
    with pytest.raises(BadImage, match=word) as caught:
        read_image(path, False, 16)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("limit", [399, 199])
def test_an_image_bomb_is_refused_before_it_is_unpacked(limit, tmp_path, monkeypatch):
    """Pillow only warns of images up to twice as large as its limit."""
    path = save(picture(0, 20), tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadImage, match="decompression bomb"):
        read_image(path, False, 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert read_image(path, False, 16).shape == (1, 16, 16)


def test_images_of_a_folder_are_those_with_a_known_suffix_in_order_nested_ones_too(tmp_path):
    names = ["b.PNG", "a/z.jpg", "a/deep/er/c.webp", "d.txt", ".hidden.png", "a/Thumbs.db", "e.tif"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in image_files(tmp_path)]
    assert found == ["a/deep/er/c.webp", "a/z.jpg", "b.PNG", "e.tif"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PkdError, match=r"nowhere cannot be read \(No such file"):
        image_files(tmp_path / "nowhere")


def test_reading_images_needs_no_torch():
    code = "import pkd, pkd.images, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
