"""GANomaly networks, their cost and the paper's figures."""

# Detectors pickled before this package existed name these classes as pkd.models.*.
from pkd.models.ganomaly import GAN, Architecture, Generator

__all__ = ["GAN", "Architecture", "Generator"]
