"""P-KDGAN: train, distil and score one-class novelty detectors."""

from typing import Any

__all__ = ["Detector"]


def __getattr__(name: str) -> Any:
    """`pkd.Detector`, imported when it is asked for: it brings torch and scikit-learn."""
    if name != "Detector":
        raise AttributeError(f"module 'pkd' has no attribute {name!r}")
    from pkd.detector import Detector

    return Detector
