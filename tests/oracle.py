"""Attention by its definition in NumPy, float64: an oracle that shares no line with what it judges.

Every row is computed by itself, from the keys that it sees and from nothing else.  The pieces have the names and the
arguments of the library's; each is a plain function:

    score      (query [t, d], key [s, d], head) -> [t, s]
    normalizer row of the scores that are seen [n] -> their weights [n]
    mask       (at) -> booleans, mod (score, at) -> score, gate (weight, at) -> weight, all of [b, h, t, s]

`at` holds the indices b, h, i, j of every pair, to be broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np


class At(NamedTuple):
    b: np.ndarray
    h: np.ndarray
    i: np.ndarray
    j: np.ndarray


# Scores


def dot(scale: float | None = None) -> Callable:
    return lambda q, k, head: (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ k.T)


def _of_head(array: np.ndarray, ndim: int, head: int) -> np.ndarray:
    return array[head] if array.ndim > ndim else array


def general(w: np.ndarray, scale: float = 1.0) -> Callable:
    return lambda q, k, head: scale * (q @ _of_head(w, 2, head) @ k.T)


def cosine(scale: float = 1.0) -> Callable:
    def score(q, k, head):
        del head
        got = np.zeros((len(q), len(k)))
        for i, x in enumerate(q):
            for j, y in enumerate(k):
                norms = math.sqrt(x @ x) * math.sqrt(y @ y)
                got[i, j] = scale * (x @ y) / norms if norms > 0 else 0.0
        return got

    return score


def concat(w_q: np.ndarray, w_k: np.ndarray) -> Callable:
    return lambda q, k, head: np.add.outer(q @ _of_head(w_q, 1, head), k @ _of_head(w_k, 1, head))


def additive(w_q: np.ndarray, w_k: np.ndarray, v: np.ndarray) -> Callable:
    def score(q, k, head):
        left, right, out = _of_head(w_q, 2, head), _of_head(w_k, 2, head), _of_head(v, 1, head)
        return np.array([[out @ np.tanh(left.T @ x + right.T @ y) for y in k] for x in q])

    return score


# Normalisers, of rows without -inf


def softmax() -> Callable:
    return lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def sigmoid(bias: float = 0.0) -> Callable:
    return lambda z: 1 / (1 + np.exp(-(z + bias)))


def sparsemax() -> Callable:
    """Algorithm 1 of Martins & Astudillo 2016, on scores with the greatest at 0."""

    def weights(z):
        z = z - z.max()
        ordered = np.sort(z)[::-1]
        size = max(k for k in range(1, len(z) + 1) if 1 + k * ordered[k - 1] > ordered[:k].sum())
        tau = (ordered[:size].sum() - 1) / size
        return np.maximum(z - tau, 0)

    return weights


def entmax15() -> Callable:
    """max(z/2 - tau, 0)^2 with the tau, found by bisection, at which they sum to 1 (Peters et al. 2019)."""

    def weights(z):
        z = (z - z.max()) / 2
        low, high = -1.0, 0.0
        for _ in range(200):
            tau = (low + high) / 2
            low, high = (tau, high) if (np.maximum(z - tau, 0) ** 2).sum() > 1 else (low, tau)
        return np.maximum(z - low, 0) ** 2

    return weights


def hard() -> Callable:
    return lambda z: np.arange(len(z)) == min(n for n in range(len(z)) if z[n] == z.max())


def relu() -> Callable:
    """Over the number of keys that are seen."""
    return lambda z: np.maximum(z, 0) / len(z)


def stick_breaking() -> Callable:
    """Each key's share of what those after it have left of the stick."""

    def weights(z):
        left, got = 1.0, np.zeros(len(z))
        for n in reversed(range(len(z))):
            share = 1 / (1 + np.exp(-z[n]))
            got[n] = left * share
            left *= 1 - share
        return got

    return weights


# Masks


def causal(offset: int = 0) -> Callable:
    return lambda at: at.j <= at.i + offset


def window(left: int | None, right: int | None = 0) -> Callable:
    return lambda at: (left is None or at.i - left <= at.j) & (right is None or at.j <= at.i + right)


def around(center: np.ndarray, left: float, right: float) -> Callable:
    def mask(at):
        middle = center[{1: (at.i,), 2: (at.b, at.i), 3: (at.b, at.h, at.i)}[center.ndim]]
        return (middle - left <= at.j) & (at.j <= middle + right)

    return mask


def segments(q_ids: np.ndarray, kv_ids: np.ndarray) -> Callable:
    return lambda at: q_ids[at.b, at.i] == kv_ids[at.b, at.j]


def prefix(length: Any) -> Callable:
    return lambda at: at.j < (length if np.ndim(length) == 0 else length[at.b])


def lengths(kv: np.ndarray, q: np.ndarray | None = None) -> Callable:
    return lambda at: (at.j < kv[at.b]) & (q is None or at.i < q[at.b])


def dilated(stride: int) -> Callable:
    return lambda at: (at.i - at.j) % stride == 0


def blocks(layout: np.ndarray, block: int) -> Callable:
    cell = lambda at: (at.i // block, at.j // block)
    return lambda at: layout[cell(at)] if layout.ndim == 2 else layout[(at.h, *cell(at))]


def _spread(array: np.ndarray, at: At) -> np.ndarray:
    return np.broadcast_to(array, (at.b.size, at.h.size, at.i.size, at.j.size))


def dense(array: np.ndarray) -> Callable:
    return lambda at: _spread(array, at)


# Mods


def softcap(cap: float) -> Callable:
    return lambda score, at: cap * np.tanh(score / cap)


def alibi(slopes: np.ndarray) -> Callable:
    return lambda score, at: score - slopes[at.h] * abs(at.i - at.j)


def bias(array: np.ndarray, axes: str) -> Callable:
    indices = {"b": 0, "h": 1, "t": 2, "s": 3}
    return lambda score, at: score + array[tuple(at[indices[a]] for a in axes)]


def relative(table: np.ndarray, bucket: Callable[[int], int]) -> Callable:
    def mod(score, at):
        buckets = np.array([[bucket(int(j - i)) for j in at.j.ravel()] for i in at.i.ravel()])
        return score + table[at.h, buckets[None, None]]

    return mod


def t5_bucket(bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> Callable[[int], int]:
    """floor(exact + log(distance / exact) / log(max_distance / exact) * (side - exact)) beyond `exact`, in fractions."""
    side = buckets // 2 if bidirectional else buckets
    exact = side // 2

    def bucket(relative: int) -> int:
        first = side if bidirectional and relative > 0 else 0
        distance = abs(relative) if bidirectional else max(-relative, 0)
        if distance < exact:
            return first + distance
        steps = 0
        ratio, step = Fraction(distance, exact) ** (side - exact), Fraction(max_distance, exact)
        while steps < side - exact - 1 and ratio >= step ** (steps + 1):
            steps += 1
        return first + exact + steps

    return bucket


def gumbel(seed: int, temperature: float = 1.0) -> Callable:
    def mod(score, at):
        u = ((_mix(random_bits(seed, at)) >> 9) + 0.5) * 2.0**-23
        return (score - np.log(-np.log(u))) / temperature

    return mod


def function(fn: Callable) -> Callable:
    """A mask, mod or gate of (.., i, j)."""
    return lambda *args: fn(*args[:-1], args[-1].i, args[-1].j)


# Gates


def dropout(rate: float, seed: int) -> Callable:
    bound = min(round(rate * 2**32), 2**32 - 1)
    return lambda weight, at: weight * (random_bits(seed, at) >= bound) / (1 - rate)


def gaussian(center: np.ndarray, sigma: float) -> Callable:
    def gate(weight, at):
        middle = center[(at.b, at.i) if center.ndim == 2 else (at.b, at.h, at.i)]
        return weight * np.exp(-((at.j - middle) ** 2) / (2 * sigma**2))

    return gate


# The hash, in integers that do not wrap by themselves


def _mix(x: Any) -> Any:
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def bits_of(seed: int, b: int, h: int, i: int, j: int) -> int:
    """The random bits of one pair, in Python's integers."""
    head = _mix(_mix((seed + 0x9E3779B9) % 2**32) ^ (b * 0x85EBCA6B + h * 0xC2B2AE35) % 2**32)
    row = _mix(head ^ i * 0x27D4EB2F % 2**32)
    factor = _mix((row + 0x9E3779B9) % 2**32) | 1
    return (factor * _mix((j * 0x165667B1 + 1) % 2**32) + row) % 2**32


def random_bits(seed: int, at: At) -> np.ndarray:
    got = np.zeros([x.size for x in at], np.int64)
    for place in np.ndindex(*got.shape):
        got[place] = bits_of(seed, *place)
    return got


# Attention


class Result(NamedTuple):
    out: np.ndarray  # [b, t, h, e]
    lse: np.ndarray  # [b, t, h]
    weights: np.ndarray  # [b, h, t, s]
    scores: np.ndarray  # [b, h, t, s], -inf where hidden


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    score: Callable | None = None,
    normalizer: Callable | None = None,
    mask: Callable | None = None,
    mods: tuple[Callable, ...] = (),
    gates: tuple[Callable, ...] = (),
    sinks: np.ndarray | None = None,
) -> Result:
    (b, t, h, _), (_, s, g, e) = query.shape, value.shape
    at = At(*np.ogrid[:b, :h, :t, :s])
    score, normalizer = score or dot(), normalizer or softmax()
    group = h // g
    scores = np.zeros((b, h, t, s))
    with np.errstate(invalid="ignore", over="ignore"):
        for n, m in np.ndindex(b, h):
            scores[n, m] = score(query[n, :, m], key[n, :, m // group], m)
        seen = np.broadcast_to(True if mask is None else mask(at), scores.shape) & ~np.isneginf(scores)
        for mod in mods:
            changed = mod(np.where(seen, scores, 0), at)
            scores = np.where(seen, changed, -np.inf)
            seen &= ~np.isneginf(scores)
        scores = np.where(seen, scores, -np.inf)
        weights, lse = np.zeros(scores.shape), np.full((b, t, h), -np.inf)
        for n, m, i in np.ndindex(b, h, t):
            live = seen[n, m, i]
            weights[n, m, i, live], lse[n, i, m] = _row(
                scores[n, m, i, live], normalizer, None if sinks is None else sinks[m]
            )
        for gate in gates:
            weights = np.where(seen, gate(weights, at), 0)
        out = np.zeros((b, t, h, e))
        for n, m, i in np.ndindex(b, h, t):
            live = seen[n, m, i]
            out[n, i, m] = weights[n, m, i, live] @ value[n, live, m // group]
    return Result(out, lse, weights, scores)


def _row(row: np.ndarray, normalizer: Callable, sink: Any) -> tuple[np.ndarray, float]:
    """Weights and lse of the scores that one row sees."""
    if not row.size:
        return row, -math.inf if sink is None else sink
    if not np.all(np.isfinite(row)):
        return np.full(row.shape, np.nan), np.nan
    logits = row if sink is None else np.append(row, sink)
    lse = logits.max() + np.log(np.exp(logits - logits.max()).sum())
    # a sink takes its share of the softmax's denominator
    return normalizer(row) if sink is None else np.exp(row - lse), lse


def merge(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(out [.., e], lse [..]) over all keys, from those over disjoint sets of keys."""
    out, lse = np.zeros(parts[0][0].shape), np.full(parts[0][1].shape, -np.inf)
    for place in np.ndindex(*lse.shape):
        masses = [math.exp(x[place]) for _, x in parts]
        if sum(masses) > 0:
            lse[place] = math.log(sum(masses))
            out[place] = sum(m * o[place] for m, (o, _) in zip(masses, parts, strict=True)) / sum(masses)
    return out, lse


def sample(seed: int, query: Any, key: Any, value: Any, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """out, index and log_prob of one key a row: the greatest of score + Gumbel noise.  0, -1 and -inf without keys."""
    got = attention(query, key, value, **options)
    b, h, t, s = got.scores.shape
    noisy = gumbel(seed)(got.scores, At(*np.ogrid[:b, :h, :t, :s]))
    out, index, log_prob = np.zeros(got.out.shape), np.full((b, t, h), -1), np.full((b, t, h), -np.inf)
    for n, m, i in np.ndindex(b, h, t):
        if np.isneginf(got.lse[n, i, m]):
            continue
        j = int(np.argmax(noisy[n, m, i]))
        out[n, i, m] = value[n, j, m // (h // value.shape[2])]
        index[n, i, m], log_prob[n, i, m] = j, got.scores[n, m, i, j] - got.lse[n, i, m]
    return out, index, log_prob
