"""GANomaly networks: encoder-decoder-encoder generator and discriminator, for a stack of M models.

The layers follow the paper's Table 1 and DCGAN: on 32x32 images, three stages of 4x4 convolutions
with stride 2 give a 4x4 map, and one 4x4 convolution a single pixel; the decoder mirrors the
encoder. No convolution has a bias. Other image sizes have fewer or more stages, as in DCGAN.
Tensors and parameters of a stack are laid out model-major, see `pkd_kernels.reference`.

Pickled detectors contain Architecture, LayerPlan, Layer and Generator: their attribute names are
part of the file format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pkd_kernels import ACTIVATIONS, NORM_EPS, ConvLayer, conv_chain, conv_chain_pair
from torch import Tensor, nn

from pkd.utils.errors import CheckpointError

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


class Layer(nn.Module):
    """Convolution, normalisation and activation of a stack of M models.

    Attributes:
        weight: (M*Co, Ci, 4, 4), of a transposed convolution (M*Ci, Co, 4, 4).
        gamma, beta: (M*Co,) scale and shift of the normalisation; None without normalisation.
        running_mean, running_var: (M*Co,) buffers, only with norm="batch".
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, plan: LayerPlan, stack: int, norm: str):
        super().__init__()
        self.plan, self.stack = plan, stack
        first, second = (plan.inputs, plan.outputs)[:: 1 if plan.transposed else -1]
        self.weight = nn.Parameter(torch.empty(stack * first, second, 4, 4))
        channels = stack * plan.outputs
        self.gamma = nn.Parameter(torch.empty(channels)) if plan.normalised else None
        self.beta = nn.Parameter(torch.empty(channels)) if plan.normalised else None
        self.batch_norm = norm == "batch" and plan.normalised
        if self.batch_norm:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    @torch.no_grad()
    def initialize(self, generators: Sequence[torch.Generator]) -> None:
        """Initialise as DCGAN: weight N(0, 0.02), gamma N(1, 0.02), beta 0.

        Args:
            generators: one random generator per model, so that the initial weights of a model do
                not depend on the other models of the stack.
        """
        means = [(self.weight, 0.0)] + ([(self.gamma, 1.0)] if self.gamma is not None else [])
        for parameter, mean in means:
            rows = parameter.view(self.stack, -1)
            for row, generator in zip(rows, generators, strict=True):
                row.copy_(torch.empty(row.shape).normal_(mean, 0.02, generator=generator))
        if self.beta is not None:
            self.beta.zero_()

    def op(self) -> ConvLayer:
        """Return the layer as the kernels take it; with norm="batch" its convolution only."""
        plan, fused = self.plan, not self.batch_norm
        return ConvLayer(
            self.weight,
            self.gamma if fused else None,
            self.beta if fused else None,
            plan.stride,
            plan.padding,
            plan.transposed,
            plan.activation if fused else "none",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, M*Ci, H, W), or (N, Ci, H, W) shared by all models, to (N, M*Co, H', W')."""
        (y,) = conv_chain(x, [self.op()], taps=(0,), stack=self.stack)
        if not self.batch_norm:
            return y
        running = self.running_mean, self.running_var
        y = F.batch_norm(y, *running, self.gamma, self.beta, self.training, eps=NORM_EPS)
        return ACTIVATIONS[self.plan.activation].function(y)


def _run_chain(layers: Sequence[Layer], x: Tensor, taps: Sequence[int]) -> tuple[Tensor, ...]:
    """Run a chain of layers and return the outputs of the layers with the indices `taps`."""
    if not any(layer.batch_norm for layer in layers):  # images are independent: a single op
        return conv_chain(x, [layer.op() for layer in layers], taps=taps, stack=layers[0].stack)
    outputs = [x := layer(x) for layer in layers]
    return tuple(outputs[tap] for tap in taps)


def _make_chain(plans: Sequence[LayerPlan], stack: int, norm: str) -> nn.Sequential:
    return nn.Sequential(*(Layer(plan, stack, norm) for plan in plans))


def _layers(*chains: nn.Sequential) -> list[Layer]:
    return [layer for chain in chains for layer in chain if isinstance(layer, Layer)]


class Reconstruction(NamedTuple):
    """Output of a generator for images x: z1 = G_E(x), xh = G_D(z1), z2 = G_R(xh)."""

    z1: Tensor  # (N, M*latent)
    xh: Tensor  # (N, M*C, H, W) in [-1, 1]
    z2: Tensor  # (N, M*latent)


class Generator(nn.Module):
    """GANomaly's generator: encoder G_E, decoder G_D, re-encoder G_R."""

    def __init__(self, architecture: Architecture, stack: int = 1):
        super().__init__()
        self.architecture = architecture
        norm, latent = architecture.norm, architecture.latent
        self.encoder = _make_chain(encoder_plan(architecture, latent), stack, norm)
        self.decoder = _make_chain(decoder_plan(architecture), stack, norm)
        self.reencoder = _make_chain(encoder_plan(architecture, latent), stack, norm)

    def forward(self, x: Tensor) -> Reconstruction:
        """Reconstruct images x (N, M*C, H, W), or (N, C, H, W) for all models, in [-1, 1]."""
        chains = (self.encoder, self.decoder, self.reencoder)
        taps = [end - 1 for end in accumulate(map(len, chains))]
        z1, xh, z2 = _run_chain(_layers(*chains), x, taps)
        return Reconstruction(z1.flatten(1), xh, z2.flatten(1))


class DiscriminatorOutput(NamedTuple):
    """Output of a discriminator for images and for their reconstructions."""

    logits_real: Tensor  # (N, M), before the sigmoid
    logits_fake: Tensor
    f_real: Tensor  # (N, M*widths[-1], 4, 4), the last feature map before the classifier
    f_fake: Tensor


class Discriminator(nn.Module):
    """DCGAN's discriminator; its last feature map is f of Eq. 4."""

    def __init__(self, architecture: Architecture, stack: int = 1):
        super().__init__()
        *features, classifier = encoder_plan(architecture, 1)
        self.features = _make_chain(features, stack, architecture.norm)
        self.classifier = Layer(classifier, stack, architecture.norm)
        # Batch statistics must not mix real and fake images: they need two calls.
        self.one_call = architecture.norm == "instance"

    def forward(self, x: Tensor, xh: Tensor) -> DiscriminatorOutput:
        """Discriminate real images x and reconstructions xh, both (N, M*C, H, W)."""
        layers, tap = [*_layers(self.features), self.classifier], len(self.features) - 1
        if self.one_call:
            ops = [layer.op() for layer in layers]
            logits_real, logits_fake, f_real, f_fake = conv_chain_pair(
                x, xh, ops, tap=tap, stack=self.classifier.stack
            )
        else:
            f_real, logits_real = _run_chain(layers, x, (tap, tap + 1))
            f_fake, logits_fake = _run_chain(layers, xh, (tap, tap + 1))
        return DiscriminatorOutput(logits_real.flatten(1), logits_fake.flatten(1), f_real, f_fake)


class GAN(nn.Module):
    """Generator and discriminator of a stack of M models.

    Args:
        architecture: architecture of every model.
        seeds: one seed per model; M = len(seeds). The initial weights of a model depend on its own
            seed only.
    """

    def __init__(self, architecture: Architecture, seeds: Sequence[int]):
        super().__init__()
        self.architecture, self.stack = architecture, len(seeds)
        self.generator = Generator(architecture, self.stack)
        self.discriminator = Discriminator(architecture, self.stack)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for layer in self.modules():
            if isinstance(layer, Layer):
                layer.initialize(generators)


def network_tensors(networks: dict[str, GAN]) -> dict[str, Tensor]:
    """Return weights and statistics of named networks as "<network>.<name>" -> tensor."""
    return {
        f"{name}.{key}": value
        for name, gan in networks.items()
        for key, value in gan.state_dict().items()
    }


def load_networks(networks: dict[str, GAN], tensors: dict[str, Tensor]) -> None:
    """Copy tensors of `network_tensors` into networks, in place; other tensors are ignored.

    Raises:
        CheckpointError: the tensors of a network are missing or have another architecture.
    """
    for name, gan in networks.items():
        prefix = f"{name}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not state:
            raise CheckpointError(f"it has no tensors of the {name}")
        try:
            gan.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"its {name} is of another architecture: {error}") from error
