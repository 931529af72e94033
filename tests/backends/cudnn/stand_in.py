"""What stands in for cuDNN's two calls where there is no GPU: as careless of what it need not compute as it may be.

Rows past a length or that see nothing, and gradients of keys past one, are NaN; tiles are multiplied whole.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _scores(q, k, lengths, kind):
    """Scores `[b, h, t, s]`, -inf where the mask hides, and which rows and keys are computed at all."""
    (b, t, h, _), (_, s, g, _) = q.shape, k.shape
    queries, keys = (jnp.full(b, t), jnp.full(b, s)) if lengths is None else lengths
    i, j = jnp.arange(t)[:, None], jnp.arange(s)[None]
    live = jnp.ones((t, s), bool)
    if kind.causal:
        live &= j <= i
    if kind.window is not None:
        assert kind.causal and t <= s
        live &= j > i - kind.window
    live = live & (j < keys[:, None, None]) & (i < queries[:, None, None])
    scores = kind.scale * jnp.einsum("bthd,bshd->bhts", q, jnp.repeat(k, h // g, 2))
    return jnp.where(live[:, None], scores, -jnp.inf), live.any(2), jnp.arange(s) < keys[:, None]


def forward(q, k, v, lengths, kind):
    assert kind.padded == (lengths is not None)
    scores, rows, _ = _scores(q, k, lengths, kind)
    lse = jax.nn.logsumexp(scores, -1)
    weights = jnp.exp(scores - lse[..., None])
    out = jnp.einsum("bhts,bshe->bthe", weights, jnp.repeat(v, q.shape[2] // k.shape[2], 2))
    return jnp.where(rows[..., None, None], out, jnp.nan), jnp.where(rows[:, None], lse, jnp.nan)


def backward(q, k, v, lengths, out, lse, dout, kind):
    (b, _, h, _), (_, s, g, _) = q.shape, k.shape
    scores, rows, seen = _scores(q, k, lengths, kind)
    weights = jnp.exp(scores - lse[..., None])
    many = lambda x: jnp.repeat(x, h // g, 2)
    few = lambda x: x.reshape(b, s, g, h // g, -1).sum(3)
    dp = jnp.einsum("bthe,bshe->bhts", dout, many(v))
    delta = jnp.einsum("bthe,bthe->bht", dout, out)
    ds = kind.scale * weights * (dp - delta[..., None])
    dq, dk = jnp.einsum("bhts,bshd->bthd", ds, many(k)), few(jnp.einsum("bhts,bthd->bshd", ds, q))
    dv = few(jnp.einsum("bhts,bthe->bshe", weights, dout))
    past = lambda x: jnp.where(seen[..., None, None], x, jnp.nan)
    return jnp.where(rows[..., None, None], dq, jnp.nan), past(dk), past(dv)
