"""Fused kernels for NVIDIA GPUs, on Pallas' Mosaic GPU: a package for each generation, and what they share."""
