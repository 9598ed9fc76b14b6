"""P-KDGAN: train, distil and score one-class novelty detectors."""

from typing import Any

__all__ = ["Detector"]


def __getattr__(name: str) -> Any:
    """Import `pkd.Detector` on first use: it needs torch and scikit-learn."""
    if name != "Detector":
        raise AttributeError(f"module 'pkd' has no attribute {name!r}")
    from pkd.detector import Detector

    return Detector
