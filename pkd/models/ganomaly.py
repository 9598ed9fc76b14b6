"""GANomaly networks: encoder-decoder-encoder generator and discriminator, M of them as one stack.

Layers after the paper's Table 1 and DCGAN: 4x4 convolutions without bias on images of 32x32, three
stride-2 stages to a 4x4 map, one 4x4 convolution to a single pixel; the decoder is the mirror.
Other image sizes take fewer or more stages, as DCGAN does.
Tensors and parameters of a stack are laid out model-major, see `pkd_kernels.reference`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pkd_kernels import (
    ACTIVATIONS,
    NORM_EPS,
    ConvLayer,
    conv_chain,
    conv_chain_pair,
)
from torch import Tensor, nn

from pkd.utils.errors import PkdError

IMAGE_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True)
class Architecture:
    """What fixes a GAN but for its weights.

    Attributes:
        channels: of the images, 1 or 3.
        widths: channels of the three stages of 32x32 images, e.g. (64, 128, 256).
        latent: size of z1 and z2.
        norm: "instance" (statistics of one image, in training and in scoring) or "batch"
            (statistics of the batch in training, running ones in scoring).
        norm_first: whether the first encoder convolution is normalised, as in Table 1.
        image_size: height and width of the images, one of IMAGE_SIZES.
    """

    channels: int
    widths: tuple[int, int, int]
    latent: int = 256
    norm: str = "instance"
    norm_first: bool = True
    image_size: int = 32

    @property
    def stages(self) -> tuple[int, ...]:
        """Channels of each stride-2 stage down to 4x4: `widths`, then doubling as DCGAN's do."""
        count = self.image_size.bit_length() - 3
        last = self.widths[-1]
        return (*self.widths, *(last << k for k in range(1, count - 2)))[:count]


@dataclass(frozen=True)
class LayerPlan:
    """One layer: a 4x4 convolution between maps of side `size_in` and `size_out`, and the rest."""

    inputs: int
    outputs: int
    size_in: int
    size_out: int
    normalised: bool
    activation: str

    @property
    def transposed(self) -> bool:
        return self.size_out > self.size_in

    @property
    def stride(self) -> int:
        return 1 if 1 in (self.size_in, self.size_out) else 2

    @property
    def padding(self) -> int:
        return self.stride - 1


def encoder_plan(architecture: Architecture, outputs: int) -> list[LayerPlan]:
    """Image to a pixel of `outputs` channels: an encoder, or a discriminator with one output."""
    channels = (architecture.channels, *architecture.stages)
    size = architecture.image_size
    first, *stages = (
        LayerPlan(inputs, made, size >> k, size >> k + 1, True, "leaky_relu")
        for k, (inputs, made) in enumerate(pairwise(channels))
    )
    first = replace(first, normalised=architecture.norm_first)
    return [first, *stages, LayerPlan(channels[-1], outputs, 4, 1, False, "none")]


def decoder_plan(architecture: Architecture) -> list[LayerPlan]:
    """Latent pixel to image in [-1, 1]."""
    channels = (*reversed(architecture.stages), architecture.channels)
    *stages, last = (
        LayerPlan(inputs, made, 4 << k, 8 << k, True, "relu")
        for k, (inputs, made) in enumerate(pairwise(channels))
    )
    first = LayerPlan(architecture.latent, channels[0], 1, 4, True, "relu")
    return [first, *stages, replace(last, normalised=False, activation="tanh")]


class Layer(nn.Module):
    """Convolution, normalisation and activation of a stack of M models.

    Parameters: weight (M*Co, Ci, 4, 4), transposed (M*Ci, Co, 4, 4); gamma and beta (M*Co,).
    """

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
        """DCGAN's initialisation: weight N(0, 0.02), gamma N(1, 0.02), beta 0.

        Each model draws from its own generator, so it starts as it would alone.
        """
        moments = [(self.weight, 0.0)] + ([(self.gamma, 1.0)] if self.gamma is not None else [])
        for parameter, mean in moments:
            blocks = parameter.view(self.stack, -1)
            for block, generator in zip(blocks, generators, strict=True):
                block.copy_(torch.empty(block.shape).normal_(mean, 0.02, generator=generator))
        if self.beta is not None:
            self.beta.zero_()

    def op(self) -> ConvLayer:
        """This layer for the kernels; under norm="batch" its convolution alone."""
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
        (y,) = conv_chain(x, [self.op()], taps=(0,), stack=self.stack)
        if not self.batch_norm:
            return y
        running = self.running_mean, self.running_var
        y = F.batch_norm(y, *running, self.gamma, self.beta, self.training, eps=NORM_EPS)
        return ACTIVATIONS[self.plan.activation].function(y)


def _outputs(layers: Sequence[Layer], x: Tensor, taps: Sequence[int]) -> tuple[Tensor, ...]:
    """Outputs of the tapped layers of a chain; one op, unless statistics mix the images."""
    if not any(layer.batch_norm for layer in layers):
        return conv_chain(x, [layer.op() for layer in layers], taps=taps, stack=layers[0].stack)
    made = [x := layer(x) for layer in layers]
    return tuple(made[tap] for tap in taps)


def _layers(plans: list[LayerPlan], stack: int, norm: str) -> nn.Sequential:
    return nn.Sequential(*(Layer(plan, stack, norm) for plan in plans))


class Reconstruction(NamedTuple):
    """What a generator makes of images x: z1 = G_E(x), xh = G_D(z1), z2 = G_R(xh)."""

    z1: Tensor  # (N, M*latent)
    xh: Tensor  # (N, M*C, H, W) in [-1, 1]
    z2: Tensor  # (N, M*latent)


class Generator(nn.Module):
    """GANomaly's generator: encoder G_E, decoder G_D, re-encoder G_R."""

    def __init__(self, architecture: Architecture, stack: int = 1):
        super().__init__()
        self.architecture = architecture
        norm, latent = architecture.norm, architecture.latent
        self.encoder = _layers(encoder_plan(architecture, latent), stack, norm)
        self.decoder = _layers(decoder_plan(architecture), stack, norm)
        self.reencoder = _layers(encoder_plan(architecture, latent), stack, norm)

    def forward(self, x: Tensor) -> Reconstruction:
        """x: (N, M*C, H, W), or (N, C, H, W) for all models alike, in [-1, 1]."""
        parts = (self.encoder, self.decoder, self.reencoder)
        taps = [end - 1 for end in accumulate(map(len, parts))]
        z1, xh, z2 = _outputs([layer for part in parts for layer in part], x, taps)
        return Reconstruction(z1.flatten(1), xh, z2.flatten(1))


class Judgement(NamedTuple):
    """What a discriminator says of images and of their reconstructions."""

    logits_real: Tensor  # (N, M), before the sigmoid
    logits_fake: Tensor
    f_real: Tensor  # (N, M*widths[-1], 4, 4), the last feature map before the classifier
    f_fake: Tensor


class Discriminator(nn.Module):
    """DCGAN's discriminator; its last feature map is f of Eq. 4."""

    def __init__(self, architecture: Architecture, stack: int = 1):
        super().__init__()
        *features, classifier = _layers(encoder_plan(architecture, 1), stack, architecture.norm)
        self.features, self.classifier = nn.Sequential(*features), classifier
        # Statistics over a batch must not mix real and fake; statistics of an image cannot.
        self.one_call = architecture.norm == "instance"

    def forward(self, x: Tensor, xh: Tensor) -> Judgement:
        """x, xh: (N, M*C, H, W)."""
        layers, tap = [*self.features, self.classifier], len(self.features) - 1
        if self.one_call:
            ops = [layer.op() for layer in layers]
            real, fake, *features = conv_chain_pair(x, xh, ops, tap=tap, stack=layers[0].stack)
        else:
            (f_real, real), (f_fake, fake) = (_outputs(layers, i, (tap, tap + 1)) for i in (x, xh))
            features = f_real, f_fake
        return Judgement(real.flatten(1), fake.flatten(1), *features)


class GAN(nn.Module):
    """Generator and discriminator of a stack of M models.

    Args:
        architecture: of every model.
        seeds: one a model; M = len(seeds). A model's first weights depend on its own seed alone.
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
    """Weights and statistics of named networks as "<network>.<name>"."""
    return {
        f"{name}.{key}": value
        for name, gan in networks.items()
        for key, value in gan.state_dict().items()
    }


def load_networks(networks: dict[str, GAN], tensors: dict[str, Tensor]) -> None:
    """Copy `network_tensors` back in place, those of `networks` alone.

    Raises:
        PkdError: the tensors are of another architecture, or lack a network.
    """
    for name, gan in networks.items():
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not own:
            raise PkdError(f"it holds no {name}")
        try:
            gan.load_state_dict(own)
        except RuntimeError as error:
            raise PkdError(
                f"its {name} is of another architecture than config.yaml says: {error}"
            ) from error
