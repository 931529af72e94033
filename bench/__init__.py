"""Benchmarks, side by side with the peers: `python -m bench cpu` and `tpu`. No test asserts a time measured here."""
