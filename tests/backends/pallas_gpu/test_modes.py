"""The GPU kernels under JAX's own settings and transformations, on the simulator.

Not tried: `checking_leaks`, under which Pallas' own simplest kernel leaks its references (jax 0.12.0), and
`jax.checkpoint`, which does not take the effects that the simulator has and a GPU has not.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jattn
from jattn import gates, masks, mods
from tests.cases import make
from tests.evaluate import as_function
from tests.tolerances import TOLERANCES, assert_close

if jax.__version_info__ < (0, 11):
    pytest.skip("the GPU kernels are not simulated: jax 0.11 is needed", allow_module_level=True)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _simulated(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    yield
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import reset_gpu_interpret_mode_state

    reset_gpu_interpret_mode_state()


def _attend(q, k, v, bias, implementation="pallas_gpu", **options):
    biased = {"mask": masks.causal(3), "mods": () if bias is None else mods.bias(bias, "hts"), **options}
    return jattn.attention(q, k, v, **biased, implementation=implementation)


def _arrays(b=2, t=5, s=7, h=2):
    random = np.random.default_rng(0)
    shapes = (b, t, h, 16), (b, s, 1, 16), (b, s, 1, 16), (h, t, s)
    *arrays, bias = (jnp.asarray(random.standard_normal(x), jnp.float32) for x in shapes)
    return [*(x.astype(jnp.bfloat16) for x in arrays), bias]


def _loss(fn):
    return lambda *arrays: jnp.sum(fn(*arrays).astype(jnp.float32) ** 2)


def _gradients(fn, arrays):
    return jax.jit(jax.grad(_loss(fn), (0, 1, 2, 3)))(*arrays)


def _definition(arrays, over=lambda fn: fn):
    """The gradients by the reference in float32."""
    fn = over(functools.partial(_attend, implementation="reference"))
    return _gradients(fn, [x.astype(jnp.float32) for x in arrays])


def _check(got, wanted):
    for x, y in zip(got, wanted, strict=True):
        assert_close(x, y, TOLERANCES["bfloat16"].gradient * max(1.0, float(jnp.abs(y).max())))


def test_promotion():
    """Settings that act while tracing: nothing is traced that they forbid."""
    fn, arrays, _ = as_function(make("everything", jnp.bfloat16), implementation="pallas_gpu")

    def gradients(*arrays):
        out, pull = jax.vjp(fn, *arrays)
        return pull(jax.tree.map(jnp.ones_like, out))

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.make_jaxpr(gradients)(*arrays)


def test_operands_of_64_bits():
    """Kernels have none; gradients come back in the dtypes of their arrays."""
    arrays = _arrays()
    jax.config.update("jax_enable_x64", True)  # of all threads: the simulator's are others
    try:
        got = _gradients(_attend, [*arrays[:3], arrays[3].astype(jnp.float64)])
    finally:
        jax.config.update("jax_enable_x64", False)
    assert got[3].dtype == jnp.float64
    _check(got, _definition(arrays))


def test_vmap_over_a_learned_bias():
    q, k, v, bias = _arrays(b=1)
    arrays = q, k, v, jnp.stack([bias, -2 * bias])
    over = lambda fn: jax.vmap(fn, (None, None, None, 0))
    _check(_gradients(over(_attend), arrays), _definition(arrays, over))


def test_vmap_over_a_learned_table():
    q, k, v, _ = _arrays()
    table = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 6)), jnp.float32)

    def gradients(implementation):
        fn = lambda q, k, v, table: _attend(q, k, v, None, implementation, mods=mods.relative(table))
        return _gradients(jax.vmap(fn, (None, None, None, 0)), (q, k, v, table))

    _check(gradients("pallas_gpu"), gradients("reference"))


def test_vmap_over_a_number_beside_documents():
    """Ids that the mapped elements share stay as short as they are, where the keys that nobody sees are sought too."""
    q, k, v, _ = _arrays()
    ids = jnp.asarray([[0, 0, 0, 1, 1], [2, 2, 0, 0, 0]]), jnp.asarray([[0, 0, 1, 1, 3, 3, 3], [2, 2, 0, 3, 3, 3, 3]])
    unseen = ids[1][..., None, None] == 3

    def loss(cap, filling=0.0, implementation="reference"):
        key, value = (jnp.where(unseen, jnp.asarray(filling, x.dtype), x) for x in (k, v))
        options = {"mask": masks.segments(*ids), "mods": mods.softcap(cap), "implementation": implementation}
        return jnp.sum(jattn.attention(q, key, value, **options).astype(jnp.float32) ** 2)

    caps = jnp.asarray([0.5, 1.0, 3.0])
    got = jax.vmap(jax.value_and_grad(functools.partial(loss, filling=jnp.nan, implementation="pallas_gpu")))(caps)
    _check(got, [jnp.stack(x) for x in zip(*(jax.value_and_grad(loss)(cap) for cap in caps), strict=True)])


def test_what_a_mod_makes_of_hidden_pairs_reaches_nothing_that_another_learns():
    q, k, v, bias = _arrays()
    log = lambda least: mods.function(lambda s, i, j: s + jnp.log(jnp.maximum(i - j, least) + 1.0))

    def attend(q, k, v, slopes, least=-99, implementation="pallas_gpu"):
        terms = mods.bias(bias, "hts"), log(least), mods.alibi(slopes), mods.softcap(3.0)
        return jattn.attention(q, k, v, mask=masks.causal(), mods=terms, implementation=implementation)

    arrays = q, k, v, jnp.asarray([0.5, 1.0])
    want = _gradients(functools.partial(attend, least=0, implementation="reference"), arrays)
    _check(_gradients(attend, arrays), want)


def test_a_learned_bias_that_all_shards_share():
    """In one shard: the simulator has one GPU, whose memories several would mix up."""
    arrays, mesh = _arrays(), jax.sharding.Mesh(np.array(jax.devices()[:1]), ("b",))
    split = jax.shard_map(_attend, mesh=mesh, in_specs=(P("b"), P("b"), P("b"), P()), out_specs=P("b"))
    _check(_gradients(split, arrays), _definition(arrays))


def test_terms_that_are_not_defined_where_pairs_are_hidden():
    """Square roots of negative numbers above the diagonal, and no derivative at the zeros past the ends."""
    root = mods.function(lambda s, i, j: s * jnp.sqrt(jnp.abs(s) * (i - j + 1).astype(s.dtype)) / 8)
    weigh = gates.function(lambda w, i, j: w * jnp.sqrt((i - j + 1).astype(w.dtype)))
    arrays = _arrays(b=1, t=19, s=19)[:3]
    attend = functools.partial(jattn.attention, mask=masks.causal(), mods=(root,), gates=(weigh,))
    of = lambda name: jax.grad(_loss(functools.partial(attend, implementation=name)), (0, 1, 2))
    _check(of("pallas_gpu")(*arrays), of("reference")(*(x.astype(jnp.float32) for x in arrays)))


@pytest.mark.parametrize("kind", ["mods", "gates"])
def test_rows_past_the_end_are_hidden_too(kind):
    """Square roots of how many rows are left, without a mask, with as many keys as tiles have."""
    q, k, v = _arrays(b=1, t=19, s=128)[:3]
    left = {"mods": mods, "gates": gates}[kind].function(lambda x, i, j: x * jnp.sqrt((19 - i).astype(x.dtype) / 19))
    of = lambda name: jax.grad(
        _loss(functools.partial(jattn.attention, implementation=name, **{kind: left})), (0, 1, 2)
    )
    _check(of("pallas_gpu")(q, k, v), of("reference")(*(x.astype(jnp.float32) for x in (q, k, v))))


def test_sizes_that_nothing_divides():
    arrays = _arrays(b=1, t=131, s=67, h=3)
    _check(_gradients(_attend, arrays), _definition(arrays))


def test_many_operands_of_pairs_leave_room_for_small_tiles_only():
    """Sixteen columns, which is what the matrix unit takes at once."""
    q, k, v = (jnp.asarray(np.random.default_rng(n).standard_normal((1, 70, 1, 128)), jnp.bfloat16) for n in range(3))
    biases = [jnp.asarray(np.random.default_rng(n).standard_normal((70, 70)), jnp.float32) for n in range(6)]

    def gradients(implementation, q, k, v):
        options = {"implementation": implementation, "mask": masks.causal()}
        attend = lambda q, *x: jattn.attention(q, k, v, mods=tuple(mods.bias(y, "ts") for y in x), **options)
        return jax.jit(jax.grad(lambda *x: jnp.sum(attend(*x).astype(jnp.float32)), (0, 6)))(q, *biases)

    wanted = gradients("reference", *(x.astype(jnp.float32) for x in (q, k, v)))
    for ours, right in zip(gradients("pallas_gpu", q, k, v), wanted, strict=True):
        # A row's delta is a sum over 128 numbers of an output that is rounded to 16 bits.
        assert_close(ours, right, 4 * TOLERANCES["bfloat16"].gradient)
