"""One model cut out of a stack as a chain of PyTorch's own functions: what is scored and exported.

An exported graph has one node for a convolution, one for a normalisation and so on. Modules would
add a call in Python to each, and of a small network the calls are what an image costs.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from pkd_kernels.reference import LEAKY_SLOPE, NORM_EPS
from torch import Tensor, nn

from pkd.deploy.inference import Score
from pkd.models.ganomaly import Generator, Layer
from pkd.utils.device import convolutions

HALF_RANGE = 127.5  # of pixels, so that they lie in [-1, 1]

Function = Callable[[Tensor], Tensor]

# In place, which in a single image's time shows: reference.ACTIVATIONS write a new tensor.
ACTIVATIONS: dict[str, tuple[Function, ...]] = {
    "none": (),
    "relu": (torch.relu_,),
    "leaky_relu": (lambda y: F.leaky_relu_(y, LEAKY_SLOPE),),
    "tanh": (torch.tanh_,),
}


class Scorer(nn.Module):
    """One model of a stack as a function from images to novelty scores (Eq. 3, mean of squares).

    Args:
        generator: of the stack; its weights are constants here.
        member: which model.
    """

    def __init__(self, generator: Generator, member: int = 0):
        super().__init__()
        first = generator.encoder[0]
        parts = (generator.encoder, generator.decoder, generator.reencoder)
        self.encoder, self.decoder, self.reencoder = (
            [
                function
                for layer in part
                # x / 127.5 - 1 is (x - 127.5) / 127.5, and the first convolution can divide as well
                for function in _functions(layer, member, HALF_RANGE if layer is first else 1.0)
            ]
            for part in parts
        )

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, C, H, W) in [0, 255], of any type; returns (N,) float32, at least 0."""
        z1 = _through(self.encoder, images.to(torch.float32) - HALF_RANGE)
        z2 = _through(self.reencoder, _through(self.decoder, z1))
        return (z1 - z2).square_().mean(1)


def _through(functions: list[Function], y: Tensor) -> Tensor:
    for function in functions:
        y = function(y)
    return y


def _functions(layer: Layer, member: int, divisor: float) -> Iterator[Function]:
    """One model's layer, its weight divided; latents are (N, latent), and layers from and to them
    plain matrices.

    A convolution over its whole input costs a runtime more than the matrix product that it is.
    """
    plan = layer.plan
    own = {
        name: stacked.detach().chunk(layer.stack)[member]
        for name, stacked in layer.state_dict().items()
    }
    weight = own["weight"] / divisor
    if plan.size_out == 1:
        matrix = weight.flatten(1)
        yield lambda y: y.reshape(-1, 16 * plan.inputs)
        yield lambda y: F.linear(y, matrix)
    elif plan.size_in == 1:
        matrix = weight.flatten(1).T.contiguous()
        yield lambda y: F.linear(y, matrix)
        yield lambda y: y.reshape(-1, plan.outputs, 4, 4)
    else:
        convolve = F.conv_transpose2d if plan.transposed else F.conv2d
        yield lambda y: convolve(y, weight, None, plan.stride, plan.padding)
    if plan.normalised:
        gamma, beta = own["gamma"], own["beta"]
        if layer.batch_norm:
            mean, var = own["running_mean"], own["running_var"]
            yield lambda y: F.batch_norm(y, mean, var, gamma, beta, eps=NORM_EPS)
        else:
            yield lambda y: _instance_norm(y, gamma, beta)
    yield from ACTIVATIONS[plan.activation]


def _instance_norm(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """One node of an exported graph; in PyTorch one group a channel, which is faster."""
    if torch.compiler.is_exporting():
        return F.instance_norm(y, weight=gamma, bias=beta, eps=NORM_EPS)
    return torch.group_norm(y, len(gamma), gamma, beta, NORM_EPS)


def in_torch(scorer: nn.Module, dtype: torch.dtype = torch.uint8, flops: float = math.inf) -> Score:
    """Scores of arrays by a module that takes images of `dtype`, at `flops` multiply-adds each."""

    @torch.inference_mode()
    def score(images: np.ndarray) -> np.ndarray:
        with convolutions(len(images), flops)():
            return scorer(torch.from_numpy(images).to(dtype)).numpy()

    return score
