"""Attention pooling: a sequence to one vector, or to one for each head."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from flax.typing import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jattn import api, masks, normalizers, scores
from jattn._call import modes
from jattn.backends.contract import Backend
from jattn.nn import _checks
from jattn.nn._batching import batched, merge_lead
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers


class AttentionPooling(nnx.Module):
    """The mean of a sequence, weighted by how much each step resembles a learned vector (Yang et al. 2016, eq. 5 to 7):

        u_j = tanh(W x_j + b)
        weight_j = softmax_j(u_j . c)
        out = sum_j weight_j x_j

    With several heads each has its own c, and one W serves them all (Lin et al. 2017, who leave out b): a
    matrix with one row for each of the things to look for.

    Args:
      features: width of x and of the output.
      hidden: width of u, `features` by default.
      heads: how many vectors c.
      normalizer: how a row of scores becomes weights, from `jattn.normalizers`.
      use_bias: whether there is a b.
      kernel_init: initialiser of W.
      context_init: initialiser of c, as rows of variance 1 / hidden by default.
      implementation: of `jattn.attention`.
      dtype: of the computation; by default what x and the parameters promote to.
      param_dtype: of the parameters.
      precision: a `jax.lax.Precision` for all products.
      rngs: stream `params` for the parameters.

    Parameters (`nnx.Param`):
      `hidden.kernel` `[features, hidden]`, `hidden.bias` `[hidden]`, `context` `[h, hidden]`.

    Raises:
      ValueError, TypeError: a size below 1, or a size, flag or rngs of another type.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> pool = jattn.nn.AttentionPooling(32, rngs=nnx.Rngs(0))
    >>> x, mask = jnp.ones((8, 5, 32)), jnp.arange(5) < jnp.arange(8)[:, None]
    >>> pool(x, mask).shape, pool.weights(x, mask).shape
    ((8, 32), (8, 5))
    >>> jattn.nn.AttentionPooling(32, heads=3, rngs=nnx.Rngs(0))(x).shape
    (8, 3, 32)

    Source: Yang et al. 2016, equations 5 to 7; several heads: Lin et al. 2017.
    """

    features: int
    heads: int
    normalizer: normalizers.Normalizer
    implementation: str | Backend | None
    dtype: DTypeLike | None
    precision: PrecisionLike
    hidden: nnx.Linear
    context: nnx.Param[Array]

    @of_layers
    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        *,
        heads: int = 1,
        normalizer: normalizers.Normalizer = normalizers.softmax(),  # noqa: B008
        use_bias: bool = True,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        context_init: nnx.Initializer = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2),  # noqa: B008
        implementation: str | Backend | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        hidden = features if hidden is None else hidden
        _checks.check_rngs(rngs)
        _checks.check_sizes(features=features, hidden=hidden, heads=heads)
        _checks.check_flags(use_bias=use_bias)
        self.features, self.heads = features, heads
        self.normalizer, self.implementation = nnx.data(normalizer), implementation
        self.dtype, self.precision = dtype, precision
        self.hidden = nnx.Linear(
            features, hidden, use_bias=use_bias, kernel_init=kernel_init,
            dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs,
        )  # fmt: skip
        self.context = nnx.Param(context_init(rngs.params(), (heads, hidden), param_dtype))

    @of_calls
    @modes.ordinary
    def __call__(
        self, x: Float[AnyArray, "*b s features"], mask: Bool[AnyArray, "*b s"] | None = None
    ) -> Float[Array, "..."]:
        """Pools a sequence.

        Args:
          x: `[.., s, features]`, with any number of batch axes, or none.
          mask: booleans `[.., s]`, True where a step is real; None for everywhere.

        Returns:
          `[.., features]`, or `[.., h, features]` of several heads; 0 where no step is real.

        Raises:
          ValueError, TypeError: x or the mask does not fit.
        """
        out = self._attend(api.attention, x, mask)[..., 0, :, :]
        return out if self.heads > 1 else out[..., 0, :]

    @modes.ordinary
    def weights(
        self, x: Float[AnyArray, "*b s features"], mask: Bool[AnyArray, "*b s"] | None = None
    ) -> Float[Array, "..."]:
        """The weight of each step, for looking at.

        Args:
          x: `[.., s, features]`, as in a call.
          mask: booleans `[.., s]`, likewise.

        Returns:
          `[.., s]`, or `[.., h, s]` of several heads; 0 where a step is not real.

        Raises:
          ValueError, TypeError: x or the mask does not fit.
        """
        weights = self._attend(api.weights, x, mask)[..., 0, :]
        return weights if self.heads > 1 else weights[..., 0, :]

    def _attend(self, fn: Callable[..., Array], x: AnyArray, mask: AnyArray | None) -> Array:
        """`fn` with the vectors c as the one query of each head, and u as the one key head that serves them all."""
        _checks.check_sequence(x, mask, self.features)
        x = _checks.real_steps(x, mask)
        u = jnp.tanh(self.hidden(x))
        value, context = (jnp.asarray(y, u.dtype) for y in (x, self.context[...]))
        lead = u.shape[:-2]
        query = jnp.broadcast_to(context, (*lead, 1, *context.shape))
        options = {
            "score": scores.dot(1.0),
            "normalizer": self.normalizer,
            "mask": None if mask is None else masks.dense(merge_lead(mask[..., None, None, :], lead, "mask")),
            "precision": self.precision,
            "implementation": self.implementation,
        }
        return batched(fn, query, u[..., None, :], value[..., None, :], options)
