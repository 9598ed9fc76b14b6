"""The losses of a training step as Triton kernels, and their backward pass."""
