"""P-KDGAN: train, distil and score one-class novelty detectors."""
