"""GANomaly networks: encoder-decoder-encoder generator and discriminator, for a stack of M models.

Tensors and parameters of a stack are laid out model-major, see `pkd_kernels.reference`.

Pickled detectors contain Architecture, LayerPlan, Layer and Generator: their attribute names are
part of the file format.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pkd_kernels import ACTIVATIONS, NORM_EPS, ConvLayer, GANLayers, conv_chain, gan_pass
from torch import Tensor, nn

from pkd.models.architecture import Architecture, LayerPlan, decoder_plan, encoder_plan
from pkd.utils.errors import CheckpointError


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

    def op(self, constant: bool = False) -> ConvLayer:
        """Return the layer as the kernels take it; with norm="batch" its convolution only.

        `constant`: without gradients of its parameters.
        """
        plan, fused = self.plan, not self.batch_norm
        layer = ConvLayer(
            self.weight,
            self.gamma if fused else None,
            self.beta if fused else None,
            plan.stride,
            plan.padding,
            plan.transposed,
            plan.activation if fused else "none",
        )
        return layer.map(Tensor.detach) if constant else layer

    def forward(self, x: Tensor, constant: bool = False) -> Tensor:
        """Map (N, M*Ci, H, W), or (N, Ci, H, W) shared by all models, to (N, M*Co, H', W').

        `constant`: without gradients of the parameters and without an update of the statistics.
        """
        (y,) = conv_chain(x, [self.op(constant)], taps=(0,), stack=self.stack)
        if not self.batch_norm:
            return y
        assert self.gamma is not None, "batch normalisation has parameters"
        assert self.beta is not None
        gamma, beta = (
            (self.gamma.detach(), self.beta.detach()) if constant else (self.gamma, self.beta)
        )
        updated = not (constant and self.training)
        mean, var = (self.running_mean, self.running_var) if updated else (None, None)
        y = F.batch_norm(y, mean, var, gamma, beta, self.training, eps=NORM_EPS)
        return ACTIVATIONS[self.plan.activation].function(y)


def _run_chain(
    layers: Sequence[Layer], x: Tensor, taps: Sequence[int], constant: bool = False
) -> tuple[Tensor, ...]:
    """Run a chain of layers and return the outputs of the layers with the indices `taps`."""
    if not any(layer.batch_norm for layer in layers):  # images are independent: a single op
        ops = [layer.op(constant) for layer in layers]
        return conv_chain(x, ops, taps=taps, stack=layers[0].stack)
    outputs = [x := layer(x, constant) for layer in layers]
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled generator.

        Early versions stored no architecture; their images had 32x32 pixels, so there are three
        stages.
        """
        super().__setstate__(state)
        if "architecture" not in state:
            layers = _layers(self.encoder)
            first, second, third, last = (layer.plan for layer in layers)
            self.architecture = Architecture(
                channels=first.inputs,
                widths=(first.outputs, second.outputs, third.outputs),
                latent=last.outputs,
                norm="batch" if any(layer.batch_norm for layer in layers) else "instance",
                norm_first=first.normalised,
            )


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

    @property
    def layers(self) -> list[Layer]:
        """All layers, in order."""
        return [*_layers(self.features), self.classifier]

    def forward(self, x: Tensor, xh: Tensor) -> DiscriminatorOutput:
        """Discriminate real images x and reconstructions xh, both (N, M*C, H, W).

        The logits are functions of the parameters alone, f_fake of xh alone: one gradient of all
        losses gives the discriminator its own loss, and the generator no gradient of it.
        """
        layers, tap = self.layers, len(self.features) - 1
        f_real, logits_real = _run_chain(layers, x, (tap, tap + 1))
        (logits_fake,) = _run_chain(layers, xh.detach(), (tap + 1,))
        (f_fake,) = _run_chain(layers[:-1], xh, (tap,), constant=True)
        return DiscriminatorOutput(
            logits_real.flatten(1), logits_fake.flatten(1), f_real.detach(), f_fake
        )


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

    def op(self, adversarial: bool) -> GANLayers:
        """Return the layers as the kernels take them, the discriminator's only if adversarial."""
        generator = self.generator
        chains = [_layers(c) for c in (generator.encoder, generator.decoder, generator.reencoder)]
        chains.append(self.discriminator.layers if adversarial else [])
        return GANLayers(*([layer.op() for layer in chain] for chain in chains))


class GANOutput(NamedTuple):
    """Outputs of a GAN for images."""

    reconstruction: Reconstruction
    discriminated: DiscriminatorOutput | None  # None where the discriminator did not run


def forward_gans(
    gans: Sequence[GAN], adversarial: Sequence[bool], x: Tensor
) -> tuple[GANOutput, ...]:
    """Run GANs on the same images, so that one gradient of all losses trains each network.

    Args:
        gans: stacks of M models each.
        adversarial: of each GAN, whether its discriminator runs; for gradients see there.
        x: (N, M*C, H, W) images in [-1, 1].
    """
    if any(gan.architecture.norm == "batch" for gan in gans):  # statistics mix images: layers alone
        generated = [gan.generator(x) for gan in gans]
        return tuple(
            GANOutput(output, gan.discriminator(x, output.xh) if on else None)
            for gan, on, output in zip(gans, adversarial, generated, strict=True)
        )
    ops = [gan.op(on) for gan, on in zip(gans, adversarial, strict=True)]
    outputs = []
    for z1, xh, z2, real, fake, f_real, f_fake in gan_pass(x, ops, stack=gans[0].stack):
        scored = None
        if real is not None and fake is not None and f_real is not None and f_fake is not None:
            scored = DiscriminatorOutput(real.flatten(1), fake.flatten(1), f_real, f_fake)
        outputs.append(GANOutput(Reconstruction(z1.flatten(1), xh, z2.flatten(1)), scored))
    return tuple(outputs)


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
            reason = " ".join(str(error).split())
            raise CheckpointError(f"its {name} is of another architecture: {reason}") from error
