"""Exported detectors and the scoring of files."""
