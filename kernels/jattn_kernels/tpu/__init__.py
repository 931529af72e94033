"""Fused attention for TPU: arrays, a work list and tile functions in, arrays out."""
