"""Arrays of images: layouts, pixel ranges, 8-bit levels and resizing."""

import numpy as np
import pytest
import torch

from pkd.data.arrays import channels_first, pixel_range, resize, to_uint8
from pkd.utils.errors import DataError

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
def test_every_layout_is_converted_to_channels_first(given, shape, expected):
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
def test_other_layouts_are_refused_and_the_error_lists_the_valid_ones(shape, image_shape, word):
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
def test_pixel_range_depends_on_type_and_values(values, dtype, expected):
    assert pixel_range(np.array(values, dtype)) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_pixels_are_scaled_to_256_levels_rounded_and_clipped(dtype):
    images = np.array([0, 1, 8, 15, 16, 17], dtype)
    before = images.copy()
    levels = to_uint8(images, (1, 16))
    assert levels.dtype == np.uint8
    assert levels.tolist() == [0, 0, 119, 238, 255, 255]
    np.testing.assert_array_equal(images, before)


def test_uint8_images_are_unchanged():
    images = np.arange(256, dtype=np.uint8)
    assert to_uint8(images, (0, 255)) is images
    np.testing.assert_array_equal(to_uint8(images / 255, (0, 1)), images)


def random_images(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bilinear_pixel(image, row, col, size):
    """One output pixel in float64, from the definition with half-pixel centres.

    The weights of the input pixels are a triangle around the sampled position, one pixel of the
    coarser of the two grids wide to each side.
    """

    def weights(i, n):
        step = n / size
        w = np.maximum(0, 1 - abs(np.arange(n) + 0.5 - (i + 0.5) * step) / max(step, 1))
        return w / w.sum()

    return weights(row, image.shape[0]) @ image.astype(float) @ weights(col, image.shape[1])


@pytest.mark.parametrize(("side", "size"), [(28, 32), (8, 32), (32, 28), (7, 13), (99, 16)])
def test_resize_is_bilinear_and_rounded(side, size):
    images = random_images(3, 3, 2, side, side)
    resized = resize(images, size)
    assert resized.shape == (3, 2, size, size)
    assert resized.dtype == torch.uint8
    positions = [(0, 0), (0, size - 1), (1, 2), (size // 2, size // 3), (size - 1, size - 1)]
    for row, col in positions:
        exact = bilinear_pixel(images[2, 1], row, col, size)
        assert abs(int(resized[2, 1, row, col]) - exact) <= 0.5 + 1e-3


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_resize_preserves_a_constant_image(value):
    images = np.full((2, 3, 28, 28), value, np.uint8)
    assert (resize(images) == value).all()


def test_resize_of_hard_edges_stays_in_the_pixel_range():
    board = np.indices((28, 28)).sum(0)[None, None] % 2 * 255
    resized = resize(board.astype(np.uint8))
    assert resized.min() >= 0
    assert resized.max() <= 255
    assert 100 < resized.float().mean() < 155


def test_resize_to_the_same_size_returns_a_copy():
    images = random_images(4, 2, 3, 32, 32)
    resized = resize(images)
    np.testing.assert_array_equal(resized.numpy(), images, strict=True)
    resized[:] = 0
    assert images.any()


def test_resize_in_chunks_equals_resize_of_single_images():
    images = random_images(5, 2050, 1, 8, 8)
    resized = resize(images[::-1], 16)  # and a view with negative strides
    for i in (0, 1023, 1024, 2047, 2048, 2049):
        assert torch.equal(resized[i : i + 1], resize(images[::-1][i : i + 1], 16))
    assert resize(images[:0]).shape == (0, 1, 32, 32)
