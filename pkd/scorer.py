"""One model cut out of a stack, in PyTorch's own modules: what is exported.

Its graph has one node for a convolution, one for a normalisation and so on.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from pkd_kernels.reference import LEAKY_SLOPE, NORM_EPS
from torch import Tensor, nn

from pkd.deployed import Score
from pkd.hardware import convolutions
from pkd.models import Generator, Layer

# Those of the definition as PyTorch's modules; in place, as a second map takes time.
ACTIVATIONS = {
    "none": nn.Identity,
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    "tanh": nn.Tanh,
}


class Scorer(nn.Module):
    """One model of a stack as a function from images to novelty scores (Eq. 3, mean of squares).

    Args:
        generator: of the stack.
        member: which model.
    """

    def __init__(self, generator: Generator, member: int = 0):
        super().__init__()
        parts = (generator.encoder, generator.decoder, generator.reencoder)
        self.encoder, self.decoder, self.reencoder = (
            nn.Sequential(*(module for layer in part for module in _modules(layer, member)))
            for part in parts
        )
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, C, H, W) in [0, 255], of any type; returns (N,) float32, at least 0."""
        z1 = self.encoder(images.to(torch.float32) / 127.5 - 1)
        z2 = self.reencoder(self.decoder(z1))
        return (z1 - z2).square().mean(1)


def _modules(layer: Layer, member: int) -> Iterator[nn.Module]:
    """One model's layer; latents are (N, latent), and layers from and to them plain matrices.

    A convolution over its whole input costs a runtime more than the matrix product that it is.
    """
    plan = layer.plan
    own = {name: stacked.chunk(layer.stack)[member] for name, stacked in layer.state_dict().items()}
    weight = own["weight"]
    if plan.size_out == 1:
        yield nn.Flatten()
        matrix = nn.Linear(16 * plan.inputs, plan.outputs, bias=False)
        yield _with({"weight": weight.flatten(1)}, matrix)
    elif plan.size_in == 1:
        matrix = nn.Linear(plan.inputs, 16 * plan.outputs, bias=False)
        yield _with({"weight": weight.flatten(1).T}, matrix)
        yield nn.Unflatten(1, (plan.outputs, 4, 4))
    else:
        kind = nn.ConvTranspose2d if plan.transposed else nn.Conv2d
        convolution = kind(plan.inputs, plan.outputs, 4, plan.stride, plan.padding, bias=False)
        yield _with({"weight": weight}, convolution)
    if plan.normalised:
        norm = nn.BatchNorm2d if layer.batch_norm else _InstanceNorm
        own["weight"], own["bias"] = own.pop("gamma"), own.pop("beta")
        yield _with(own, norm(plan.outputs, NORM_EPS, affine=True))
    yield ACTIVATIONS[plan.activation]()


class _InstanceNorm(nn.InstanceNorm2d):
    """One node of an exported graph; in PyTorch one group a channel, which takes half the time."""

    def forward(self, y: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return super().forward(y)
        return torch.group_norm(y, self.num_features, self.weight, self.bias, self.eps)


def _with(tensors: dict[str, Tensor], module: nn.Module) -> nn.Module:
    """The module with these for its parameters and buffers."""
    module.load_state_dict(module.state_dict() | tensors)
    return module


def in_torch(scorer: nn.Module, dtype: torch.dtype = torch.uint8, flops: float = math.inf) -> Score:
    """Scores of arrays by a module that takes images of `dtype`, at `flops` multiply-adds each."""

    @torch.inference_mode()
    def score(images: np.ndarray) -> np.ndarray:
        with convolutions(len(images), flops)():
            return scorer(torch.from_numpy(images).to(dtype)).numpy()

    return score
