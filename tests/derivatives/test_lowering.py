"""The primitives as JAX places, exports and lowers them: on several devices, donated, for another platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jattn
from jattn import masks, mods, normalizers
from tests.derivatives.problem import floats
from tests.tolerances import assert_close


def _mesh(kind):
    return jax.make_mesh((2,), ("devices",), axis_types=(kind,))


AXES = {"batch": ("devices",), "heads": (None, None, "devices")}
KINDS = [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("axes", "normalizer"), [("batch", "softmax"), ("heads", "softmax"), ("batch", "sparsemax")])
def test_sharded_arrays(axes, normalizer, kind):
    """Values, gradients and a Hessian-vector product of arrays that live on two devices."""
    x, normalizer = floats(1), getattr(normalizers, normalizer)()

    def of(q, k, v, cap, sinks):
        options = {"mask": masks.causal(1), "mods": (mods.softcap(cap),), "normalizer": normalizer, "blocks": (2, 3)}
        return jnp.sum(jnp.sin(jattn.attention(q, k, v, sinks=sinks if normalizer.is_softmax else None, **options)))

    @jax.jit
    def all_of(*args):
        gradient = jax.grad(of, (0, 1, 2, 3, 4))
        return of(*args), gradient(*args), jax.jvp(gradient, args, args)[1]

    inputs = x["q"], x["k"], x["v"], x["cap"], x["sinks"]
    mesh = _mesh(kind)
    with jax.set_mesh(mesh):
        specs = [PartitionSpec(*AXES[axes])] * 3 + [PartitionSpec()] * 2
        got = all_of(*(jax.device_put(y, NamedSharding(mesh, spec)) for y, spec in zip(inputs, specs, strict=True)))
    assert len(got[1][0].sharding.device_set) == 2
    for y, z in zip(jax.tree.leaves(got), jax.tree.leaves(all_of(*inputs)), strict=True):
        assert_close(y, z, 1e-5)


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_shard_map(axes):
    """The gradient of what is the same on all devices (here `cap`) is summed over them."""
    x, spec = floats(1), PartitionSpec(*axes)
    options = {"mask": masks.causal(1), "blocks": (2, 3)}
    fn = lambda q, k, v, cap: jattn.attention(q, k, v, mods=(mods.softcap(cap),), **options)
    over = jax.shard_map(fn, mesh=_mesh(KINDS[0]), in_specs=(spec, spec, spec, PartitionSpec()), out_specs=spec)
    inputs = x["q"], x["k"], x["v"], x["cap"]

    def all_of(fn):
        gradient = jax.grad(lambda *args: jnp.sum(jnp.sin(fn(*args))), (0, 1, 2, 3))
        return fn(*inputs), gradient(*inputs), jax.jvp(gradient, inputs, inputs)[1]

    got, wanted = jax.jit(lambda: all_of(over))(), jax.jit(lambda: all_of(fn))()
    for y, z in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert_close(y, z, 1e-5)
