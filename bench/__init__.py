"""Benchmarks, side by side with the peers: a folder for each machine. No test asserts a time measured here."""
