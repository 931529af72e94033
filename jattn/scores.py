"""Scores: how one query and one key are compared.

Each is a frozen dataclass pytree.  `__call__(query [t, d], key [s, d]) -> [t, s]` is the definition, for one head.
`reduce(query, key)` says how the fused backends compute it: a transformed query and key, what compares
two tiles of them, and terms that finish the job.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jattn._terms import Operand, Term, number, term, wide
from jattn.mods import Bias, Mod

_HIGH = jax.lax.Precision.HIGHEST


class Reduced(NamedTuple):
    """A score as `compare` of a transformed query `[b, t, h, m]` and key `[b, s, g, m]`, and mods that come first."""

    query: jax.Array
    key: jax.Array
    compare: Term
    mods: tuple[Mod, ...] = ()


class Score(Term):
    """What `attention(score=...)` takes.  Make one with the functions of this module, or a subclass of your own."""

    def __call__(self, query: Any, key: Any) -> Any:
        raise NotImplementedError

    def reduce(self, query: jax.Array, key: jax.Array) -> Reduced:
        raise NotImplementedError


@term
class Product(Term):
    """Compares two tiles by scale * q.k: the only score the fused kernels know."""

    scale: Any
    precision: Any = None

    def __call__(self, query, key):
        return jax.lax.dot_general(query * self.scale, key, (((1,), (1,)), ((), ())), precision=self.precision)


@term
class Perceptron(Term):
    """Compares two tiles by v.tanh(q + k)."""

    v: Any

    def __call__(self, query, key):
        # a product, forward and backward: as a sum it is one number at a time on a CPU
        return jnp.matmul(jnp.tanh(query[:, None] + key[None]), self.v, precision=_HIGH)


@term
class Dot(Score):
    scale: Any

    def __call__(self, query, key):
        return self._scale(query) * (query @ key.T)

    def _scale(self, query):
        return query.shape[-1] ** -0.5 if self.scale is None else self.scale

    def reduce(self, query, key):
        return Reduced(query, key, Product(self._scale(query)))


def dot(scale: Any = None) -> Score:
    """scale * q.k, scale 1/sqrt(d) by default: scaled dot product (Vaswani et al. 2017).

    `scale` is a number, or a scalar array that gets a gradient.
    """
    return Dot(None if scale is None else number(scale, "scale"))


@term
class General(Score):
    w: Operand
    scale: Any

    def __call__(self, query, key):
        return self.scale * (query @ self.w @ key.T)

    def reduce(self, query, key):
        return Reduced(_project(query, self.w), key, Product(self.scale))


def general(w: Any, scale: Any = 1.0) -> Score:
    """scale * q.W.k, the "general" or matrix score (Luong et al. 2015).  `w` `[d, d]` or `[h, d, d]`, learnable.

    A query and a key of unequal widths are fine: `w` is then `[query width, key width]`.
    """
    return General(_weight(w, "w", 2), number(scale, "scale"))


@term
class Cosine(Score):
    scale: Any

    def __call__(self, query, key):
        return self.scale * (_unit(query) @ _unit(key).T)

    def reduce(self, query, key):
        return Reduced(_unit(query), _unit(key), Product(self.scale))


def cosine(scale: Any = 1.0) -> Score:
    """scale * q.k / (norm(q) norm(k)) (Graves et al. 2014).  A zero vector scores 0, with gradient 0.

    Scores lie within [-scale, scale]: a scale of 10 or more, or a learnable one, lets the softmax be sharp.
    """
    return Cosine(number(scale, "scale"))


@term
class Concat(Score):
    w_q: Operand
    w_k: Operand

    def __call__(self, query, key):
        return (query @ self.w_q)[:, None] + (key @ self.w_k)[None]

    def reduce(self, query, key):
        # rank one: the query's part is a product of width 1 with ones, the key's part a bias
        heads, groups = query.shape[-2], key.shape[-2]
        query_part = _project(query, Operand(self.w_q.array[..., None], self.w_q.axes))
        w_k = jnp.broadcast_to(self.w_k.array, (heads, key.shape[-1])).reshape(groups, heads // groups, -1)
        key_part = jnp.einsum("bsgd,grd->bgrs", wide(key), wide(w_k), precision=_HIGH)
        key_part = key_part.reshape(key.shape[0], heads, key.shape[1])
        ones = jnp.ones((*key.shape[:-1], 1), query_part.dtype)
        return Reduced(query_part, ones, Product(1.0), (Bias(Operand(key_part, "bhs")),))


def concat(w_q: Any, w_k: Any) -> Score:
    """w_q.q + w_k.k: the linear score of [q; k] joined (Luong et al. 2015).  `[d]` or `[h, d]`, learnable."""
    return Concat(_weight(w_q, "w_q", 1), _weight(w_k, "w_k", 1))


@term
class Additive(Score):
    w_q: Operand
    w_k: Operand
    v: Operand

    def __call__(self, query, key):
        return Perceptron(self.v)((query @ self.w_q), (key @ self.w_k))

    def reduce(self, query, key):
        if self.w_k.axes:  # each head projects the keys of its group differently
            key = jnp.repeat(key, query.shape[-2] // key.shape[-2], axis=-2)
        return Reduced(_project(query, self.w_q), _project(key, self.w_k), Perceptron(self.v))


def additive(w_q: Any, w_k: Any, v: Any) -> Score:
    """v.tanh(W_q q + W_k k): the MLP score (Bahdanau et al. 2015).  `[d, m]`, `[d, m]`, `[m]`, each with or without a
    leading `h`; all learnable.  Computed tile by tile: `[t, s, m]` is never stored.
    """
    return Additive(_weight(w_q, "w_q", 2), _weight(w_k, "w_k", 2), _weight(v, "v", 1))


def _weight(array: Any, name: str, ndim: int) -> Operand:
    array = array if isinstance(array, (jax.Array, np.ndarray)) else jnp.asarray(array)
    if array.ndim not in (ndim, ndim + 1):
        raise ValueError(f"{name} must have {ndim} axes, or {ndim + 1} with a leading h, got shape {array.shape}")
    return Operand(array, "h" if array.ndim > ndim else "")


def _unit(x: jax.Array) -> jax.Array:
    x = wide(x)
    # the direction of x / top is that of x, with every derivative, and its square neither overflows nor underflows
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.where(top > 0, top, 1)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def _project(x: jax.Array, w: Operand) -> jax.Array:
    """x.W for every head, accumulated and kept in float32 or wider."""
    subscripts = "bthd,hdm->bthm" if w.axes else "bthd,dm->bthm"
    return jnp.einsum(subscripts, wide(x), wide(w.array), precision=_HIGH)
