"""Run folders, the training pipeline and its results."""
