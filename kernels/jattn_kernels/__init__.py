"""Kernels for attention: arrays, block tables and tile functions in, arrays out.  A leaf: imports no `jattn`."""
