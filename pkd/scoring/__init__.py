"""Novelty scores, thresholds and metrics."""
