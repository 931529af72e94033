"""Attention in einsums, in which mods are formulas, and what two functions that are the same agree in."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jattn
from tests.cases import Sizes
from tests.evaluate import QUICK
from tests.tolerances import assert_close

SIZES = Sizes()
I, J = np.arange(SIZES.t)[:, None], np.arange(SIZES.s)[None]
TILES = [(4, 5), (13, 17), (1, 1), (6, 4)]  # of 13 queries and 17 keys


def plain(q, k, v, change=lambda score: score, live=None, scale=None):
    """Attention in einsums, `change` applied to scores `[b, h, t, s]`."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    score = change(jnp.einsum("bthd,bshd->bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale))
    score = score if live is None else jnp.where(live, score, -jnp.inf)
    return jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(score, axis=-1), v)


def agree(got, wanted, arrays, tolerance=2e-13):
    """Two functions of the arrays have the same values, and gradients of a sum of sines."""

    def both(fn):
        loss = lambda *x: (jnp.sum(jnp.sin(out := fn(*x))), out)
        slope = jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True)
        return jax.jit(slope, compiler_options=QUICK)(*arrays)

    ((_, got_out), got_grads), ((_, wanted_out), wanted_grads) = both(got), both(wanted)
    assert_close(got_out, wanted_out, tolerance, "values")
    for n, (x, y) in enumerate(zip(got_grads, wanted_grads, strict=True)):
        assert_close(x, y, tolerance, f"gradient {n}")
        assert x.shape == arrays[n].shape


def blockwise(blocks=(4, 5), **fixed):
    """jattn as a function of q, k, v and options."""
    return functools.partial(jattn.attention, implementation="blockwise", blocks=blocks, **fixed)
