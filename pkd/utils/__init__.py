"""Errors, files and devices: what every other sub-package may import."""
