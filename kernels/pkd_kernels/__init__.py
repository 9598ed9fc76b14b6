"""The ops of P-KDGAN's training step, as functions of tensors: Triton kernels and definitions."""

from pkd_kernels.dispatch import (
    adam_prepare,
    adam_step,
    conv_chain,
    conv_norm_act,
    discriminator_loss,
    gan_losses,
    gan_pass,
    gather,
    generator_loss,
    novelty_parts,
    novelty_score,
    record_step,
)
from pkd_kernels.flat_adam import FlatAdam
from pkd_kernels.losses.grad_outputs import unit_grad
from pkd_kernels.reference import (
    ACTIVATIONS,
    NORM_EPS,
    NOVELTY_PARTS,
    TERMS,
    ConvLayer,
    GANLayers,
    GANOutput,
    scale_pixels,
)

__all__ = [
    "ACTIVATIONS",
    "NORM_EPS",
    "NOVELTY_PARTS",
    "TERMS",
    "ConvLayer",
    "FlatAdam",
    "GANLayers",
    "GANOutput",
    "adam_prepare",
    "adam_step",
    "conv_chain",
    "conv_norm_act",
    "discriminator_loss",
    "gan_losses",
    "gan_pass",
    "gather",
    "generator_loss",
    "novelty_parts",
    "novelty_score",
    "record_step",
    "scale_pixels",
    "unit_grad",
]
