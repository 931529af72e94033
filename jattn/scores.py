"""Scores: how one query and one key are compared.

Each is a frozen dataclass pytree.  `__call__(query [t, d], key [s, d]) -> [t, s]` is the definition, for one head.
`reduce(query, key)` says how the fused backends compute it: a transformed query and key, what compares
two tiles of them, and terms that finish the job.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, Term, number, repeated, term, wide
from jattn._terms.operand import as_array
from jattn.mods import Bias, Mod

__all__ = ["Product", "Reduced", "Score", "additive", "concat", "cosine", "dot", "general"]


def __dir__() -> list[str]:
    return __all__


_HIGH = jax.lax.Precision.HIGHEST


class Reduced(NamedTuple):
    """A score as `compare` of a transformed query and key, and mods that come before those of the call.

    Less the distance of query and key, squared and halved: their product, less what each has of it by itself.

    >>> import jax, jax.numpy as jnp, jattn
    >>> from jattn import mods, scores
    >>> class Near(scores.Score):
    ...     def __call__(self, query, key):
    ...         return -((query[:, None] - key) ** 2).sum(-1) / 2
    ...
    ...     def reduce(self, query, key):
    ...         half = lambda x: -(x.swapaxes(1, 2) ** 2).sum(-1) / 2
    ...         own = mods.bias(half(query), "bht"), mods.bias(half(key), "bhs")
    ...         return scores.Reduced(query, key, scores.Product(1.0), own)
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    >>> far = ((q[:, :, None] - k[:, None]) ** 2).sum(-1)  # [b, t, s, h]
    >>> wanted = jax.nn.softmax(-far / 2, axis=2).transpose(0, 3, 1, 2)
    >>> bool(abs(jattn.weights(q, k, v, score=Near()) - wanted).max() < 1e-5)
    True
    """

    query: jax.Array
    """`[b, t, h, m]`."""
    key: jax.Array
    """`[b, s, g, m]`."""
    compare: Term
    """Called with tiles `[bt, m]` and `[bs, m]`, gives scores `[bt, bs]`; the kernels know `Product`."""
    mods: tuple[Mod, ...] = ()


class Score(Term):
    """What `attention(score=...)` takes.  Make one with the functions of this module, or a subclass of your own.

    >>> import jax.numpy as jnp, jattn
    >>> from jattn import scores
    >>> class Doubled(scores.Score):
    ...     def __call__(self, query, key):
    ...         return 2 * query @ key.T
    ...
    ...     def reduce(self, query, key):
    ...         return scores.Reduced(query, key, scores.Product(2.0))
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, score=Doubled()).shape
    (1, 3, 2, 4)
    """

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Scores `[t, s]` of queries `[t, d]` and keys `[s, d]` of one head, float32 or wider: the definition."""
        raise NotImplementedError

    def reduce(self, query: jax.Array, key: jax.Array) -> Reduced:
        """The same as a transformed query and key and what compares tiles of them, of `[b, t, h, d]`, `[b, s, g, d]`.

        Attributes that hold arrays are `jattn.Operand`s here.
        """
        raise NotImplementedError


@term
class Product(Term):
    """Compares two tiles by scale * q.k: the only score the fused kernels know.

    >>> import jax.numpy as jnp, jattn
    >>> query, key = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 1.0], [0.0, 3.0]])
    >>> jattn.scores.Product(0.5)(query, key).tolist()
    [[1.5, 3.0]]
    """

    scale: FieldValue
    precision: jax.lax.Precision | None = None

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return jax.lax.dot_general(query * self.scale, key, (((1,), (1,)), ((), ())), precision=self.precision)


@term
class Perceptron(Term):
    """Compares two tiles by v.tanh(q + k)."""

    v: FieldValue

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        # a product, forward and backward: as a sum it is one number at a time on a CPU
        return jnp.matmul(jnp.tanh(query[:, None] + key[None]), self.v, precision=_HIGH)


@term
class Dot(Score):
    """scale * q.k."""

    scale: FieldValue

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        # What is scaled after the product is not rounded where a row's maximum is subtracted from it at once (fused
        # multiply-add): of scores above 1e5 that is not 0 where it should be, and weights do not add up to 1.
        return (self._scale(query) * query) @ key.T

    def _scale(self, query: jax.Array) -> FieldValue:
        return query.shape[-1] ** -0.5 if self.scale is None else self.scale

    def reduce(self, query: jax.Array, key: jax.Array) -> Reduced:
        return Reduced(query, key, Product(self._scale(query)))


def dot(scale: ArrayLike | None = None) -> Score:
    """scale * q.k: the scaled dot product, the score that `attention` takes unless told otherwise.

    Args:
      scale: a number, or a scalar array that gets a gradient; None is 1/sqrt(d).

    Raises:
      TypeError, ValueError: `scale` is not a number, or an array with axes.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.scores.dot()(jnp.ones((1, 4)), jnp.ones((2, 4))).tolist()
    [[2.0, 2.0]]

    Source: Vaswani et al. 2017, equation 1; without the scale: Luong et al. 2015, section 3.1 ("dot").
    """
    return Dot(None if scale is None else number(scale, "scale"))


@term
class General(Score):
    """scale * q.W.k."""

    w: FieldValue
    scale: FieldValue

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return (self.scale * (query @ self.w)) @ key.T

    def reduce(self, query: jax.Array, key: jax.Array) -> Reduced:
        return Reduced(_project(query, self.w), key, Product(self.scale))


def general(w: ArrayLike, scale: ArrayLike = 1.0) -> Score:
    """scale * q.W.k: the "general" or matrix score.

    Args:
      w: `[d, d]` or `[h, d, d]`, learnable.  A query and a key of unequal widths are fine: `w` is then
        `[query width, key width]`.
      scale: a number, or a scalar array that gets a gradient.

    Raises:
      ValueError: `w` has other axes, `scale` has axes.  When `attention` is called: `w` does not fit the widths.
      TypeError: `scale` is not a number.

    >>> import jax.numpy as jnp, jattn
    >>> q, k = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2, 6))
    >>> jattn.attention(q, k, k, score=jattn.scores.general(jnp.ones((4, 6)))).shape
    (1, 3, 2, 6)

    Source: Luong et al. 2015, section 3.1 ("general").
    """
    return General(_weight(w, "w", 2), number(scale, "scale"))


@term
class Cosine(Score):
    """scale * q.k / (norm(q) norm(k))."""

    scale: FieldValue

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return (self.scale * _unit(query)) @ _unit(key).T

    def reduce(self, query: jax.Array, key: jax.Array) -> Reduced:
        return Reduced(_unit(query), _unit(key), Product(self.scale))


def cosine(scale: ArrayLike = 1.0) -> Score:
    """scale * q.k / (norm(q) norm(k)).  A zero vector scores 0, with gradient 0.

    Scores lie within [-scale, scale]: a scale of 10 or more, or a learnable one, lets the softmax be sharp.

    Args:
      scale: a number, or a scalar array that gets a gradient.

    Raises:
      TypeError, ValueError: `scale` is not a number, or an array with axes.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.scores.cosine(10.0)(jnp.array([[3.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 5.0]])).tolist()
    [[10.0, 0.0]]

    Source: Graves et al. 2014, equations 5 and 6.
    """
    return Cosine(number(scale, "scale"))


@term
class Concat(Score):
    """w_q.q + w_k.k."""

    w_q: FieldValue
    w_k: FieldValue

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return (query @ self.w_q)[:, None] + (key @ self.w_k)[None]

    def reduce(self, query: jax.Array, key: jax.Array) -> Reduced:
        # rank one: the query's part is a product of width 1 with ones, the key's part a bias
        heads, groups = query.shape[-2], key.shape[-2]
        query_part = _project(query, Operand(self.w_q.array[..., None], self.w_q.axes))
        w_k = jnp.broadcast_to(self.w_k.array, (heads, key.shape[-1])).reshape(groups, heads // groups, -1)
        key_part = jnp.einsum("bsgd,grd->bgrs", wide(key), wide(_along(w_k, key)), precision=_HIGH)
        key_part = key_part.reshape(key.shape[0], heads, key.shape[1])
        ones = jnp.ones((*key.shape[:-1], 1), query_part.dtype)
        return Reduced(query_part, ones, Product(1.0), (Bias(Operand(key_part, "bhs")),))


def concat(w_q: ArrayLike, w_k: ArrayLike) -> Score:
    """w_q.q + w_k.k: the linear score of [q; k] joined.

    Args:
      w_q: `[d]` or `[h, d]`, learnable.
      w_k: `[d]` or `[h, d]`, learnable; the key may have a width of its own.

    Raises:
      ValueError: the weights have other axes.  When `attention` is called: they do not fit the widths.

    >>> import jax.numpy as jnp, jattn
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, score=jattn.scores.concat(jnp.ones(4), jnp.ones((2, 4)))).shape
    (1, 3, 2, 4)

    Source: Luong et al. 2015, section 3.1 ("concat"); with a hidden layer it is `additive`.
    """
    return Concat(_weight(w_q, "w_q", 1), _weight(w_k, "w_k", 1))


@term
class Additive(Score):
    """v.tanh(W_q q + W_k k)."""

    w_q: FieldValue
    w_k: FieldValue
    v: FieldValue

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return Perceptron(self.v)((query @ self.w_q), (key @ self.w_k))

    def reduce(self, query: jax.Array, key: jax.Array) -> Reduced:
        if self.w_k.axes:  # each head projects the keys of its group differently
            key = repeated(key, query.shape[-2] // key.shape[-2], -2)
        return Reduced(_project(query, self.w_q), _project(key, self.w_k), Perceptron(self.v))


def additive(w_q: ArrayLike, w_k: ArrayLike, v: ArrayLike) -> Score:
    """v.tanh(W_q q + W_k k): the additive or MLP score, of m hidden units.

    It is computed tile by tile: `[t, s, m]` is never stored.

    Args:
      w_q: `[d, m]` or `[h, d, m]`, learnable.
      w_k: `[d, m]` or `[h, d, m]`, learnable; the key may have a width of its own.
      v: `[m]` or `[h, m]`, learnable.

    Raises:
      ValueError: the weights have other axes.  When `attention` is called: they do not fit the widths or each other.

    >>> import jax.numpy as jnp, jattn
    >>> q, w = jnp.ones((1, 3, 2, 4)), jnp.ones((4, 8))
    >>> jattn.attention(q, q, q, score=jattn.scores.additive(w, w, jnp.ones(8))).shape
    (1, 3, 2, 4)

    Source: Bahdanau et al. 2015, appendix A.1.2.
    """
    return Additive(_weight(w_q, "w_q", 2), _weight(w_k, "w_k", 2), _weight(v, "v", 1))


def _weight(array: ArrayLike, name: str, ndim: int) -> Operand:
    array = as_array(array, name)
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
    if not w.axes:
        return jnp.einsum("bthd,dm->bthm", wide(x), wide(w.array), precision=_HIGH)
    return jnp.einsum("bthd,hdm->bthm", wide(x), wide(_along(w.array, x)), precision=_HIGH)


def _along(w: ArrayLike, x: jax.Array) -> jax.Array:
    """Weights `[heads, ..]` where the heads of x `[b, t, heads, d]` lie: along an Explicit axis a product with others
    would gather x."""
    lies = jax.typeof(x).sharding
    if AxisType.Explicit not in lies.mesh.axis_types:
        return jnp.asarray(w)
    return jax.sharding.reshard(jnp.asarray(w), PartitionSpec(lies.spec[2], *[None] * (np.ndim(w) - 1)))
