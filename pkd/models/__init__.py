"""GANomaly networks, their cost and the paper's figures."""

# Detectors pickled before this package existed name these classes as pkd.models.*.
from pkd.models.ganomaly import GAN, Architecture, Discriminator, Generator, Layer, LayerPlan

__all__ = ["GAN", "Architecture", "Discriminator", "Generator", "Layer", "LayerPlan"]
