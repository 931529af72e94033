"""Attention near a centre, for Flax NNX."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jattn import gates as gates_
from jattn import masks
from jattn._call import modes
from jattn.nn import _call
from jattn.nn._cache import Cache
from jattn.nn._hints import of_calls, of_layers
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
      dtype, param_dtype, precision: as in `MultiHeadAttention`.
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
    """

    @of_layers
    def __init__(
        self,
        features: int,
        heads: int,
        window: int | tuple[int, int],
        *,
        center: Literal["monotonic", "predicted"] = "monotonic",
        pace: float = 1.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.left, self.right = _sides(window)
        if center not in ("monotonic", "predicted"):
            raise ValueError(f'center must be "monotonic" or "predicted", got {center!r}')
        if center == "predicted" and not self.left + self.right > 0:
            raise ValueError(f"predicted centres need a window wider than 0, for sigma, got {window!r}")
        number = isinstance(pace, (int, float, np.integer, np.floating)) and not isinstance(pace, bool)
        if not number or not pace > 0 or (center == "predicted" and pace != 1):
            raise ValueError(f"pace must be > 0, and is one of monotonic centres alone, got {pace!r} for {center!r}")
        self.center, self.pace = center, pace
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "precision": precision, "rngs": rngs}
        self.attention = MultiHeadAttention(features, heads, **kinds, **options)
        self.position: Any = nnx.data(None)
        self.direction: Any = nnx.data(None)
        if center == "predicted":
            shape = heads, self.attention.head_dim
            self.position = nnx.LinearGeneral(features, shape, use_bias=False, **kinds)
            init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
            self.direction = nnx.Param(init(rngs.params(), shape, param_dtype))

    @of_calls
    @modes.ordinary
    def __call__(
        self,
        x: Float[Array, "*b t features"],
        context: Float[Array, "*b s context_features"] | Cache | None = None,
        *,
        lengths: Any = None,
        positions: Any = None,
        mask: Any = None,
        gates: Any = (),
        **call: Any,
    ) -> Float[Array, "*b t features"]:
        """Attends from x to the context, or to x itself, near the centres.

        Args:
          x: `[.., t, features]`, with any number of batch axes, or none.
          context: `[.., s, context_features]`, with the same batch axes; or what `attention.read` made of it.
          lengths: integers `[..]`, how many keys S of each example are real; no other is attended to.  None for all s.
          positions: i of each query, for monotonic centres and the rotary embedding: numbers broadcastable to
            `[.., t]`, 0, 1, ... by default.  To decode, give the position of the step.
          mask, gates, **call: as in `MultiHeadAttention`; they hold beside the window.

        Returns:
          `[.., t, features]`.  A query without a key in its window gives the bias of the output.

        Raises:
          ValueError, TypeError: input that does not fit.
        """
        self.attention._check_inputs(x, context, None, None)
        lead = x.shape[:-2]
        if lengths is not None:
            real: Any = _call.as_lengths(lengths, lead)
        else:
            real = context.length if isinstance(context, Cache) else (x if context is None else context).shape[-2]
        near, gate = self._near(x, real, positions)
        if lengths is not None:
            near &= masks.lengths(real.reshape(-1))
        if mask is not None:
            keys = context.room if isinstance(context, Cache) else (x if context is None else context).shape[-2]
            _call.check_padding(mask, x.shape[-2], keys, lead)
            near &= _call.as_mask(mask, lead)
        if self.center == "predicted" or self.attention.rotary_base is not None:
            call["positions"] = positions
        return self.attention(x, context, mask=near, gates=(*gate, *_call.sequence(gates)), **call)

    @modes.ordinary
    def centers(self, x: Float[Array, "*b t features"], length: Any) -> Float[Array, "*b h t"]:
        """The predicted centres of each head, in float32 or wider; `length` is S, numbers `[..]` or one for all."""
        hidden = jnp.tanh(self.position(x))
        direction = self.direction[...].astype(hidden.dtype)
        logit = jnp.einsum("...thd,hd->...ht", hidden, direction, precision=self.attention.precision)
        wide = jnp.promote_types(logit.dtype, jnp.float32)  # bfloat16 does not have every position
        return jnp.asarray(length, wide)[..., None, None] * jax.nn.sigmoid(logit.astype(wide))

    def _near(self, x: jax.Array, length: Any, positions: Any) -> tuple[masks.Mask, tuple[gates_.Gate, ...]]:
        """The window around the centres, and the gate that goes with predicted ones."""
        if self.center == "predicted":
            center = self.centers(x, length)
            center = center.reshape(-1, *center.shape[-2:])
            gate = gates_.gaussian(center, (self.left + self.right) / 4)
            return masks.around(center, self.left, self.right), (gate,)
        if positions is None and self.pace == 1:
            return masks.window(self.left, self.right), ()
        positions = jnp.arange(x.shape[-2]) if positions is None else jnp.asarray(positions)
        center = jnp.broadcast_to(self.pace * positions, x.shape[:-1])
        return masks.around(center.reshape(-1, x.shape[-2]), self.left, self.right), ()


def _sides(window: Any) -> tuple[int, int]:
    """(left, right) of a window."""
    sides = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
    whole = lambda x: isinstance(x, (int, np.integer)) and not isinstance(x, bool) and x >= 0
    if len(sides) != 2 or not all(map(whole, sides)):
        raise ValueError(f"window must be an int >= 0 or a pair of them, (left, right), got {window!r}")
    return int(sides[0]), int(sides[1])
