"""Kernels for Ampere and Ada: warps multiply (`mma.sync`), threads copy (`cp.async`)."""
