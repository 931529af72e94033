"""A recurrent network over steps, and attention over its states."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jattn import normalizers
from jattn._call import modes
from jattn.backends.contract import Backend
from jattn.nn import _checks
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._recurrent import Summary, read


class RecurrentAttention(nnx.Module):
    """An LSTM (Hochreiter & Schmidhuber 1997) over the steps of a sequence, its states summed up in one vector:

        h_j = LSTM(h_(j-1), x_j)
        out = sum_j weight_j h_j

    where the weights are `summary`: "last" takes the state after the last real step, "mean" all of them alike, and
    "attention" those that `jattn.nn.AttentionPooling` finds (Yang et al. 2016; Zhou et al. 2016).

    Args:
      features: width of x.
      hidden: width of a state and of the output.
      summary: "attention", "mean" or "last".
      attention: width of u in `AttentionPooling`, `hidden` by default.
      normalizer: of `AttentionPooling`.
      implementation: of `AttentionPooling`.
      dtype: of the computation; by default what x and the parameters promote to.
      param_dtype: of the parameters.
      rngs: stream `params` for the parameters.

    Parameters (`nnx.Param`):
      `cell`, an `nnx.OptimizedLSTMCell` (gates i, f, g, o): `dense_i.kernel` `[features, 4 hidden]`, `dense_h.kernel`
      `[hidden, 4 hidden]`, `dense_h.bias` `[4 hidden]`; `summary.attention`, those of `AttentionPooling`, if any.

    Raises:
      ValueError, TypeError: a size below 1, no such summary, or a size, flag or rngs of another type.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.RecurrentAttention(12, 32, rngs=nnx.Rngs(0))
    >>> x, mask = jnp.ones((8, 29, 12)), jnp.arange(29) < 4 * jnp.arange(8)[:, None]
    >>> layer(x, mask).shape, layer.weights(x, mask).shape
    ((8, 32), (8, 29))

    Source: Hochreiter & Schmidhuber 1997; Zhou et al. 2016.
    """

    features: int
    cell: nnx.OptimizedLSTMCell
    summary: Summary

    @of_layers
    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        summary: Literal["attention", "mean", "last"] = "attention",
        attention: int | None = None,
        normalizer: normalizers.Normalizer = normalizers.softmax(),  # noqa: B008
        implementation: str | Backend | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _checks.check_rngs(rngs)
        _checks.check_sizes(features=features, hidden=hidden)
        self.features = features
        self.cell = nnx.OptimizedLSTMCell(features, hidden, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.summary = Summary(
            summary, ("attention", "mean", "last"), hidden, attention, normalizer=normalizer,
            implementation=implementation, dtype=dtype, param_dtype=param_dtype, rngs=rngs,
        )  # fmt: skip

    @of_calls
    @modes.ordinary
    def __call__(
        self, x: Float[AnyArray, "*b s features"], mask: Bool[AnyArray, "*b s"] | None = None
    ) -> Float[Array, "*b hidden"]:
        """Reads a sequence.

        Args:
          x: `[.., s, features]`, with any number of batch axes, or none.
          mask: booleans `[.., s]`, True where a step is real; None for everywhere.

        Returns:
          `[.., hidden]`; 0 where no step is real.

        Raises:
          ValueError, TypeError: x or the mask does not fit.
        """
        return self.summary(self._states(x, mask), mask)

    @modes.ordinary
    def weights(
        self, x: Float[AnyArray, "*b s features"], mask: Bool[AnyArray, "*b s"] | None = None
    ) -> Float[Array, "*b s"]:
        """The weight of each step, whatever the summary, for looking at.

        Args:
          x: `[.., s, features]`, as in a call.
          mask: booleans `[.., s]`, likewise.

        Returns:
          `[.., s]`; 0 where a step is not real.

        Raises:
          ValueError, TypeError: x or the mask does not fit.
        """
        return self.summary.weights(self._states(x, mask), mask)

    def _states(self, x: AnyArray, mask: AnyArray | None) -> Float[Array, "*b s hidden"]:
        _checks.check_sequence(x, mask, self.features)
        return read(self.cell, _checks.real_steps(x, mask), mask)
