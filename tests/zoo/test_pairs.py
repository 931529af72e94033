"""The pairs of verses: what is drawn of two small Bibles, that a model learns them, what it draws."""

import argparse
import sqlite3
from typing import Any

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from jattn.zoo._train import TrainState, update
from jattn.zoo.pairs import ATTENTION, POOLING, VARIANTS, add_options, data
from jattn.zoo.pairs.model import Sizes
from jattn.zoo.pairs.task import pairs

TINY = Sizes(embedding=8, hidden=8, blocks=1, dropout=0.1)
CHAPTERS, VERSES = 20, 6


def bibles():
    """Verses of ten words drawn from those of their chapter, and the same with the first two replaced."""
    rng, king_james, american = np.random.default_rng(0), {}, {}
    for chapter in range(CHAPTERS):
        for number in range(VERSES):
            verse = tuple(f"w{n}" for n in chapter + rng.permutation(16)[:10])
            king_james[1, chapter, number], american[1, chapter, number] = verse, ("thy", "thou", *verse[2:])
    return king_james, american


@pytest.fixture(scope="module")
def small():
    """Two small Bibles."""
    return data.divide(*bibles(), share=0.9)


def test_a_bible_is_read():
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE verses (book_id, chapter_number, verse_number, text)")
    text = "And God\N{RIGHT SINGLE QUOTATION MARK}s Spirit&amp;amp;: it moved\N{EM DASH}upon the face."
    connection.execute("INSERT INTO verses VALUES (1, 2, 3, ?)", (text,))
    connection.commit()
    database = connection.serialize()
    connection.close()
    verse = ("and", "god's", "spirit", "it", "moved", "upon", "the", "face")
    assert data.parse(database) == {(1, 2, 3): verse}


def test_overlap_is_a_share_of_different_words():
    assert data.overlap(("a", "b", "a"), ("b", "c")) == pytest.approx(1 / 3)
    assert data.overlap(("a", "b"), ("b", "a", "b")) == 1
    assert data.overlap(("a",), ("b",)) == 0


def test_the_hardest_verses_are_in_a_pair_of_either_kind_with_their_closest_neighbour():
    king_james, american = bibles()
    got = data.hardest(king_james, american)
    assert len(got) == round(data.SHARE * CHAPTERS * VERSES)
    verse_of = {verse: key for key, verse in american.items()}
    gaps = {}
    for verse, left in king_james.items():
        chapter = [american[1, verse[1], n] for n in range(VERSES) if n != verse[2]]
        gaps[left] = data.overlap(left, american[verse]) - max(data.overlap(left, other) for other in chapter)
    for same, other in got:
        assert same.same and not other.same
        assert same.left == other.left
        assert verse_of[same.right] == next(verse for verse, words in king_james.items() if words == same.left)
        assert verse_of[other.right][:2] == same.chapter == other.chapter
        gap = data.overlap(same.left, same.right) - data.overlap(other.left, other.right)
        assert gap == pytest.approx(gaps[same.left])
    chosen = {same.left for same, _ in got}
    assert max(gaps[left] for left in chosen) <= min(gap for left, gap in gaps.items() if left not in chosen)


def test_a_neighbour_that_says_the_same_is_none():
    text, other = ("thou", "shalt", "not"), ("thou", "shalt", "rest")
    verses = {(1, 1, 1): text, (1, 1, 2): text, (1, 1, 3): other, (1, 2, 1): text}
    (one, two), *_ = data.hardest(verses, verses)
    assert {one.right, two.right} == {text, other}


def test_long_verses_are_left_out():
    long = tuple("abcdefghij") * 10
    verses = {(1, 1, 1): long, (1, 1, 2): ("a", "b"), (1, 1, 3): ("a", "c")}
    assert all(long not in (pair.left, pair.right) for both in data.hardest(verses, verses) for pair in both)


def test_no_verse_held_out_is_learnt_from(small):
    learnt, held_out, _ = small
    texts = lambda pairs: {text for pair in pairs for text in (pair.left, pair.right)}
    assert len(learnt) > len(held_out) > 0
    assert not texts(learnt) & texts(held_out)
    assert not {pair.chapter for pair in learnt} & {pair.chapter for pair in held_out}
    for part in (learnt, held_out):
        assert sum(pair.same for pair in part) * 2 == len(part)


def test_a_verse_told_twice_is_not_held_out():
    king_james, american = bibles()
    for bible in (king_james, american):
        for number in range(VERSES):
            for chapter in range(1, CHAPTERS):
                bible[1, chapter, number] = bible[1, 0, number]
    assert data.divide(king_james, american, share=1.0).held_out == []


def test_tokens(small):
    vocabulary = small.vocabulary
    assert sorted(vocabulary.values()) == list(range(1, 1 + len(vocabulary)))
    batch = data.encode(small.held_out, vocabulary, seed=3)
    assert batch.left.shape == batch.right.shape == (len(small.held_out), data.LONGEST)
    assert batch.left.max() < small.size
    assert ((batch.left > 0).sum(1) == 10).all()
    rare = data.token("melchizedek", vocabulary)
    assert len(vocabulary) < rare < small.size
    assert rare == data.token("melchizedek", vocabulary)


def test_batches_are_a_pure_function_of_seed_and_step(small):
    drawn = lambda seed, step: data.training_batch(data.encoded(small)[0], seed, step, 16)
    first = drawn(3, 7)
    chex.assert_trees_all_equal(first, drawn(3, 7))
    assert not np.array_equal(first.left, drawn(3, 8).left)
    assert not np.array_equal(first.left, drawn(4, 7).left)
    assert first.seed != drawn(3, 8).seed


def test_counting_is_measured_on_the_pairs_held_out(small):
    right = [data.overlap(pair.left, pair.right) >= 8 / 12 for pair in small.held_out]  # of 10 words 8 are the same
    want = np.mean([guess == pair.same for guess, pair in zip(right, small.held_out, strict=True)])
    assert data.counting(small) == pytest.approx(want)


@pytest.mark.parametrize(("attention", "pooling"), [("abcnn3", "attention"), ("abcnn2", "max"), ("none", "attention")])
def test_learns_and_draws(small, attention, pooling):
    task = pairs(attention, pooling, 0, None, batch=16, sizes=TINY, parts=small)
    graph, params = nnx.split(task.model, nnx.Param)
    assert jax.tree.structure(nnx.state(task.model)) == jax.tree.structure(params)  # there is no other state
    state, batch, losses = TrainState(params, task.optimizer.init(params)), task.batch(0), []
    for _ in range(60):
        state, loss = update(task.loss, task.optimizer, graph, state, batch)
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    model = nnx.merge(graph, state.params)
    assert 0 <= task.evaluate(model) <= 1
    figure = task.pictures(model)["matches.png"]
    assert len(figure.subfigs) == 2
    labels = [label.get_text() for label in figure.subfigs[0].axes[0].get_yticklabels()]
    assert len(labels) == (12 if attention == "abcnn2" else 10)


def test_padding_and_the_order_of_a_pair_change_nothing(small):
    task_model: Any = pairs("abcnn3", "attention", 0, None, sizes=TINY, parts=small).model
    model = task_model.now
    batch = data.encode(small.held_out[:4], small.vocabulary)
    want = model(batch.left, batch.right)
    np.testing.assert_allclose(model(batch.right, batch.left), want, atol=1e-5)
    np.testing.assert_allclose(model(batch.left[:, :12], batch.right[:, :11]), want, atol=1e-5)


def test_every_choice_that_decides_the_result_is_a_setting(small):
    settings = lambda *choice, **options: pairs(*choice, **{"sizes": TINY, "parts": small, **options}).settings
    usual = settings("abcnn3", "max", 0, None)
    assert settings("abcnn3", "max", 0, "reference") == usual  # another way to the same result
    for other in (("none", "max", 0), ("abcnn3", "attention", 0), ("abcnn3", "max", 1)):
        assert settings(*other, None) != usual
    assert settings("abcnn3", "max", 0, None, batch=8) != usual


def test_the_variants_are_flags():
    parser = argparse.ArgumentParser()
    add_options(parser)
    seen = {tuple(vars(parser.parse_args(flags)).values()) for flags in VARIANTS.values()}
    assert len(seen) == len(VARIANTS)
    assert {attention for attention, _ in seen} == {*ATTENTION}
    assert {pooling for _, pooling in seen} == {*POOLING}
