"""Rows of scores, and the normalisers by their definitions: projections by bisection."""

from __future__ import annotations

import numpy as np

ROWS = np.random.default_rng(0).normal(size=(7, 11)) * 3


def _bisect(row: np.ndarray, weight) -> np.ndarray:
    """The weights of the threshold tau at which they sum to 1."""
    lo, hi = row.min() - 2, row.max()
    for _ in range(200):
        tau = (lo + hi) / 2
        lo, hi = (tau, hi) if weight(row, tau).sum() > 1 else (lo, tau)
    return weight(row, (lo + hi) / 2)


EXACT = {
    "softmax": lambda row: np.exp(row) / np.exp(row).sum(),
    "sigmoid": lambda row: 1 / (1 + np.exp(-row)),
    "sparsemax": lambda row: _bisect(row, lambda z, tau: np.maximum(z - tau, 0)),
    "entmax15": lambda row: _bisect(row / 2, lambda z, tau: np.maximum(z - tau, 0) ** 2),
    "hard": lambda row: np.eye(len(row))[row.argmax()],
}
