"""The ops of P-KDGAN's training step: they know tensors, nothing of GANs, files or loops."""

from pkd_kernels.dispatch import (
    adam_step,
    conv_chain,
    conv_chain_pair,
    conv_norm_act,
    discriminator_loss,
    gather,
    generator_loss,
    novelty_score,
    record_step,
)
from pkd_kernels.flat_adam import FlatAdam
from pkd_kernels.reference import (
    ACTIVATIONS,
    NORM_EPS,
    TERMS,
    ConvLayer,
    to_unit,
)
from pkd_kernels.unit_grad import unit_upstream

__all__ = [
    "ACTIVATIONS",
    "NORM_EPS",
    "TERMS",
    "ConvLayer",
    "FlatAdam",
    "adam_step",
    "conv_chain",
    "conv_chain_pair",
    "conv_norm_act",
    "discriminator_loss",
    "gather",
    "generator_loss",
    "novelty_score",
    "record_step",
    "to_unit",
    "unit_upstream",
]
