"""Kernels for CUDA devices, in Triton; imported on use."""
