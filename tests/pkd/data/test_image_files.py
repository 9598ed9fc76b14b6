"""Image files as uint8 arrays: every format and pixel mode, and every error."""

import os
import socket
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from image_helpers import picture, save
from PIL import Image

from pkd.data.arrays import channels_first, resize
from pkd.data.image_files import SUFFIXES, ImageError, find_images, is_colour, read_image
from pkd.utils.errors import DataError, PkdError


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


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_pixel_mode_is_converted_to_grey_and_rgb(mode, tmp_path):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    if mode == "1":
        grey = (grey > 127).astype(np.uint8) * 255
    if mode.startswith("I"):
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    path = save(image, tmp_path / ("image.tiff" if mode == "CMYK" else "image.png"))
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
    Image.fromarray(np.full((8, 8), 4_000, np.int32)).save(path, "TIFF")


def postscript(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def listening(path):
    path.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{directory}/{path.name}")  # paths of sockets are short
    os.close(directory)


BAD = {
    "cut": (broken, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "no image in PNG, JPEG"),
    "text": (lambda path: path.write_text("an image"), "no image in PNG, JPEG"),
    "PostScript, which starts a program": (postscript, "no image in PNG, JPEG"),
    "GIF": (lambda path: picture(0).save(path, "GIF"), "no image in PNG, JPEG"),
    "FIFO": (fifo, "it is a FIFO"),
    "device": (device, "it is a device"),
    "socket": (listening, "No such device|socket"),
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


@pytest.mark.parametrize(
    ("name", "limit"), [("PKD_MAX_PIXELS", 599), ("PKD_MAX_PIXELS", 99), ("PKD_MAX_SIDE", 29)]
)
def test_a_large_image_is_refused_before_it_is_decompressed(name, limit, tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    picture(0, 30).crop((0, 0, 30, 20)).save(path)
    path.write_bytes(path.read_bytes()[:200])  # the pixels cannot be unpacked
    monkeypatch.setenv(name, str(limit))
    with pytest.raises(ImageError, match=rf"it has 30 x 20 pixels, more than .*set .*{name}"):
        read_image(path, False, 16)
    monkeypatch.setenv(name, str(limit * 20))
    with pytest.raises(ImageError, match="truncated"):
        read_image(path, False, 16)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e9", "", "9" * 30])
def test_a_limit_that_is_no_positive_integer_is_refused(text, tmp_path, monkeypatch):
    path = save(picture(0, 20), tmp_path / "image.png")
    monkeypatch.setenv("PKD_MAX_SIDE", text)
    with pytest.raises(PkdError, match=r"PKD_MAX_SIDE is .*: set a positive integer"):
        read_image(path, False, 16)


def test_a_thin_image_at_the_limits_is_read_in_little_memory_and_time(tmp_path):
    """Resizing needs weights for each source pixel: one of 1 x 89,000,000 pixels took 7 GiB."""
    path = tmp_path / "image.png"
    Image.new("L", (1, 32_768), 7).save(path)
    tracemalloc.start()
    assert (read_image(path, False, 16) == 7).all()
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    Image.new("L", (1, 32_769), 7).save(path)
    with pytest.raises(ImageError, match="1 x 32,769 pixels"):
        read_image(path, False, 16)


def test_links_to_folders_are_followed_and_loops_are_cut(tmp_path):
    photos = tmp_path / "photos"
    save(picture(0), photos / "a" / "1.png")
    save(picture(0), tmp_path / "elsewhere" / "2.png")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "twice").symlink_to(photos / "linked")
    (tmp_path / "elsewhere" / "up").symlink_to(photos)
    (photos / "a" / "self").symlink_to(photos / "a")
    for root in (photos, tmp_path / "elsewhere" / "up"):
        names = [str(path.relative_to(root)) for path in find_images(root)]
        assert names == ["a/1.png", "linked/2.png"]


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
