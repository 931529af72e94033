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


PLACES = {
    "a mask along the batch": ("heads", "heads", "batch", (), "batch"),
    "a bias along the batch": ("heads", "heads", (), "batch", "batch"),
    "keys along the batch": ("heads", "batch", (), (), "batch"),
    "keys along heads": ("batch", "heads", (), (), "batch"),
    "keys alone along heads": ((), "heads", (), (), "heads"),
}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", PLACES)
def test_arrays_along_one_explicit_axis_each_in_its_own_way(name, devices):
    """The first to lie along it says where the call does."""
    x = floats(1)
    *places, where = (PartitionSpec(*AXES.get(y, ())) for y in PLACES[name])
    inputs = x["q"], x["k"], x["v"], jnp.array([3, 5]), jnp.stack([x["bias"], -x["bias"]])

    def fn(q, k, v, n, bias):
        return jattn.attention(q, k, v, mask=masks.lengths(n), bias=bias, blocks=(2, 3))

    gradient = jax.grad(lambda q, k, v, n, bias: jnp.sum(jnp.sin(fn(q, k, v, n, bias))), (0, 1, 2, 4))
    along = lambda q, *rest: jax.jvp(lambda q: gradient(q, *rest), (q,), (q,))[1]
    all_of = lambda *args: (fn(*args), gradient(*args), along(*args))
    wanted = all_of(*inputs)
    mesh = jax.make_mesh((devices,), ("devices",), axis_types=(KINDS[1],), devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        lie = (places[0], places[1], places[1], *places[2:])
        put = [jax.device_put(y, NamedSharding(mesh, z)) for y, z in zip(inputs, lie, strict=True)]
        for got in (all_of(*put), jax.jit(all_of)(*put)):
            assert jax.typeof(got[0]).sharding.spec == PartitionSpec(*where, *[None] * (4 - len(where)))
            assert [y.sharding.spec for y in got[1]] == [jax.typeof(put[n]).sharding.spec for n in (0, 1, 2, 4)]
            for y, z in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
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
