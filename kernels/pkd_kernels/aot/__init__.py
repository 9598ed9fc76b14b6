"""Compile every kernel ahead of time for GPUs that are not present.

`python -m pkd_kernels.aot` prints registers, shared memory and stack of every launch.
"""
