"""Attention on NVIDIA GPUs, as Pallas Mosaic kernels; what defines a tile's terms is handed in as functions."""
