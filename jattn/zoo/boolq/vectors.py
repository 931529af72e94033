"""Vectors of words from what stands beside them, without a network: a factorised table of co-occurrences.

Levy & Goldberg (2014) show that word2vec does the same implicitly; Levy, Goldberg & Dagan (2015) give the details taken
from there: near words count more, contexts are smoothed, and the root of the singular values.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

WINDOW = 5  # words to each side, the k-th of them counted 1/k
SMOOTHING = 0.75  # power of a context's frequency, against rare contexts


def word_vectors(texts: Sequence[np.ndarray], size: int, width: int) -> np.ndarray:
    """Rows of unit mean square length for `size` tokens, of which 0 and 1, padding and all unknown words, get 0.

        M_wc = max(log(n_wc n / (n_w n_c)), 0),   U S V' = M,   vectors = U sqrt(S)

    texts: the tokens of each.  width: how many singular values.
    """
    gap = np.zeros(WINDOW, np.int64)
    stream = np.concatenate([part for text in texts for part in (text, gap)])
    counts = _cooccurrences(stream, size).tocoo()
    row = np.asarray(counts.sum(axis=1)).ravel()
    context = row**SMOOTHING / np.sum(row**SMOOTHING)
    gain = np.log(counts.data / (row[counts.row] * context[counts.col]))
    positive = gain > 0
    table = _sparse(gain[positive], counts.row[positive], counts.col[positive], size)
    left, singular, _ = scipy.sparse.linalg.svds(table, k=width, v0=np.ones(size), return_singular_vectors=True)
    vectors = left * np.sqrt(singular)
    vectors[:2] = 0  # padding and unknown words are counted beside no word: but for rounding they are 0
    # a singular vector may come out with either sign: that of its greatest entry is fixed
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(width)])
    return (vectors / np.sqrt(np.mean(np.sum(vectors**2, axis=1)))).astype(np.float32)


def _cooccurrences(stream: np.ndarray, size: int) -> Any:
    """Symmetric: how often two tokens > 1 stand within the window, weighted."""

    def at(distance: int) -> Any:
        first, second = stream[:-distance], stream[distance:]
        known = (first > 1) & (second > 1)
        return _sparse(np.full(known.sum(), 1 / distance), first[known], second[known], size)

    counts = functools.reduce(lambda a, b: a + b, map(at, range(1, WINDOW + 1)))
    return (counts + counts.T).tocsr()


def _sparse(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: int) -> Any:
    return scipy.sparse.coo_matrix((values, (rows, columns)), shape=(size, size)).tocsr()
