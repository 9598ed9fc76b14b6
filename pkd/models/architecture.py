"""Architecture of a GANomaly GAN, and the layers of its networks.

The layers follow the paper's Table 1 and DCGAN: on 32x32 images, three stages of 4x4 convolutions
with stride 2 give a 4x4 map, and one 4x4 convolution a single pixel; the decoder mirrors the
encoder. No convolution has a bias. Other image sizes have fewer or more stages, as in DCGAN.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

IMAGE_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True)
class Architecture:
    """Everything that defines a GAN except its weights.

    Attributes:
        channels: image channels, 1 or 3.
        widths: channels of the three stages for 32x32 images, e.g. (64, 128, 256).
        latent: size of the latent vectors z1 and z2.
        norm: "instance" (statistics of a single image, in training and in scoring) or "batch"
            (statistics of the batch in training, running statistics in scoring).
        norm_first: whether the first encoder convolution is normalised, as in Table 1.
        image_size: height and width of the images in pixels, one of IMAGE_SIZES.
    """

    channels: int
    widths: tuple[int, int, int]
    latent: int = 256
    norm: str = "instance"
    norm_first: bool = True
    image_size: int = 32

    @property
    def stages(self) -> tuple[int, ...]:
        """Channels of each stride-2 stage down to 4x4: `widths`, then doubled as in DCGAN."""
        count = self.image_size.bit_length() - 3
        last = self.widths[-1]
        return (*self.widths, *(last << k for k in range(1, count - 2)))[:count]


@dataclass(frozen=True)
class LayerPlan:
    """Specification of a layer: 4x4 convolution, normalisation and activation.

    Attributes:
        inputs, outputs: channels.
        size_in, size_out: height and width of the feature maps; powers of two.
        normalised: whether the output of the convolution is normalised.
        activation: a key of `pkd_kernels.ACTIVATIONS`.
    """

    inputs: int
    outputs: int
    size_in: int
    size_out: int
    normalised: bool
    activation: str

    @property
    def transposed(self) -> bool:
        """Whether the convolution is transposed: the map grows."""
        return self.size_out > self.size_in

    @property
    def stride(self) -> int:
        """Stride: 1 from or to a single pixel, else 2."""
        return 1 if 1 in (self.size_in, self.size_out) else 2

    @property
    def padding(self) -> int:
        """Padding on each side."""
        return self.stride - 1


def encoder_plan(architecture: Architecture, outputs: int) -> list[LayerPlan]:
    """Layers from an image to one pixel with `outputs` channels; a discriminator has one output."""
    channels = (architecture.channels, *architecture.stages)
    size = architecture.image_size
    first, *stages = (
        LayerPlan(inputs, width, size >> k, size >> k + 1, True, "leaky_relu")
        for k, (inputs, width) in enumerate(pairwise(channels))
    )
    first = replace(first, normalised=architecture.norm_first)
    return [first, *stages, LayerPlan(channels[-1], outputs, 4, 1, False, "none")]


def decoder_plan(architecture: Architecture) -> list[LayerPlan]:
    """Layers from a latent pixel to an image in [-1, 1]: the decoder."""
    channels = (*reversed(architecture.stages), architecture.channels)
    *stages, last = (
        LayerPlan(inputs, width, 4 << k, 8 << k, True, "relu")
        for k, (inputs, width) in enumerate(pairwise(channels))
    )
    first = LayerPlan(architecture.latent, channels[0], 1, 4, True, "relu")
    return [first, *stages, replace(last, normalised=False, activation="tanh")]
