"""Image files as uint8 arrays: every format and pixel mode, and every error."""

import os
import subprocess
import sys

import numpy as np
import pytest
from image_helpers import picture, save
from PIL import Image

from pkd.data.arrays import channels_first, resize
from pkd.data.image_files import SUFFIXES, ImageError, find_images, is_colour, read_image
from pkd.utils.errors import DataError


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG", ".JPeG"])
@pytest.mark.parametrize("colour", [False, True])
def test_every_format_is_read(suffix, colour, tmp_path):
    path = save(picture(0, 16, colour), tmp_path / f"image{suffix}")
    assert is_colour(path) is (colour or suffix == ".webp")  # WebP has no grey mode
    for channels, to_colour in ((1, False), (3, True)):
        read = read_image(path, to_colour, 16)
        assert read.shape == (channels, 16, 16)
        assert read.dtype == np.uint8
        assert read[:, 7:12, 7:12].mean() > 150 > 80 > read[:, :3, :3].mean()


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (100, 60), (33, 200), (32, 32)])
@pytest.mark.parametrize("colour", [False, True])
def test_files_are_resized_like_arrays(size, colour, tmp_path):
    pixels = np.random.default_rng(0).integers(
        0, 256, (*size, 3) if colour else size, dtype=np.uint8
    )
    path = save(Image.fromarray(pixels), tmp_path / "image.png")
    expected = resize(channels_first(pixels[None]), 32)[0].numpy()
    difference = np.abs(read_image(path, colour, 32).astype(int) - expected)
    assert difference.max() <= 1  # float32 sums in another order, close to a half
    assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK", "I;16", "I"])
def test_every_pixel_mode_is_converted_to_grey_and_rgb(mode, tmp_path):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    if mode == "1":
        grey = (grey > 127).astype(np.uint8) * 255
    if mode.startswith("I"):
        image = Image.fromarray(grey.astype(np.uint16 if ";" in mode else np.int32) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    path = save(image, tmp_path / ("image.tiff" if mode in ("CMYK", "I") else "image.png"))
    assert is_colour(path) is (mode in ("P", "RGBA", "CMYK"))
    for channels, to_colour in ((1, False), (3, True)):
        expected = np.broadcast_to(grey, (channels, 8, 8)).astype(int)
        assert np.abs(read_image(path, to_colour, 8) - expected).max() <= 1


def test_the_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255  # the upper half, which is the right half after a rotation
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
def test_the_error_for_a_damaged_image_starts_with_its_path(damage, word, tmp_path):
    path = save(picture(0, 40), tmp_path / "image.png")
    damage(path)
    with pytest.raises(ImageError, match=word) as caught:
        read_image(path, False, 16)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("limit", [399, 199])
def test_a_decompression_bomb_is_refused_before_it_is_decompressed(limit, tmp_path, monkeypatch):
    """Pillow only warns about images up to twice as large as its limit."""
    path = save(picture(0, 20), tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match="decompression bomb"):
        read_image(path, False, 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert read_image(path, False, 16).shape == (1, 16, 16)


def test_images_are_found_by_suffix_in_subfolders_too_and_sorted(tmp_path):
    names = ["b.PNG", "a/z.jpg", "a/deep/er/c.webp", "d.txt", ".hidden.png", "a/Thumbs.db", "e.tif"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert names == ["a/deep/er/c.webp", "a/z.jpg", "b.PNG", "e.tif"]


def test_a_folder_that_cannot_be_read_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"nowhere cannot be read \(No such file"):
        find_images(tmp_path / "nowhere")


def test_reading_images_needs_no_torch():
    code = "import pkd, pkd.data.image_files, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
