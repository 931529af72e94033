"""The kinds of attention on `dates`: what each learns from, and that all are read by the best place."""

import argparse
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import normalizers
from jattn.zoo._train import TrainState, update
from jattn.zoo.dates import ATTENTION, SCORES, VARIANTS, add_options, data
from jattn.zoo.dates.losses import LOSSES
from jattn.zoo.dates.model import Sizes
from jattn.zoo.dates.task import dates

TINY = Sizes(embedding=8, hidden=12, heads=2, width=4)
KEY_BIAS = (
    "['attention']['key']['bias']"  # adds the same to all scores of a row, which the softmax cancels: it gets rounding
)
HARD = {"normalizer": normalizers.hard()}


@functools.cache
def tiny(attention, summary="dynamic"):
    return dates("dot", attention, summary, batch=8, sizes=TINY)


def parameters(params):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(params))}


@pytest.mark.parametrize(("attention", "summary"), [*((x, "dynamic") for x in ATTENTION), ("soft", "static")])
def test_every_kind_learns(attention, summary):
    task: Any = tiny(attention, summary)
    graph, params = nnx.split(task.model, nnx.Param)
    state, batch, losses = TrainState(params, task.optimizer.init(params)), task.batch(0).batch, []
    for step in range(60):  # the same examples, drawn for anew
        state, loss = update(task.loss, task.optimizer, graph, state, task.batch(step)._replace(batch=batch))
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    before, after = parameters(params), parameters(state.params)
    moved = {name for name in before if np.abs(after[name] - before[name]).max() > 1e-3}
    learnt = set(before)
    if attention == "argmax":  # what decides the place learns nothing
        learnt -= {name for name in before if "attention" in name and "value" not in name}
    assert {name for name in moved ^ learnt if name != KEY_BIAS} == set()


def test_kinds_of_attention_are_those_of_the_command_line():
    assert tuple(LOSSES) == ATTENTION


def test_every_variant_is_its_own():
    parser = argparse.ArgumentParser()
    add_options(parser)
    got = [vars(parser.parse_args(flags)) for flags in VARIANTS.values()]
    assert next(iter(VARIANTS.values())) == ()
    assert all(a != b for n, a in enumerate(got) for b in got[:n])
    assert {x["score"] for x in got} == set(SCORES)
    assert {x["attention"] for x in got} == set(ATTENTION)
    assert {x["summary"] for x in got} == {"dynamic", "static"}
    module = importlib.import_module("jattn.zoo.dates")
    task: Any = module.build(argparse.Namespace(**got[-1], seed=3, implementation=None))
    assert (task.settings["summary"], task.settings["seed"]) == ("static", 3)


def test_what_is_drawn_is_a_pure_function_of_seed_and_step():
    key = lambda step, seed=0: jax.random.key_data(dates(seed=seed, sizes=TINY).batch(step).key).tolist()
    assert key(3) == key(3)
    assert len({tuple(x) for x in (key(3), key(4), key(3, seed=1))}) == 3
    task: Any = tiny("reinforce")
    loss = lambda step: float(task.loss(task.model, task.batch(0)._replace(key=task.batch(step).key)))
    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


@pytest.mark.parametrize("attention", ATTENTION)
def test_evaluation_reads_the_best_place_where_attention_is_hard(attention):
    task: Any = tiny(attention)
    seen = []

    class Spy(type(task.model)):
        def greedy(self, *args, **read):
            seen.append(read.get("normalizer"))
            return super().greedy(*args, **read)

    model: Any = nnx.clone(task.model)
    model.__class__ = Spy
    task.evaluate(model)
    assert seen == [None if attention == "soft" else normalizers.hard()]


def test_hard_alignments_are_single_places_inside_the_source():
    model: Any = tiny("reinforce").model
    batch = data.held_out_batch(8)
    weights = np.asarray(model.alignment(*batch, **HARD))
    assert set(np.unique(weights)) == {0.0, 1.0}
    assert (weights.sum(-1) == 1).all()
    assert (weights.argmax(-1) < batch.length[:, None, None]).all()
    written = model.greedy(*batch[:2], **HARD)
    np.testing.assert_array_equal(model(*batch[:2], written, **HARD).argmax(-1), written)


def test_reinforce_is_its_formula():
    """The value is the cross-entropy; the gradient that of cost, of the log of what was drawn, and of the baseline."""
    task: Any = tiny("reinforce")
    graph, params = nnx.split(task.model, nnx.Param)
    example = task.batch(0)
    source, length, target = example.batch

    def written_down(params):
        model = nnx.merge(graph, params)
        states, memory = model.states(target), model.encode(source, length)
        place = jax.lax.stop_gradient(model.attention.sample(example.key, states, memory)[1])  # [b, t, h]
        chosen = jnp.moveaxis(jax.nn.one_hot(place, source.shape[1]), 2, 1)
        log_prob = jnp.log(jnp.sum(model.attention.weights(states, memory) * chosen, -1)).sum(1)
        context = jnp.einsum("bhts,bshd->bthd", chosen, memory.value).reshape(*target.shape, -1)
        logits = model.logits(states, context)
        cost = -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1)[..., 0]
        fixed = jax.lax.stop_gradient
        kernel, bias = model.expected_cost.kernel[...], model.expected_cost.bias[...]
        expected = (fixed(states) @ kernel + bias)[..., 0]
        return jnp.mean(cost + fixed(cost - expected) * log_prob + (expected - fixed(cost)) ** 2), cost.mean()

    run = jax.jit(jax.value_and_grad(lambda p: task.loss(nnx.merge(graph, p), example)))
    (_, cost), want = jax.jit(jax.value_and_grad(written_down, has_aux=True))(params)
    value, got = run(params)
    np.testing.assert_allclose(value, cost, rtol=1e-6)
    for (name, a), b in zip(parameters(got).items(), parameters(want).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)
