"""Stacks: against their blocks one after the other, decoded, dropout, shared terms, remat, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks, mods
from jattn.nn import Alibi, Decoder, Encoder, EncoderDecoder, Latent, RelativeBias, Residual, TransformerBlock
from tests.layers import LOOSE, normal, pure, randomised
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("quick")

B, T, S, H, F = 2, 5, 7, 2, 8
window = {"mask": masks.causal() & masks.window(1)}


def blocks_of(stack):
    """Its blocks in the order of the layers, each by itself."""
    kinds, turns = len(stack.blocks), stack.layers - len(stack.rest)
    for n in range(turns):
        graph, state = nnx.split(stack.blocks[n % kinds])
        yield nnx.merge(graph, jax.tree.map(lambda x, n=n: x[n // kinds], state))
    yield from stack.rest


def looped(stack, x, context=None, **call):
    shared = () if stack.positional is None else stack.positional()
    for block in blocks_of(stack):
        x = block(x, context, mods=shared, **call)
    return x if stack.norm is None else stack.norm(x)


def bias(**options):
    return RelativeBias(H, buckets=4, max_distance=6, rngs=nnx.Rngs(3), **options)


CASES = {
    "one kind": lambda: Decoder(F, H, 3, rotary_base=1e4, rngs=nnx.Rngs(0)),
    "kinds in turn": lambda: Decoder(F, H, 5, pattern=(window, {"rotary_base": 50.0}), rngs=nnx.Rngs(0)),
    "fewer layers than kinds": lambda: Decoder(F, H, 1, pattern=(window, {}), rngs=nnx.Rngs(0)),
    "one table": lambda: Decoder(F, H, 3, pattern=({}, {}), positional=bias(bidirectional=False), rngs=nnx.Rngs(0)),
    "alibi": lambda: Decoder(F, H, 2, positional=Alibi(H), residual=Residual("post"), rngs=nnx.Rngs(0)),
    "cross": lambda: Decoder(F, H, 3, pattern=({}, window), context_features=F, rngs=nnx.Rngs(0)),
    "latent": lambda: Decoder(F, H, 2, latent=Latent(3, 2), rotary_base=1e4, remat=True, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", CASES)
def test_decoder_is_its_blocks_whole_and_decoded(name):
    stack = randomised(CASES[name]())
    x, context = normal((B, T, F), 1), normal((B, S, F), 2) if name == "cross" else None

    @nnx.jit
    def run(stack, x):
        whole, gradients = nnx.value_and_grad(lambda m, x: (m(x, context) ** 2).sum())(stack, x)
        want, want_gradients = nnx.value_and_grad(lambda m, x: (looped(m, x, context) ** 2).sum())(stack, x)
        first, cache = stack.decode(x[:, :3], stack.cache(T, B, context))
        last, cache = stack.decode(x[:, 3:], cache)
        out = stack(x, context), jnp.concatenate([first, last], 1)
        return (whole, nnx.to_pure_dict(gradients)), (want, nnx.to_pure_dict(want_gradients)), out

    got, want, (whole, decoded) = run(stack, x)
    jax.tree.map(lambda a, b: assert_close(a, b, 100 * LOOSE), got, want)
    assert_close(decoded, whole, 10 * LOOSE)


def test_blocks_start_apart_and_terms_are_held_once():
    stack = Encoder(F, H, 5, pattern=({}, {}), positional=bias(), rngs=nnx.Rngs(0))
    kernels = [block.attention.query.kernel[...] for block in blocks_of(stack)]
    assert all(float(abs(a - b).max()) > 1e-3 for n, a in enumerate(kernels) for b in kernels[:n])
    assert pure(stack)["positional"]["table"].shape == (H, 4)
    assert "positional" not in pure(Encoder(F, H, 1, positional=Alibi(H), rngs=nnx.Rngs(0)))
    assert "positional" in pure(Encoder(F, H, 1, positional=Alibi(H, learn=True), rngs=nnx.Rngs(0)))
    assert not hasattr(pure(Encoder(F, H, 1, residual=Residual("post"), rngs=nnx.Rngs(0))), "norm")


def test_an_encoder_sees_both_sides_and_a_decoder_one():
    x = normal((1, T, F))
    sees = lambda stack: np.asarray(jax.jacobian(lambda x: stack(x)[0].sum(-1))(x)[:, 0].any(-1))
    assert sees(Encoder(F, H, 1, rngs=nnx.Rngs(0))).all()
    assert (sees(Decoder(F, H, 1, rngs=nnx.Rngs(0))) == np.tri(T, dtype=bool)).all()


def test_encoder_and_decoder():
    """Whole, decoded, and blind to padding."""
    both = randomised(
        EncoderDecoder(
            F, H, 2, encoder={"positional": bias()}, decoder={"positional": bias(bidirectional=False)}, rngs=nnx.Rngs(0)
        )
    )
    x, y, n = normal((B, S, F), 1), normal((B, T, F), 2), jnp.array([3, S])
    real = masks.lengths(n)
    want = looped(both.decoder, y, looped(both.encoder, x, mask=real), context_mask=real)
    assert_close(both(x, y, mask=real), want, 10 * LOOSE)
    filled = jnp.where((jnp.arange(S) < n[:, None])[..., None], x, 9.0)
    first, cache = both.decode(y[:, :3], both.cache(T, filled, mask=real), mask=real)
    last, cache = both.decode(y[:, 3:], cache, mask=real)
    assert_close(jnp.concatenate([first, last], 1), want, 10 * LOOSE)
    ends = jnp.array([2, 3])
    _, cache = both.decode(y[:, :3], both.cache(T, filled, mask=real, page=2), mask=real, lengths=ends)
    ragged, _ = both.decode(jnp.stack([y[0, 2:4], y[1, 3:5]]), cache, mask=real)
    assert_close(ragged, jnp.stack([want[0, 2:4], want[1, 3:5]]), 10 * LOOSE)


@pytest.mark.parametrize("remat", [False, True])
def test_dropout(remat):
    make = lambda rngs: Encoder(F, H, 3, pattern=({}, {}), dropout=0.5, remat=remat, rngs=rngs)
    x, stack = normal((B, T, F)), make(nnx.Rngs(params=0, dropout=1))
    first, second = stack(x), stack(x)
    assert float(abs(first - second).max()) > 1e-3
    assert (first == make(nnx.Rngs(params=0, dropout=1))(x)).all()
    bare = make(nnx.Rngs(params=0))
    run = lambda seed: bare(x, rngs=nnx.Rngs(dropout=seed))
    assert (run(1) == run(1)).all()
    assert float(abs(run(1) - run(2)).max()) > 1e-3
    assert_close(bare(x, deterministic=True), stack(x, deterministic=True), LOOSE)
    with pytest.raises(ValueError, match="needs a stream of random keys"):
        bare(x)


def test_errors():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="pattern must have options of blocks for each kind"):
        Encoder(F, H, 1, pattern={"mask": None}, rngs=rngs)  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(TypeError, match="positional must be like jattn.nn.Alibi"):
        Encoder(F, H, 1, positional=mods.softcap(1.0), rngs=rngs)  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        Encoder(F, H, 0, rngs=rngs)
    with pytest.raises(TypeError, match="Decoder takes no is_causal: here it is mask="):
        Decoder(F, H, 1, is_causal=True, rngs=rngs)  # pyright: ignore[reportCallIssue]  # wrong on purpose
    stack = Decoder(F, H, 1, rngs=rngs)
    with pytest.raises(TypeError, match=r"cache must be made by the decoder's cache\(\), got BlockCache"):
        stack.decode(normal((T, F)), TransformerBlock(F, H, rngs=rngs).cache(T))  # pyright: ignore[reportArgumentType]  # wrong on purpose
