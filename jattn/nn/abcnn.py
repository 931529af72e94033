"""Convolutions over two sentences that attend to each other, for sentence pairs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
from flax import nnx
from flax.typing import PrecisionLike
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from jattn import api, mods, normalizers, scores
from jattn._call import modes
from jattn._terms import operand, wide
from jattn.backends.contract import Backend
from jattn.nn import _checks
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers


class _Steps(NamedTuple):
    """The steps of sentences, or the columns that a convolution makes of them.

    Attributes:
      values: `[b, s, f]`.
      mask: `[b, s]`, True where a step is real.
    """

    values: Float[Array, "b s f"]
    mask: Bool[Array, "b s"]


_Pair: TypeAlias = tuple[_Steps, _Steps]
Pooling: TypeAlias = Callable[[Array, Array], Array]


class ABCNN(nnx.Module):
    """One block of an attention-based convolutional network for sentence pairs (Yin et al. 2016), the same for both
    sentences x and y; here for x, with A the match of every step of one with every step of the other:

        A(x, y)_ij = 1 / (1 + |x_i - y_j|)
        F_i = sum_j A(x, y)_ij T_j                           (with `before`: ABCNN-1's second channel; T is learned)
        c_i = tanh(K [x_(i-w+1); F_(i-w+1); ..; x_i; F_i] + b),   i < s + w - 1        (wide convolution of width w)
        a_i = mean_j A(c_x, c_y)_ij                          (with `after`: ABCNN-2; else 1)
        out_i = mean_k a_k c_k,   i <= k < i + w             (window pooling, as many steps as x has)

    ABCNN-3 is both, and neither is the paper's BCNN.  A and its sums are `jattn.attention` with the normaliser
    `sigmoid` and a score: A_ij = sigmoid(-log |x_i - y_j|), |x - y|^2 = |x|^2 + |y|^2 - 2 x.y.

    It departs from the paper in two things.  The paper sums where a and out are means: there both grow with the
    lengths, here out is the BCNN's where everything matches.  And two steps closer than rounding can tell count as
    equal: A is 1 there, with gradient 0.  As in the paper's own implementation, both sentences share T.

    Args:
      in_features: width f of x and y.
      features: width of the output.
      width: w, of the convolution and of the window.
      before: attention before the convolution.
      after: attention after it, in the window pooling.
      length: the rows of T, the most steps that a sentence may have; for `before` alone.
      pooling: "window" as above; or, for the last block, of all columns a_k c_k to one vector: "mean" (the paper's
        all-ap), "max", or a function of (`[b, n, features]`, mask `[b, n]`) like a `jattn.nn.AttentionPooling`.
      kernel_init: initialiser of K and T.
      implementation: of `jattn.attention`.
      dtype: of the computation; by default what x, y and the parameters promote to.
      param_dtype: of the parameters.
      precision: a `jax.lax.Precision` for all products.
      rngs: stream `params` for the parameters.

    Parameters (`nnx.Param`):
      `conv.kernel` K `[w f, features]`, `[w 2 f, features]` with `before`; `conv.bias` b `[features]`; `table` T
      `[length, f]`; those of `pooling`.

    Raises:
      ValueError: a size below 1, `before` without `length` or the other way round, or an unknown pooling.
      TypeError: a size, flag or rngs of another type.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> x, y = jnp.ones((8, 5, 16)), jnp.ones((8, 7, 16))
    >>> block = jattn.nn.ABCNN(16, 32, 3, before=True, after=True, length=7, rngs=nnx.Rngs(0))
    >>> [out.shape for out in block(x, y)]
    [(8, 5, 32), (8, 7, 32)]
    >>> last = jattn.nn.ABCNN(16, 32, 3, pooling=jattn.nn.AttentionPooling(32, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    >>> [out.shape for out in last(x, y, x_mask=jnp.arange(5) < jnp.arange(8)[:, None])]
    [(8, 32), (8, 32)]

    Source: Yin et al. 2016, "ABCNN", sections 3 and 4.
    """

    in_features: int
    width: int
    before: bool
    after: bool
    pooling: Literal["window", "mean", "max"] | Pooling
    implementation: str | Backend | None
    length: int | None
    dtype: DTypeLike | None
    precision: PrecisionLike
    conv: nnx.Linear
    table: nnx.Param[Array] | None

    @of_layers
    def __init__(
        self,
        in_features: int,
        features: int,
        width: int,
        *,
        before: bool = False,
        after: bool = False,
        length: int | None = None,
        pooling: Literal["window", "mean", "max"] | Pooling = "window",
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        implementation: str | Backend | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        _checks.check_sizes(in_features=in_features, features=features, width=width)
        _checks.check_rngs(rngs)
        _checks.check_flags(before=before, after=after)
        if before != (length is not None):
            raise ValueError(f"length must be at least 1 with before=True, else None, got before={before}, {length = }")
        if length is not None:
            _checks.check_sizes(length=length)
        if not callable(pooling) and pooling not in ("window", *_POOLINGS):
            raise ValueError(f"pooling must be one of window, {', '.join(_POOLINGS)}, or a function, got {pooling!r}")
        self.in_features, self.width, self.before, self.after = in_features, width, before, after
        self.pooling, self.implementation = pooling, implementation
        self.length, self.dtype, self.precision = length, dtype, precision
        # On CPU XLA computes one product of all windows several times as fast as a convolution.
        self.conv = nnx.Linear(
            width * (1 + before) * in_features, features,
            kernel_init=kernel_init, dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs,
        )  # fmt: skip
        table = nnx.Param(kernel_init(rngs.params(), (length, in_features), param_dtype)) if length else None
        self.table = nnx.data(table)

    @of_calls
    @modes.ordinary
    def __call__(
        self,
        x: Float[AnyArray, "*b t in_features"],
        y: Float[AnyArray, "*b s in_features"],
        x_mask: Bool[AnyArray, "*b t"] | None = None,
        y_mask: Bool[AnyArray, "*b s"] | None = None,
    ) -> tuple[Array, Array]:
        """The block's output for both sentences.

        Args:
          x: `[.., t, in_features]`, with any number of batch axes, or none.
          y: `[.., s, in_features]`, with the same batch axes.
          x_mask: booleans `[.., t]`, True where a step is real; None for everywhere.
          y_mask: booleans `[.., s]`, likewise.

        Returns:
          `[.., t, features]` and `[.., s, features]`, 0 where a step is not real; `[.., features]` twice where all
          columns are pooled.

        Raises:
          ValueError, TypeError: x, y or a mask does not fit.
        """
        pair = self._pair(x, y, x_mask, y_mask)
        columns = self._columns(pair)

        def pooled(steps: _Steps, this: _Steps, other: _Steps) -> Array:
            if self.after:
                this = _Steps(this.values * self._match(api.attention, this, other, _share(other)), this.mask)
            out = self._pool(this, steps.mask)
            return out.reshape(*jnp.shape(x)[:-2], *out.shape[1:])

        return pooled(pair[0], *columns), pooled(pair[1], *columns[::-1])

    @modes.ordinary
    def weights(
        self,
        x: Float[AnyArray, "*b t in_features"],
        y: Float[AnyArray, "*b s in_features"],
        x_mask: Bool[AnyArray, "*b t"] | None = None,
        y_mask: Bool[AnyArray, "*b s"] | None = None,
        *,
        columns: bool = False,
    ) -> Array:
        """The match A of the steps of both sentences, or of their columns, for looking at.

        Args:
          x: `[.., t, in_features]`, as in a call.
          y: `[.., s, in_features]`, likewise.
          x_mask: booleans `[.., t]`, likewise.
          y_mask: booleans `[.., s]`, likewise.
          columns: whether the match is that of the columns c, which `after` uses, or of the steps, which `before` uses.

        Returns:
          `[.., t, s]`, or `[.., t + w - 1, s + w - 1]` of the columns; 0 where either is not real.

        Raises:
          ValueError, TypeError: x, y or a mask does not fit.
        """
        pair = self._pair(x, y, x_mask, y_mask)
        query, key = self._columns(pair) if columns else pair
        match = self._match(api.weights, query, key, key.values) * query.mask[..., None]
        return match.reshape(*jnp.shape(x)[:-2], *match.shape[1:])

    def _pair(self, x: AnyArray, y: AnyArray, x_mask: AnyArray | None, y_mask: AnyArray | None) -> _Pair:
        """Both sentences, checked, with one batch axis, and 0 where nothing is real."""
        sentences = ("x", x, x_mask), ("y", y, y_mask)
        for name, sentence, mask in sentences:
            _checks.check_sequence(sentence, mask, self.in_features, name=name)
            count = jnp.shape(sentence)[-2]
            if self.length is not None and count > self.length:
                raise ValueError(f"{name} has {count} steps, this layer was made with length={self.length}")
        if jnp.shape(x)[:-2] != jnp.shape(y)[:-2]:
            raise ValueError(
                f"x and y must have the same batch axes, got x {list(jnp.shape(x))}, y {list(jnp.shape(y))}"
            )
        dtype = jnp.result_type(x, y, self.conv.kernel[...]) if self.dtype is None else self.dtype

        def steps(sentence: ArrayLike, mask: AnyArray | None) -> _Steps:
            real = jnp.ones(jnp.shape(sentence)[:-1], bool) if mask is None else jnp.asarray(mask)
            values = jnp.where(real[..., None], jnp.asarray(sentence, dtype), 0)
            b = math.prod(real.shape[:-1])
            return _Steps(values.reshape(b, *values.shape[-2:]), real.reshape(b, real.shape[-1]))

        return steps(x, x_mask), steps(y, y_mask)

    def _columns(self, pair: _Pair) -> _Pair:
        """The wide convolution's output `[b, s + w - 1, features]`; a column is real where any step below it is."""

        def columns(this: _Steps, other: _Steps) -> _Steps:
            channels = this.values
            if self.table is not None:
                table = jnp.asarray(self.table[: other.mask.shape[1]], channels.dtype)
                seen = self._match(api.attention, this, other, jnp.broadcast_to(table, other.values.shape))
                channels = jnp.concatenate([channels, jnp.where(this.mask[..., None], seen, 0)], axis=-1)
            values, real = (_windows(_padded(array, self.width), self.width) for array in (channels, this.mask))
            out = jnp.tanh(self.conv(jnp.concatenate(values, axis=-1)))
            return _Steps(out, functools.reduce(jnp.logical_or, real))

        return columns(*pair), columns(*pair[::-1])

    def _match(self, fn: Callable[..., Array], query: _Steps, key: _Steps, value: Array) -> Array:
        """`fn`, attention or weights, with the match of two sentences as weights; one head, without its axis."""
        squares = [jnp.sum(jnp.square(wide(steps.values)), axis=-1) for steps in (query, key)]
        distance = mods.function(_minus_log_distance, operand(squares[0], "bt"), operand(squares[1], "bs"))
        options = {"implementation": self.implementation} if fn is api.attention else {}
        out = fn(
            *(array[..., None, :] for array in (query.values, key.values, value)),
            score=scores.dot(1.0), mods=distance, normalizer=normalizers.sigmoid(),
            mask=key.mask[:, None, None], precision=self.precision, **options,
        )  # fmt: skip
        return jnp.squeeze(out, 2 if fn is api.attention else 1)

    def _pool(self, columns: _Steps, mask: Array) -> Array:
        """Windows of columns where `mask` says that a step is real, or all of them as one vector."""
        if self.pooling != "window":
            pool = _POOLINGS[self.pooling] if isinstance(self.pooling, str) else self.pooling
            return pool(*columns)
        windows = _windows(columns.values, self.width)
        return jnp.where(mask[..., None], sum(windows) / self.width, 0)


def _minus_log_distance(score: Array, i: Array, j: Array, query: Array, key: Array) -> Array:
    """-log |x - y| from x.y, |x|^2 and |y|^2: the sigmoid of it is 1 / (1 + |x - y|).

    Of equal x and y nothing but rounding is left, whose root has no meaning and an endless slope: that is distance 0.
    """
    del i, j
    square = query + key - 2 * score
    apart = square > 32 * jnp.finfo(score.dtype).eps * (query + key)
    return jnp.where(apart, -0.5 * jnp.log(jnp.where(apart, square, 1)), jnp.finfo(score.dtype).max)


def _padded(x: Array, width: int) -> Array:
    """`[b, n, ..]` with so much before and after that every window that touches x is inside."""
    return jnp.pad(x, [(0, 0), (width - 1, width - 1), *[(0, 0)] * (x.ndim - 2)])


def _windows(x: Array, width: int) -> list[Array]:
    """For each of `width` places in a window, what the n - width + 1 windows of `[b, n, ..]` have there."""
    return [x[:, place : x.shape[1] - width + 1 + place] for place in range(width)]


def _share(steps: _Steps) -> Array:
    """`[b, s, 1]`, with which a weighted sum is a mean over the steps that are real."""
    count = jnp.maximum(steps.mask.sum(axis=-1, keepdims=True), 1)
    return (steps.mask / count)[..., None].astype(steps.values.dtype)


def _mean(x: Float[Array, "b n f"], mask: Bool[Array, "b n"]) -> Float[Array, "b f"]:
    """The mean of the real columns, 0 where none is."""
    return jnp.sum(x * _share(_Steps(x, mask)), axis=-2)


def _max(x: Float[Array, "b n f"], mask: Bool[Array, "b n"]) -> Float[Array, "b f"]:
    """The greatest of the real columns, 0 where none is."""
    top = jnp.max(x, axis=-2, where=mask[..., None], initial=-jnp.inf)
    return jnp.where(jnp.any(mask, axis=-1)[..., None], top, 0)


_POOLINGS: dict[str, Pooling] = {"mean": _mean, "max": _max}
