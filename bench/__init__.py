"""Benchmarks, side by side with the peers: `python -m bench cpu`. No test asserts a time measured here."""
