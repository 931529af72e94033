"""BoolQ: what is read and what is held out, the vectors of words, that a model learns it, what it draws."""

import json
from typing import Any

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from jattn.zoo._train import TrainState, update
from jattn.zoo.boolq import data
from jattn.zoo.boolq.model import Sizes
from jattn.zoo.boolq.task import boolq
from jattn.zoo.boolq.vectors import word_vectors

TINY = Sizes(hidden=8, heads=2, dropout=0.1)


def lines(*entries):
    return "\n".join(map(json.dumps, entries)).encode()


@pytest.fixture(scope="module")
def small():
    """A few questions: yes where what is asked for stands in the passage."""
    rng = np.random.default_rng(0)
    names = [f"n{n}" for n in range(20)]

    def example(yes):
        asked, *others = rng.permutation(names)
        text = [*("the", "box", "has") * 6, *others[:12], *(("not", "no") * 12), *([asked] if yes else [])]
        return data.Example(("is", asked, "there"), ("box",), tuple(rng.permutation(text).tolist()), yes)

    examples = [example(n % 3 > 0) for n in range(90)]
    return data.Parts(examples[:60], examples[60:], data.lexicon(examples[:60], width=4))


def test_lines_are_read():
    combined = {"question": "is it so", "passage": "A Title -- It's so -- isn't it.", "idx": 3, "label": False}
    unknown = {"question": "is it", "passage": "T -- P", "idx": 0}
    dev = {"question": "Is it?", "title": "A Title", "answer": "True", "passage": "So."}
    got = data.parse(lines(combined, unknown, dev))
    assert got[0] == (("is", "it", "so"), ("a", "title"), data.words("it's so -- isn't it."), False)
    assert got[0].passage == ("a", "title", "--", *got[0].body)
    assert got[1].yes is None
    assert got[2] == (("is", "it", "?"), ("a", "title"), ("so", "."), True)


def test_entities_are_undone():
    entry = {"question": "AT&amp;amp;T?", "title": "&lt;", "answer": "True", "passage": "5 &#8364; &amp; 1 &euro;"}
    assert data.parse(lines(entry))[0] == (("at", "&", "t", "?"), ("<",), ("5", "€", "&", "1", "€"), True)


def test_what_is_held_out_is_not_learnt_from():
    make = lambda question, body, yes: data.Example((question,), ("t",), (body,), yes)
    combined = [make("q1", "p1", True), make("q2", "p2", False), make("q3", "p3", None), make("q4", "p4", True)]
    learnt, unanswered = data.divide(combined, [make("q1", "other", False), make("other", "p2", True)])
    assert learnt == [combined[3]]
    assert unanswered == [combined[2]]


def test_grams():
    example = data.Example(("can", "cats", "fly"), ("cats",), ("a", "cat", "can", "a", "cat"), True)
    assert data.question_grams(example) == [
        ["can", "can cats", "can cats fly"],
        ["cats", "cats fly"],
        ["fly", "no fly"],
    ]
    grams = data.passage_grams(example)
    assert grams[:3] == [["cats", "cats --"], ["--", "-- a"], ["a", "a cat"]]
    assert grams[-2:] == [[], []]  # seen before


def test_index():
    numbers, rarity = data.index([["a", "b", "a"], ["b"], ["b", "c"], ["a"]], least=2, first=2)
    assert numbers == {"a": 2, "b": 3}
    np.testing.assert_allclose(rarity, [0, np.log(2), np.log(2), np.log(4 / 3)], rtol=1e-6)


def test_words_in_the_same_places_have_like_vectors():
    rng = np.random.default_rng(0)
    groups = np.arange(2, 12).reshape(2, 5)  # of tokens: a text is of one group
    texts = [np.concatenate([rng.choice(groups[n % 2], 30), [0]]) for n in range(60)]
    got = word_vectors(texts, 12, 2)
    assert got.dtype == np.float32
    assert not got[:2].any()
    unit = got[2:] / np.linalg.norm(got[2:], axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[:5, :5].min() > 0.9
    assert alike[:5, 5:].max() < 0.5
    np.testing.assert_array_equal(got, word_vectors(texts, 12, 2))


def test_encoding(small):
    batch = data.encode(small.held_out, small.lexicon)
    assert batch.question.shape == (30, data.QUESTION)
    assert ((batch.passage > 0).sum(1) == [len(example.passage) for example in small.held_out]).all()
    assert batch.passage.max() < len(small.lexicon.words.rarity)
    assert batch.passage_grams.max() < len(small.lexicon.passage_grams.rarity)
    asked = batch.question_flags[:, 1, 0]
    np.testing.assert_array_equal(asked, batch.yes)
    assert (batch.question_flags[:, 3:] == 0).all()


def test_batches_are_a_pure_function_of_seed_and_step_and_go_through_all(small):
    everything, _ = data.encoded(small)
    drawn = lambda *arguments: data.training_batch(everything, *arguments)
    chex.assert_trees_all_equal(drawn(3, 7, 16), drawn(3, 7, 16))
    assert drawn(3, 7, 16).seed != drawn(3, 8, 16).seed
    first = np.concatenate([drawn(5, step, 20).passage for step in range(3)])
    second = np.concatenate([drawn(5, step, 20).passage for step in range(3, 6)])
    assert not np.array_equal(first, second)
    for seen in (first, second):
        chex.assert_trees_all_equal(*(np.unique(rows, axis=0) for rows in (seen, everything.passage)))


@pytest.mark.parametrize("attention", ["cross", "none"])
def test_learns_and_draws(small, attention):
    task: Any = boolq(attention, 0, None, batch=20, sizes=TINY, parts=small)
    graph, params = nnx.split(task.model, nnx.Param)
    assert jax.tree.structure(nnx.state(task.model)) == jax.tree.structure(params)  # there is no other state
    state, batch, losses = TrainState(params, task.optimizer.init(params)), task.batch(0), []
    for _ in range(60):
        state, loss = update(task.loss, task.optimizer, graph, state, batch)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    model = nnx.merge(graph, state.params)
    assert 0 <= task.evaluate(model) <= 1
    assert task.baseline == ("majority class", pytest.approx(2 / 3))
    fixed = lambda m: [m.rarity[...], m.passage.rarity[...], *([m.reader.vectors[...]] if m.reader else [])]
    jax.tree.map(np.testing.assert_array_equal, fixed(model.mean), fixed(task.model.now))
    figures = task.pictures(model)
    assert set(figures) == ({"attention.png"} if attention == "cross" else set())


def test_padding_changes_nothing(small):
    task_model: Any = boolq("cross", 0, None, sizes=TINY, parts=small).model
    model = task_model.now
    batch = data.encode(small.held_out, small.lexicon)
    cut = lambda x: x[:, : int((batch.passage > 0).sum(1).max())]
    short = batch._replace(
        **{name: cut(getattr(batch, name)) for name in ("passage", "passage_grams", "passage_flags")}
    )
    long = model.reader(batch, None)
    np.testing.assert_allclose(model.reader(short, None), long, atol=1e-5)


def test_weights_of_a_question_lie_within_the_passage(small):
    task_model: Any = boolq("cross", 0, None, sizes=TINY, parts=small).model
    model = task_model.now
    batch = data.encode(small.held_out, small.lexicon)
    weights = np.asarray(model.reader.weights(batch))
    assert weights.shape == (30, 2, data.QUESTION, data.PASSAGE)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert (weights.swapaxes(1, 3)[batch.passage == 0] == 0).all()


def test_every_choice_that_decides_the_result_is_a_setting(small):
    settings = lambda *choice, **options: boolq(*choice, **{"sizes": TINY, "parts": small, **options}).settings
    usual = settings("cross", 0, None)
    assert settings("cross", 0, "reference") == usual  # another way to the same result
    assert settings("none", 0, None) != usual
    assert settings("cross", 1, None) != usual
    assert settings("cross", 0, None, batch=8) != usual
    fewer = small._replace(held_out=small.held_out[1:])
    assert settings("cross", 0, None, parts=fewer) != usual
