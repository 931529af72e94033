"""The twin of the kernels: softmax attention in plain JAX, of which higher derivatives are made."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods
from jattn._call import targets
from jattn._call.problem import reduce
from jattn._derivatives import primitives, twin
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Spec
from tests.problems import problem

RANDOM = np.random.default_rng(0)
Q, K, V = (jnp.asarray(RANDOM.standard_normal(x), jnp.float32) for x in ((2, 5, 4, 3), (2, 7, 2, 3), (2, 7, 2, 6)))
OPTIONS = {
    "plain": {},
    "everything": {
        "mask": masks.causal(-1), "mods": (mods.softcap(3.0), mods.alibi(np.linspace(0, 1, 4, dtype=np.float32))),
        "gates": gates.dropout(0.3, 5),
    },
}  # fmt: skip


def _call(name, **changes):
    q, k, v, operands, signature = reduce(problem((Q, K, V), OPTIONS[name]))
    spec = Spec(BLOCKWISE, signature, q.dtype, None, None, targets.current())
    return dataclasses.replace(spec, **changes), [q, k, v, *operands]


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_what_the_primitive_gives(name):
    spec, args = _call(name)
    q, k, v, *operands = args
    got, wanted = twin.attend(spec, args), primitives.attend(spec, q, k, v, operands)
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)
    definition = jattn.attention(Q, K, V, **OPTIONS[name], return_lse=True, implementation="reference")
    for x, y in zip(got, definition, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def test_mapped_axes_stay_in_front():
    spec, (q, k, v) = _call("plain")
    args = [jnp.stack([q, 2 * q]), k[None], jnp.stack([v, -v])]
    out, lse = twin.attend(dataclasses.replace(spec, mapped=((),)), args)
    for n in range(2):
        alone = twin.attend(spec, [args[0][n], k, args[2][n]])
        np.testing.assert_allclose(out[n], alone[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(lse[n], alone[1], rtol=1e-5, atol=1e-6)


def test_a_backend_may_have_a_twin_of_its_own():
    seen = []

    def own(spec, q, k, v, operands):
        seen.append((spec.mapped, q.shape, len(operands)))
        return v[:, :1, :1], q[..., 0]

    spec, args = _call("plain")
    spec = dataclasses.replace(spec, backend=dataclasses.replace(BLOCKWISE, twin=own), mapped=((),))
    out, lse = twin.attend(spec, [x[None] for x in args])
    assert seen == [((), Q.shape, 0)]
    assert out.shape == (1, 2, 1, 1, 6) and lse.shape == (1, *Q.shape[:-1])


def test_all_of_its_derivatives_are_those_of_jax():
    """It has no primitive in it, so that there is none to differentiate."""
    spec, args = _call("everything")
    assert "attend" not in str(jax.make_jaxpr(lambda *x: twin.attend(spec, x))(*args))
