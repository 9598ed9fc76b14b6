"""Reconstructions of test images by the members of a stack."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import Generator
from pkd.report.reconstructions import png_uri, reconstruct


def test_each_member_reconstructs_its_images():
    torch.manual_seed(0)
    network = Generator(Architecture(1, (1, 2, 4), latent=8), stack=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.2, 0.3)
    images = torch.randint(256, (3, 2, 1, 32, 32), dtype=torch.uint8)
    outputs = reconstruct(network, images, [2, 1], stack=3)
    for position, member in enumerate((2, 1)):
        with torch.no_grad():  # all members reconstruct the same images
            all_members = network(images[:, position].float() / 127.5 - 1).xh
        expected = all_members[:, member] * 127.5 + 127.5
        assert expected.std() > 1
        assert (outputs[:, position, 0] - expected).abs().max() <= 0.51


def test_reconstructions_are_on_the_device_of_the_networks():
    """The images may be on a GPU while the networks of several stacks are in host memory."""
    network = Generator(Architecture(1, (1, 2, 4), latent=8), stack=3).to("meta")
    images = torch.zeros(6, 2, 1, 32, 32, dtype=torch.uint8)
    outputs = reconstruct(network, images, [2, 1], stack=3)
    assert outputs.device.type == "meta"
    assert outputs.shape == images.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_lossless_data_uris(channels):
    image = np.random.default_rng(0).integers(256, size=(channels, 8, 6), dtype=np.uint8)
    kind, data = png_uri(image).split(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as decoded:
        pixels = np.asarray(decoded).reshape(8, 6, channels)
    np.testing.assert_array_equal(pixels, image.transpose(1, 2, 0))
