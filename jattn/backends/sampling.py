"""One key drawn for each query: the greatest of the scores with Gumbel noise, a strip at a time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jattn._call.problem import Problem, reduce
from jattn._terms import Terms, rows
from jattn.backends import whole_rows
from jattn.mods import Mod
from jattn.normalizers import Softmax


@jax.jit
def sample(problem: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    """out `[b, t, h, e]` and index and log_prob `[b, t, h]` of keys drawn from the softmax of the scores.

    The normaliser of the problem is `normalizers.gumbel`, whose noise does the drawing.
    """
    if problem.empty:
        (b, t, h, _), e = problem.query.shape, problem.value.shape[-1]
        lse = jnp.full((b, t, h), -jnp.inf, jnp.promote_types(problem.query.dtype, jnp.float32))
        return jnp.zeros((b, t, h, e), problem.query.dtype), jnp.full((b, t, h), -1, jnp.int32), lse
    noise = problem.normalizer.mods[0].bound(*problem.origin.indices(problem.sizes["b"], problem.sizes["h"]))
    q, k, v, operands, signature = reduce(dataclasses.replace(problem, normalizer=Softmax()))

    def draw(
        terms: Terms, noise: Mod, scores: jax.Array, value: jax.Array, i: jax.Array, j: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        # the greatest of the scores with Gumbel noise is a draw from their softmax (Gumbel 1954)
        index = jnp.argmax(jax.lax.stop_gradient(noise(scores, *terms.offsets.at(i, j))), axis=-1)
        scores = rows.lowered(scores)
        score = jnp.take_along_axis(scores, index[:, None], axis=-1)[:, 0]
        some = ~jnp.isneginf(score)
        log_prob = jnp.where(some, jnp.where(some, score, 0) - rows.logsumexp(scores), -jnp.inf)
        out = jnp.where(some[:, None], value[index] + rows.flaw(score)[:, None], 0).astype(problem.query.dtype)
        return out, jnp.where(some, index, -1).astype(jnp.int32), log_prob

    return whole_rows.rows(signature, q, k, v, operands, draw, noise)
