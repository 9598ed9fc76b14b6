"""GANomaly networks, their cost and the paper's figures.

Detectors pickled by version 0.1.0 import these classes from `pkd.models`, which was a module.
"""

from pkd.models.architecture import Architecture, LayerPlan
from pkd.models.ganomaly import GAN, Discriminator, Generator, Layer

__all__ = ["GAN", "Architecture", "Discriminator", "Generator", "Layer", "LayerPlan"]
