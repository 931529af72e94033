"""The average of parameters over the steps."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jattn.zoo._average import Averaged, averaging
from jattn.zoo._train import TrainState, update


def test_the_mean_follows_what_is_learnt():
    model = Averaged(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model, nnx.Param)
    optimizer, plain = averaging(optax.adam(0.1), keep=0.6), optax.adam(0.1)
    loss = lambda model, x: jnp.mean((model.now(x) - 1) ** 2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    state = TrainState(params, optimizer.init(params))
    alone_graph, alone = nnx.split(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), nnx.Param)
    alone = TrainState(alone, plain.init(alone))
    mean = alone.params["kernel"][...]
    for n in range(30):
        state, _ = update(loss, optimizer, graph, state, x)
        alone, _ = update(lambda m, x: jnp.mean((m(x) - 1) ** 2), plain, alone_graph, alone, x)
        keep = min(0.6, n / (n + 10))
        mean = keep * mean + (1 - keep) * alone.params["kernel"][...]
    model = nnx.merge(graph, state.params)
    np.testing.assert_allclose(model.now.kernel[...], alone.params["kernel"][...], rtol=1e-6)
    np.testing.assert_allclose(model.mean.kernel[...], mean, rtol=1e-5)
    assert float(abs(mean - model.now.kernel[...]).max()) > 1e-4
