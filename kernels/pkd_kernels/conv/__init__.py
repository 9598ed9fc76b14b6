"""Layers of convolution, per-image normalisation and activation as Triton kernels."""
