"""Data sets, image files and arrays."""
