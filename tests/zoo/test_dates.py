"""The dates: their texts, that every score learns to read them, the decoder, what is a setting."""

import datetime
from collections import defaultdict
from typing import Any

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from jattn.zoo._train import TrainState, update
from jattn.zoo.dates import SCORES, data
from jattn.zoo.dates.task import dates
from tests.zoo.tasks import TINY, tiny


def test_batches_are_a_pure_function_of_seed_and_step():
    chex.assert_trees_all_equal(data.training_batch(3, 7, 16), data.training_batch(3, 7, 16))
    first = data.training_batch(3, 7, 16).source
    assert not np.array_equal(first, data.training_batch(3, 8, 16).source)
    assert not np.array_equal(first, data.training_batch(4, 7, 16).source)


def test_days_held_out_are_never_learnt_from():
    learnt, held_out = (set(days.tolist()) for days in data.split())
    assert len(held_out) == data.HELD_OUT
    assert not learnt & held_out
    assert len(learnt | held_out) == (data.LAST - data.FIRST).days + 1
    drawn = {data.decode(row) for step in range(20) for row in data.training_batch(0, step, 64).target}
    examined = {data.decode(row) for row in data.held_out_batch().target}
    assert not drawn & examined
    assert drawn <= {datetime.date.fromordinal(day).isoformat() for day in learnt}


def test_a_text_and_its_language_mean_one_date():
    # years whose last two digits, months and days can be taken for one another, and both centuries
    years = (1950, 1999, 2001, 2003, 2010, 2012, 2049)
    days = [datetime.date(year, 1, 1) + datetime.timedelta(day) for year in years for day in range(365)]
    for language in data.LANGUAGES:
        meanings = defaultdict(set)
        for pattern in data.patterns(language):
            for day in days:
                meanings[data.write(day, language, pattern)].add(day)
        assert all(len(dates) == 1 for dates in meanings.values()), language


def test_without_the_language_a_text_can_mean_two_dates():
    march, september = datetime.date(2026, 3, 9), datetime.date(2026, 9, 3)
    english = {data.write(march, "en", pattern) for pattern in data.patterns("en")}
    spanish = {data.write(september, "es", pattern) for pattern in data.patterns("es")}
    assert "3/9/2026" in english & spanish


def test_there_are_sixteen_languages_each_written_in_several_ways():
    assert len(set(data.LANGUAGES)) == 16
    assert all(len(data.patterns(language)) >= 4 for language in data.LANGUAGES)


def test_every_text_fits_and_is_read_back_from_its_tokens():
    characters, longest = data.alphabet()
    batch = data.held_out_batch(500)
    assert batch.source.shape == (500, longest)
    assert batch.length.max() <= longest
    assert batch.source.max() < data.alphabet().size
    for source, length, target in zip(*batch, strict=True):
        tag, *text = source[:length]
        assert not source[length:].any()
        language = data.LANGUAGES[tag - 1]
        written = "".join(characters[token - 1 - len(data.LANGUAGES)] for token in text)
        day = datetime.date.fromisoformat(data.decode(target))
        assert written in {data.write(day, language, pattern) for pattern in data.patterns(language)}


@pytest.mark.parametrize("score", SCORES)
def test_every_score_learns(score):
    task = tiny(score)
    graph, params = nnx.split(task.model, nnx.Param)
    state, batch, losses = TrainState(params, task.optimizer.init(params)), task.batch(0), []
    for _ in range(60):
        state, loss = update(task.loss, task.optimizer, graph, state, batch)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    before, after = (
        jax.tree.leaves(nnx.to_pure_dict(each)["attention"].get("arrays")) for each in (params, state.params)
    )
    assert len(after) == {"dot": 0, "general": 1, "cosine": 1, "concat": 2, "additive": 3}[score]
    if score == "concat":
        before, after = before[1:], after[1:]  # the softmax cancels the query's part: its gradient is rounding
    assert all(np.abs(b - a).max() > 1e-3 for b, a in zip(before, after, strict=True))


def test_padding_changes_nothing():
    model: Any = tiny("dot").model
    batch = data.held_out_batch(8)
    inside = np.arange(batch.source.shape[1]) < batch.length[:, None]
    longer = np.pad(np.where(inside, batch.source, 3), ((0, 0), (0, 5)), constant_values=7)
    np.testing.assert_allclose(model(longer, *batch[1:]), model(*batch), atol=1e-5)


def test_the_decoder_does_not_see_what_it_is_to_write():
    model: Any = tiny("dot").model
    source, length, target = data.held_out_batch(8)
    changed = target.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % len(data.ISO)
    before, after = model(source, length, target), model(source, length, changed)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert not np.allclose(before[:, 6:], after[:, 6:])


def test_greedy_writes_what_teacher_forcing_finds_most_likely():
    model: Any = tiny("dot").model
    source, length, _ = data.held_out_batch(8)
    written = model.greedy(source, length)
    np.testing.assert_array_equal(model(source, length, written).argmax(-1), written)


def test_an_alignment_is_the_weights_with_which_the_source_is_read():
    model: Any = tiny("dot").model
    batch = data.held_out_batch(8)
    weights = np.asarray(model.alignment(*batch))
    assert weights.shape == (8, TINY.heads, 10, data.alphabet().length)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    outside = np.arange(weights.shape[-1]) >= batch.length[:, None]
    assert (weights.swapaxes(0, 1).swapaxes(1, 2)[:, :, outside] == 0).all()


def test_every_choice_that_decides_the_result_is_a_setting():
    settings = lambda *choice, **options: dates(*choice, sizes=TINY, **options).settings
    choices = [
        settings(),
        settings("concat"),
        settings("dot", "gumbel"),
        settings("dot", "soft", "static"),
        settings(seed=1),
        settings(batch=8),
    ]
    assert all(a != b for n, a in enumerate(choices) for b in choices[:n])
    assert settings(implementation="reference") == settings()  # another way to the same result
