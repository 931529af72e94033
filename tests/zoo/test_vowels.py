"""The vowels: the file format, batches, the model and its picture, on utterances made up here."""

from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.zoo import _archives
from jattn.zoo.vowels import SUMMARIES, VARIANTS, data
from jattn.zoo.vowels.model import Sizes
from jattn.zoo.vowels.task import vowels

FILE = """#comment: with colons
@dimensions 2
@classLabel true 1 2 3
@data
1,2,3:-1,-2,-3:2
0.5,1.5:4,5:1
"""


@pytest.fixture(scope="module")
def made_up():
    """Speakers who differ in one coefficient, in the place of the archive."""
    random = np.random.default_rng(0)

    def utterances(n, longest):
        speaker = np.arange(n, dtype=np.int32) % data.SPEAKERS
        length = random.integers(7, longest + 1, n).astype(np.int32)
        series = random.standard_normal((n, longest, data.COEFFICIENTS)).astype(np.float32)
        series[np.arange(n), :, speaker] += 3
        series[np.arange(longest) >= length[:, None]] = 0
        return data.Utterances(series, length, speaker)

    return data.standardised(utterances(45, 11), utterances(20, 13))


def test_parse():
    got = data.parse(FILE)
    np.testing.assert_array_equal(got.series, [[[1, -1], [2, -2], [3, -3]], [[0.5, 4], [1.5, 5], [0, 0]]])
    np.testing.assert_array_equal(got.length, [3, 2])
    np.testing.assert_array_equal(got.speaker, [1, 0])
    np.testing.assert_array_equal(data.inside(got), [[True, True, True], [True, True, False]])


@pytest.mark.skipif(not _archives.is_here(_archives.ARCHIVES["aeon"]), reason="the archive aeon is not in the cache")
def test_the_data_is_what_its_authors_say():
    train, test = data.parts()
    assert train.series.shape == (270, 26, data.COEFFICIENTS)
    assert test.series.shape == (370, 29, data.COEFFICIENTS)
    assert np.bincount(train.speaker).tolist() == [30] * data.SPEAKERS
    assert min(train.length.min(), test.length.min()) == 7


def test_steps_are_standardised_and_padding_is_zero(made_up):
    train, test = made_up
    steps = train.series[data.inside(train)]
    np.testing.assert_allclose(steps.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(steps.std(axis=0), 1, atol=1e-5)
    assert abs(test.series[data.inside(test)].mean()) > 1e-3  # by what was learnt from, not by itself
    assert (test.series[~data.inside(test)] == 0).all()


def test_batches_are_a_pure_function_of_seed_and_step(made_up):
    drawn = lambda *arguments: data.training_batch(made_up.training, *arguments)
    first = drawn(3, 7, 8, 0.3)
    chex.assert_trees_all_equal(first, drawn(3, 7, 8, 0.3))
    for other in ((3, 8, 8, 0.3), (4, 7, 8, 0.3), (3, 7, 8, 0.0)):
        assert not np.array_equal(first.series, drawn(*other).series)


@pytest.mark.parametrize("summary", SUMMARIES)
def test_every_summary_learns(made_up, summary):
    task: Any = vowels(summary, 0, None, batch=32, sizes=Sizes(hidden=16), parts=made_up)
    assert task.baseline == ("largest class", 3 / 20)
    optimizer = nnx.Optimizer(task.model, task.optimizer, wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer, batch: optimizer.update(model, nnx.grad(task.loss)(model, batch)))
    for n in range(60):
        step(task.model, optimizer, task.batch(n))
    assert task.evaluate(task.model) > 0.6


def test_padding_changes_nothing(made_up):
    model: Any = vowels("attention", 0, None, sizes=Sizes(hidden=8), parts=made_up).model
    batch = made_up.held_out
    longer = np.pad(batch.series, ((0, 0), (0, 4), (0, 0)), constant_values=5.0)
    np.testing.assert_allclose(model(longer, batch.length), model(batch.series, batch.length), atol=1e-5)
    weights = model.weights(longer, batch.length)
    assert (np.asarray(weights)[np.arange(17) >= batch.length[:, None]] == 0).all()
    np.testing.assert_allclose(jnp.sum(weights, axis=-1), 1, atol=1e-5)


def test_the_picture_names_who_was_heard(made_up):
    task: Any = vowels("attention", 0, None, sizes=Sizes(hidden=8), parts=made_up)
    figure = task.pictures(task.model)["weights.png"]
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left"))]
    assert [title.split(",")[0] for title in titles] == [f"said by speaker {n}" for n in (1, 4, 7, 9)]


def test_variants_differ_in_the_summary():
    flags = [flags[-1] if flags else "attention" for flags in VARIANTS.values()]
    assert sorted(flags) == sorted(SUMMARIES)
