"""Attention near a centre, for Flax NNX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import PrecisionLike
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Real

from jattn import gates as gates_
from jattn import masks
from jattn._call import modes
from jattn.nn import _checks
from jattn.nn._checks import AnyArray
from jattn.nn._hints import OF_LAYERS, of_calls, translated
from jattn.nn._options import AnyMask, Asked, Gates, LayerOptions, Mods, as_mask, join, several
from jattn.nn._tree import tree
from jattn.nn.cache._record import Cache
from jattn.nn.multi_head import MultiHeadAttention


class LocalAttention(nnx.Module):
    """Multi-head attention to the keys near a centre p_i, in positions of the keys (Luong et al. 2015, section 3.2):

        p_i = pace i                                   center="monotonic": local-m, with pace 1 a sliding window
        p_i = S sigmoid(v . tanh(W x_i))               center="predicted": local-p, for each head; S keys are real
        weight[i, j] = softmax over the j with p_i - left <= j <= p_i + right
        weight[i, j] times exp(-(j - p_i)^2 / (2 sigma^2)), sigma = (left + right) / 4      (of predicted centres alone)

    The Gaussian is what tells v and W where to look: the weights are not normalised again after it.  A window is local
    in its cost too: tiles that no centre comes near are skipped, also where centres are known only at run time.

    Args:
      features: width of x and of the output.
      heads: query heads h.
      window: (left, right), or one int D for both: the paper's window [p_i - D, p_i + D], with sigma = D / 2.
      center: "monotonic" or "predicted".
      pace: of monotonic centres, in keys for each query; the paper takes 1.
      dtype: of the computation, as in `MultiHeadAttention`.
      param_dtype: of the parameters.
      precision: a `jax.lax.Precision` for all products.
      rngs: stream `params` for the parameters and, with dropout, `dropout`.
      **options: all other arguments of `MultiHeadAttention`, which does the rest.

    Parameters (`nnx.Param`):
      `attention`, those of `MultiHeadAttention`; of predicted centres `position.kernel` W `[features, h, d]` and
      `direction` v `[h, d]`.

    Raises:
      ValueError: a window, centre or pace that is none, or what `MultiHeadAttention` does not take.
      TypeError: an unknown option.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> x, context, lengths = jnp.ones((8, 5, 32)), jnp.ones((8, 50, 16)), jnp.arange(8)
    >>> layer = jattn.nn.LocalAttention(32, 4, 10, center="predicted", context_features=16, rngs=nnx.Rngs(0))
    >>> layer(x, context, lengths=lengths).shape
    (8, 5, 32)
    >>> layer = jattn.nn.LocalAttention(32, 4, (1023, 0), rngs=nnx.Rngs(0))  # a causal sliding window
    >>> layer(x).shape
    (8, 5, 32)

    Source: Luong et al. 2015, section 3.2.
    """

    left: int
    right: int
    center: Literal["monotonic", "predicted"]
    pace: float
    attention: MultiHeadAttention
    position: nnx.LinearGeneral | None
    direction: nnx.Param[Array] | None

    @translated(OF_LAYERS, LayerOptions.__annotations__)
    def __init__(
        self,
        features: int,
        heads: int,
        window: int | tuple[int, int],
        *,
        center: Literal["monotonic", "predicted"] = "monotonic",
        pace: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
        **options: Unpack[LayerOptions],
    ):
        self.left, self.right = _sides(window)
        if center not in ("monotonic", "predicted"):
            raise ValueError(f'center must be "monotonic" or "predicted", got {center!r}')
        if center == "predicted" and not self.left + self.right > 0:
            raise ValueError(f"predicted centres need a window wider than 0, for sigma, got {window!r}")
        if not _checks.is_number(pace) or not pace > 0 or (center == "predicted" and pace != 1):
            raise ValueError(f"pace must be > 0, and is one of monotonic centres alone, got {pace!r} for {center!r}")
        self.center, self.pace = center, pace  # type: ignore[assignment]  # a scalar of NumPy is as good
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "precision": precision, "rngs": rngs}
        self.attention = MultiHeadAttention(features, heads, **kinds, **options)
        self.position, self.direction = nnx.data(None), nnx.data(None)
        if center == "predicted":
            shape = heads, self.attention.head_dim
            self.position = nnx.LinearGeneral(features, shape, use_bias=False, **kinds)
            init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
            self.direction = nnx.Param(init(rngs.params(), shape, param_dtype))

    @of_calls
    @modes.ordinary
    def __call__(
        self,
        x: Float[AnyArray, "*b t features"],
        context: Float[AnyArray, "*b s context_features"] | Cache | None = None,
        *,
        lengths: Int[ArrayLike, "*b"] | None = None,
        values: Float[AnyArray, "*b s value_features"] | None = None,
        positions: ArrayLike | None = None,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        context_positions: ArrayLike | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Float[Array, "*b t features"]:
        """Attends from x to the context, or to x itself, near the centres.

        Args:
          x: `[.., t, features]`, with any number of batch axes, or none.
          context: `[.., s, context_features]`, with the same batch axes; or what `attention.read` made of it.
          lengths: integers `[..]`, how many keys S of each example are real; no other is attended to.  None for all s.
          values: as in `MultiHeadAttention`.
          positions: i of each query, for monotonic centres and the rotary embedding: numbers broadcastable to
            `[.., t]`, 0, 1, ... by default.  To decode, give the position of the step.
          mask: as in `MultiHeadAttention`; it holds beside the window.
          mods: as in `MultiHeadAttention`.
          gates: as in `MultiHeadAttention`; they come after the Gaussian.
          bias: as in `MultiHeadAttention`.
          context_positions: of the context, for the rotary embedding alone, as in `MultiHeadAttention`.
          deterministic: as in `MultiHeadAttention`.
          rngs: as in `MultiHeadAttention`.

        Returns:
          `[.., t, features]`.  A query without a key in its window gives the bias of the output.

        Raises:
          ValueError, TypeError: input that does not fit.
        """
        self.attention._projections().check(x, context, values=values)
        lead = x.shape[:-2]
        if isinstance(context, Cache):
            s, keys = context.room, context.length
        else:
            s = keys = (x if context is None else context).shape[-2]
        real = None if lengths is None else _checks.as_lengths(lengths, lead, s)
        if real is not None:
            values = None if values is None else _checks.real_rows(values, real)
            if context is None:
                x = _checks.real_rows(x, real)  # before centres are made of it, whose parameters learn as well
            elif not isinstance(context, Cache):
                context = _checks.real_rows(context, real)
        near, gate = self._near(x, keys if real is None else real, positions)
        if real is not None:
            near &= masks.lengths(real.reshape(-1))
        if mask is not None:
            _checks.check_padding(mask, x.shape[-2], s, lead)
            near &= as_mask(mask, lead)
        turns = self.center == "predicted" or self.attention.rotary is not None
        return self.attention(
            x, context, values=values, mask=near, mods=mods, gates=(*gate, *several(gates)), bias=bias,
            positions=positions if turns else None, context_positions=context_positions,
            deterministic=deterministic, rngs=rngs,
        )  # fmt: skip

    @modes.ordinary
    def cache(
        self,
        n: int | np.integer,
        batch: int | np.integer | Sequence[int | np.integer] = (),
        dtype: DTypeLike | None = None,
        *,
        slack: int | None = None,
        page: int | None = None,
        pages: int | None = None,
    ) -> Cache:
        """What `decode` starts from, as `MultiHeadAttention.cache` has it.

        Args:
          n: the most positions that will be decoded.
          batch: the batch axes of x; an int for one axis.
          dtype: in which keys and values are kept.
          slack: keeps only the window of monotonic centres of pace 1, and this many positions more.
          page: keeps positions in pages of so many, which examples share.
          pages: how many pages there are.

        Returns:
          Room for n positions, or for the window.

        Raises:
          ValueError: a number is none of those.
        """
        return self.attention._cache(self._slides(), n, batch, dtype, slack, page, pages)

    @of_calls
    @modes.ordinary
    def decode(
        self,
        x: Float[AnyArray, "*b t features"],
        cache: Cache,
        *,
        lengths: Int[ArrayLike, "*b"] | None = None,
        values: Float[AnyArray, "*b t value_features"] | None = None,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        parents: Int[ArrayLike, "*b t"] | Sequence[int] | None = None,
    ) -> tuple[Float[Array, "*b t features"], Cache]:
        """The next t positions, to themselves and to what the cache holds near their centres; nothing is dropped.

        They are the last t rows of a call on all positions so far, whose number is S where centres are predicted.  Of a
        draft S is how many it sees: the cache, its ancestors and itself.

        Args:
          x: `[.., t, features]`.
          cache: from `layer.cache(n, batch)`, or from the call before.
          lengths: how many of the t positions of each example are real, as in `MultiHeadAttention.decode`.
          values: as in `MultiHeadAttention.decode`.
          mask: as in `MultiHeadAttention.decode`; it holds beside the window.
          mods: as in `MultiHeadAttention.decode`.
          gates: likewise; they come after the Gaussian.
          bias: likewise.
          parents: likewise, where the t positions are a tree of drafts.

        Returns:
          `[.., t, features]`, and the cache with t more positions, or `lengths`.

        Raises:
          ValueError, TypeError: as `MultiHeadAttention.decode` does.

        >>> import jax.numpy as jnp, jattn
        >>> from flax import nnx
        >>> layer = jattn.nn.LocalAttention(32, 4, (3, 0), rngs=nnx.Rngs(0))
        >>> x = jnp.ones((8, 6, 32))
        >>> _, cache = layer.decode(x[:, :5], layer.cache(100, 8, slack=4))
        >>> last, cache = layer.decode(x[:, 5:], cache)
        >>> bool(jnp.allclose(last, layer(x)[:, 5:], atol=1e-5)), cache.room
        (True, 7)
        """
        self.attention._projections().check_x(x, None)
        self.attention._projections().check_cache(cache, x)
        x = _checks.real_rows(x, lengths)  # before centres are made of it
        own, gate, t = self.attention._own_options(), (), x.shape[-2]
        if self._slides() is not None:
            own = join(own, masks.window(self.left, self.right))
        else:
            lead = x.shape[:-2]
            if parents is not None and t:
                places = cache.length[..., None] + tree(parents, lead, t).depth
                keys = places + 1
            else:
                places = cache.positions(t)
                keys = cache.length + (t if lengths is None else _checks.as_lengths(lengths, lead, t))
            near, gate = self._near(x, keys, places)
            mask = near if mask is None else near & as_mask(mask, lead)
        asked = Asked(mask, mods, (*gate, *several(gates)), bias)
        return self.attention._decoded(own, x, cache, asked, None, values, lengths, parents)

    def _slides(self) -> int | None:
        """How many positions before its own a query can see, where that is known."""
        return self.left if self.center == "monotonic" and self.pace == 1 else None

    @modes.ordinary
    def centers(self, x: Float[AnyArray, "*b t features"], length: Real[ArrayLike, "..."]) -> Float[Array, "*b h t"]:
        """The predicted centres p_i = S sigmoid(v . tanh(W x_i)) of each head.

        Args:
          x: `[.., t, features]`.
          length: S, how many keys are real: numbers `[..]`, or one for all; or `[.., t]`, for each query.

        Returns:
          `[.., h, t]`, in positions of the keys, float32 or wider.

        Raises:
          ValueError: the centres of the layer are not predicted.
        """
        if self.position is None or self.direction is None:
            raise ValueError(f'centres are predicted where center="predicted", got center={self.center!r}')
        hidden = jnp.tanh(self.position(jnp.asarray(x)))
        direction = self.direction[...].astype(hidden.dtype)
        logit = jnp.einsum("...thd,hd->...ht", hidden, direction, precision=self.attention.precision)
        wide = jnp.promote_types(logit.dtype, jnp.float32)  # bfloat16 does not have every position
        reach = jnp.asarray(length, wide)
        reach = reach[..., None, :] if reach.ndim == x.ndim - 1 else reach[..., None, None]
        return reach * jax.nn.sigmoid(logit.astype(wide))

    def _near(
        self, x: AnyArray, length: ArrayLike, positions: ArrayLike | None
    ) -> tuple[masks.Mask, tuple[gates_.Gate, ...]]:
        """The window around the centres, and the gate that goes with predicted ones."""
        if self.center == "predicted":
            center = self.centers(x, length)
            center = center.reshape(math.prod(center.shape[:-2]), *center.shape[-2:])
            gate = gates_.gaussian(center, (self.left + self.right) / 4)
            return masks.around(center, self.left, self.right), (gate,)
        if positions is None and self.pace == 1:
            return masks.window(self.left, self.right), ()
        places = jnp.arange(x.shape[-2]) if positions is None else jnp.asarray(positions)
        center = jnp.broadcast_to(self.pace * places, x.shape[:-1])
        center = center.reshape(math.prod(x.shape[:-2]), x.shape[-2])
        return masks.around(center, self.left, self.right), ()


def _sides(window: object) -> tuple[int, int]:
    """(left, right) of a window."""
    given = window if isinstance(window, (tuple, list)) else (window, window)
    sides = [int(x) for x in given if _checks.is_whole(x) and x >= 0]
    if not len(given) == len(sides) == 2:
        raise ValueError(f"window must be an int >= 0 or a pair of them, (left, right), got {window!r}")
    return sides[0], sides[1]
