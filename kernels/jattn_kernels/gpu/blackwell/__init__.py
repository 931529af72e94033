"""Kernels for Blackwell: products by one thread for its warpgroup (`tcgen05`), whose results stand in tensor memory."""
