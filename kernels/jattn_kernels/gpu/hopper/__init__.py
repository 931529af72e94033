"""Kernels for Hopper: copies by the tensor memory accelerator, products by warpgroups (`wgmma`)."""
