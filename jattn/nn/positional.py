"""Terms that say where things are, which the layers of a stack share: what a stack takes as `positional=`."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from jattn import mods
from jattn.nn import _checks


class Alibi(nnx.Module):
    """ALiBi, score - slope[h] * abs(i - j), with slopes that stay as the paper has them.

    Args:
      heads: query heads h.
      learn: whether the slopes learn.
      param_dtype: of the slopes.

    Attributes:
      slopes: `[h]`, an `nnx.Param` where they learn, else a plain `nnx.Variable`.

    Raises:
      ValueError, TypeError: heads that are none, or a flag that is none.

    >>> from flax import nnx
    >>> import jattn
    >>> decoder = jattn.nn.Decoder(32, 4, 2, positional=jattn.nn.Alibi(4), rngs=nnx.Rngs(0))

    Source: Press et al. 2022, section 3.
    """

    slopes: nnx.Variable[Array]

    def __init__(self, heads: int, *, learn: bool = False, param_dtype: DTypeLike = jnp.float32):
        _checks.check_sizes(heads=heads)
        _checks.check_flags(learn=learn)
        self.slopes = (nnx.Param if learn else nnx.Variable)(mods.alibi_slopes(heads).astype(param_dtype))

    def __call__(self) -> mods.Mod:
        """The mod for a call."""
        return mods.alibi(self.slopes[...])


class RelativeBias(nnx.Module):
    """T5's bias of relative positions, score + table[h, bucket(j - i)]: one table for all layers.

    Args:
      heads: query heads h.
      bidirectional: whether keys after the query have buckets of their own, as in an encoder; a decoder takes False.
      buckets: how many in all.
      max_distance: from which distance on all are in the last.
      table_init: initialiser of the table.
      param_dtype: of the table.
      rngs: stream `params`.

    Parameters (`nnx.Param`):
      `table` `[heads, buckets]`.

    Raises:
      ValueError, TypeError: sizes that are none, or as `jattn.mods.t5_bucket` has it.

    >>> from flax import nnx
    >>> import jattn
    >>> encoder = jattn.nn.Encoder(32, 4, 2, positional=jattn.nn.RelativeBias(4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))

    Source: Raffel et al. 2020, section 2.1.
    """

    bucket: mods.T5Bucket
    table: nnx.Param[Array]

    def __init__(
        self,
        heads: int,
        *,
        bidirectional: bool = True,
        buckets: int = 32,
        max_distance: int = 128,
        table_init: nnx.Initializer = nnx.initializers.normal(0.02),  # noqa: B008
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _checks.check_rngs(rngs)
        _checks.check_sizes(heads=heads, buckets=buckets)
        self.bucket = mods.t5_bucket(bidirectional, buckets, max_distance)
        self.table = nnx.Param(table_init(rngs.params(), (heads, buckets), param_dtype))

    def __call__(self) -> mods.Mod:
        """The mod for a call."""
        return mods.relative(self.table[...], self.bucket)
