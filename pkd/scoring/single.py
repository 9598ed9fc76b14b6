"""One model of a stack as a chain of plain PyTorch functions, for scoring and for export.

The exported graph has one node for each convolution, normalisation and activation. Modules would
add a Python call to each of them, and in a small network these calls dominate the time of an image.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from pkd_kernels import ACTIVATIONS, NORM_EPS
from torch import Tensor, nn

from pkd.models.ganomaly import Generator, Layer
from pkd.scoring.score import LATENT, TINY, Score
from pkd.utils.device import convolutions

HALF_RANGE = 127.5  # x / HALF_RANGE - 1 maps pixels from [0, 255] to [-1, 1]

Function = Callable[[Tensor], Tensor]


class Scorer(nn.Module):
    """Novelty scores of images by one model of a stack.

    Args:
        generator: the stack; its weights become constants.
        member: index of the model.
        score: combines the parts of the score.
    """

    def __init__(self, generator: Generator, member: int = 0, score: Score = LATENT):
        super().__init__()
        self.score = score
        first = generator.encoder[0]
        networks = (generator.encoder, generator.decoder, generator.reencoder)
        self.encoder, self.decoder, self.reencoder = (
            [
                function
                for layer in cast(Iterable[Layer], network)
                # x / 127.5 - 1 is (x - 127.5) / 127.5; the first convolution absorbs the division
                for function in _functions(layer, member, HALF_RANGE if layer is first else 1.0)
            ]
            for network in networks
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Score images.

        Args:
            images: (N, C, H, W) in [0, 255], of any type.

        Returns:
            Scores (N,) float32, at least 0, higher is more novel; then the parts that they are
            made of, (N,) each, in the order of `NOVELTY_PARTS`.
        """
        centred = images.to(torch.float32) - HALF_RANGE
        z1 = _apply(self.encoder, centred)
        xh = _apply(self.decoder, z1)
        error = (centred / HALF_RANGE - xh).abs_().flatten(1).mean(1)
        latent = (z1 - _apply(self.reencoder, xh)).square_().mean(1)
        energy = z1.square().mean(1)
        return self._combine(latent, energy, error), latent, energy, error

    def _combine(self, latent: Tensor, energy: Tensor, error: Tensor) -> Tensor:
        """`Score.__call__` on tensors."""
        parts = (latent, energy, error / self.score.reference)
        factors = [
            part if exponent == 1 else part.clamp_min(TINY).pow(exponent)
            for part, exponent in zip(parts, self.score.exponents, strict=True)
            if exponent
        ]
        return math.prod(factors[1:], start=factors[0])


def _apply(functions: list[Function], y: Tensor) -> Tensor:
    for function in functions:
        y = function(y)
    return y


def _functions(layer: Layer, member: int, divisor: float) -> Iterator[Function]:
    """One model's layer as functions, with its weight divided by `divisor`.

    Latents have the shape (N, latent). The layers before and after them, convolutions over the
    whole input, become matrix products, which runtimes compute faster.
    """
    plan = layer.plan
    tensors = {
        name: stacked.detach().chunk(layer.stack)[member]
        for name, stacked in layer.state_dict().items()
    }
    weight = tensors["weight"] / divisor
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
        gamma, beta = tensors["gamma"], tensors["beta"]
        if layer.batch_norm:
            mean, var = tensors["running_mean"], tensors["running_var"]
            yield lambda y: F.batch_norm(y, mean, var, gamma, beta, eps=NORM_EPS)
        else:
            yield lambda y: _instance_norm(y, gamma, beta)
    if plan.activation != "none":
        yield ACTIVATIONS[plan.activation].inplace  # saves an allocation per layer


def _instance_norm(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Instance normalisation: one node in an exported graph, otherwise the faster group norm."""
    if torch.compiler.is_exporting():
        return F.instance_norm(y, weight=gamma, bias=beta, eps=NORM_EPS)
    return torch.group_norm(y, len(gamma), gamma, beta, NORM_EPS)


def score_function(
    scorer: nn.Module, dtype: torch.dtype = torch.uint8, flops: float = math.inf
) -> Callable[[np.ndarray], np.ndarray]:
    """Wrap a module that scores tensors as a function of arrays.

    Args:
        scorer: `Scorer`, or its exported graph.
        dtype: type of the images that `scorer` accepts.
        flops: multiply-adds for one image, which decide on the use of oneDNN.
    """

    @torch.inference_mode()
    def score(images: np.ndarray) -> np.ndarray:
        with convolutions(len(images), flops)():
            return scorer(torch.from_numpy(images).to(dtype))[0].numpy()

    return score
