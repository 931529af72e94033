"""Models of Hugging Face's transformers, tiny and drawn at random, against the same parameters in stacks of `jattn.nn`."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.nn import generate
from tests.layers import pure
from tests.tolerances import assert_close

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[peers]'")
    import torch  # pyright: ignore[reportMissingImports]  (the peers extra)

    from tests.peers.models import PEERS, TOKENS, Model, Peer

pytestmark = pytest.mark.filterwarnings("ignore")

B, T = 2, 11


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    """The model with every parameter drawn, also those that start at 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in module.parameters():
            x.add_(0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype))
    return module.eval()


def gradients(
    module: torch.nn.Module, out: torch.Tensor
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Parameters, their gradients where `out` meets numbers drawn, and those numbers."""
    back = np.random.default_rng(1).standard_normal(out.shape)
    (out * torch.tensor(back, dtype=out.dtype)).sum().backward()
    zeros = lambda x: torch.zeros_like(x) if x.grad is None else x.grad
    of = lambda read: {name: read(x).detach().numpy() for name, x in module.named_parameters()}
    return of(lambda x: x), of(zeros), back


def load(model: nnx.Module, parameters: dict[str, Any]) -> None:
    """Parameters in place of the model's own."""
    own = pure(model)
    assert jax.tree.map(np.shape, parameters) == jax.tree.map(np.shape, own)
    state = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, parameters))
    nnx.update(model, state)


def assert_near(got: Any, want: Any, tolerance: float, path: str = "") -> None:
    """Of the size of what it is compared with."""
    assert_close(got, want, tolerance * max(1.0, float(np.abs(want).max())), path)


@pytest.mark.parametrize("name", PEERS)
def test_logits_gradients_and_decoding(name):
    peer: Peer = PEERS[name]()
    tolerance = 1e-10 if peer.wide else 1e-5  # most of them have parts in float32, whatever they are given
    tokens = np.random.default_rng(0).integers(3, TOKENS, (B, T))
    with jax.enable_x64(peer.wide):
        theirs, ours = drawn(peer.theirs()), peer.ours()
        theirs = theirs.double() if peer.wide else theirs
        logits = peer.ask(theirs, torch.tensor(tokens))
        state, slopes, back = gradients(theirs, logits)
        load(ours, peer.map(state, 1.0))
        out, decoded, grads = run(
            ours, jnp.asarray(tokens), jnp.asarray(back, logits.detach().numpy().dtype), peer.decodes
        )
    want = logits.detach().numpy()
    assert_near(out, want, tolerance)
    assert_near(decoded, want, tolerance)
    same = lambda path, got, want: assert_near(got, want, 5 * tolerance, jax.tree_util.keystr(path))
    jax.tree_util.tree_map_with_path(same, nnx.to_pure_dict(grads), peer.map(slopes, 0.0))
    if peer.decodes and isinstance(ours, Model):
        assert generate(ours, tokens, 4).tokens.tolist() == most_likely(peer, theirs, tokens, 4)


def most_likely(peer: Peer, theirs: torch.nn.Module, tokens: np.ndarray, count: int) -> list[list[int]]:
    """What theirs writes after the tokens, each of it from all that comes before."""
    whole = torch.tensor(tokens)
    for _ in range(count):
        whole = torch.cat([whole, peer.ask(theirs, whole)[:, -1:].argmax(-1)], 1)
    return whole[:, tokens.shape[1] :].tolist()


@nnx.jit(static_argnames="decodes")
def run(model, tokens, back, decodes):
    """Logits, the same decoded, seven tokens at once and then each by itself, and gradients of every parameter."""

    def loss(model):
        out = model(tokens)
        return jnp.vdot(out, back), out

    grads, out = nnx.grad(loss, has_aux=True)(model)
    if not decodes:
        return out, out, grads
    first, cache = model.decode(tokens[:, :7], model.begin(tokens))
    graph, state = nnx.split(model)

    def step(cache, token):
        out, cache = nnx.merge(graph, state).decode(token[:, None], cache)
        return cache, out[:, 0]

    steps = jax.lax.scan(step, cache, tokens[:, 7:].T)[1].swapaxes(0, 1)
    return out, jnp.concatenate([first, steps], 1), grads
