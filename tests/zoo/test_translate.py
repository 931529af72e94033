"""English to German: what is read out of catalogues and dictionaries, the model, the figure."""

import argparse
import collections
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.zoo import _archives
from jattn.zoo.__main__ import main
from jattn.zoo._errors import UsageError
from jattn.zoo._train import TrainState, train, update
from jattn.zoo.translate import add_options, data
from jattn.zoo.translate.chrf import chrf
from jattn.zoo.translate.data import Pair
from jattn.zoo.translate.model import Sizes, Translator
from jattn.zoo.translate.task import translate

TINY = Sizes(width=8, layers=2, heads=4, kv_heads=2, dropout=0.3)
MOST = 60  # pieces
ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
EINS = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn"]
PAIRS = [Pair(f"{a} and {b}", f"{c} und {d}") for a, c in zip(ONES, EINS, strict=True) for b, d in zip(ONES, EINS, strict=True)]  # fmt: skip

CATALOGUE = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\nPlural-Forms: nplurals=2; plural=(n != 1);\\n"

msgid "Hungarian"
msgstr "Ungarisch"

#, fuzzy
msgid "Guessed"
msgstr "Geraten"

msgid "untranslated"
msgstr ""

#, python-format
msgid "%(count)s day"
msgid_plural "%(count)s days"
msgstr[0] "%(count)s Tag"
msgstr[1] "%(count)s Tage"
"""

DICTIONARY = """# Version :: devel
Aal {m} | Der Aal ist ein Fisch. :: eel | The eel is a fish.
Ungleich. | Das sind zwei. | Drei. :: Not as | many.
Lass das sein! (Befehl) [ugs.] :: Stop that now! /informal/ {v}
Er kam; er ging fort. :: He came and he left.
Zu kurz. :: Too short.
Er ist der/die Beste hier. :: He is the best here.
"""


def tiny(pairs=PAIRS, seed=0):
    return translate(pairs, "a sample", 2, seed, None, batch=8, sizes=TINY, most=MOST)


def model():
    one = Translator(40, TINY, None, nnx.Rngs(0))
    state = nnx.state(one, nnx.Param)
    nnx.update(one, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), state))
    return one


run = nnx.jit(Translator.__call__)


def batch(n=3):
    random = np.random.default_rng(0)
    return random.integers(4, 40, (n, 12)), np.array([5, 12, 1])[:n], random.integers(4, 40, (n, 9))


# data


def test_catalogues_are_parsed():
    assert data.parse_catalogue(CATALOGUE.encode()) == [
        Pair("Hungarian", "Ungarisch"),
        Pair("untranslated", ""),
        Pair("%(count)s day", "%(count)s Tag"),
        Pair("%(count)s days", "%(count)s Tage"),
    ]


def test_dictionaries_are_parsed():
    assert data.parse_dictionary(DICTIONARY) == [
        Pair("The eel is a fish.", "Der Aal ist ein Fisch."),
        Pair("Stop that now!", "Lass das sein!"),
    ]


def test_pairs_that_fit():
    long = "x" * data.LONGEST
    pairs = [
        Pair("a\n b ", " c"),
        Pair("a b", "d"),
        Pair("e", ""),
        Pair(long, "f"),
        Pair("g", long),
        Pair(long + "x", "h"),
    ]
    assert data.fitting(pairs) == [Pair("a b", "c"), Pair(long, "f")]


def test_entities_are_undone():
    pairs = [Pair("Topics &amp; how-tos &ndash; 5 &euro;", "Themen &amp;amp; 5 €"), Pair("&nbsp;", "x")]
    assert data.fitting(pairs) == [Pair("Topics & how-tos \N{EN DASH} 5 €", "Themen & 5 €")]


def test_what_is_held_out_is_not_learnt_from_whatever_comes_beside_it():
    learnt, held_out = data.split(PAIRS)
    assert not set(learnt) & set(held_out)
    assert set(learnt) | set(held_out) == set(PAIRS)
    assert 0 < len(held_out) < 30
    fewer = data.split(PAIRS[::-2])
    assert set(fewer[0]) <= set(learnt) and set(fewer[1]) <= set(held_out)
    vocabulary = data.pieces(learnt, MOST)
    drawn = {
        data.decode(row, vocabulary)
        for step in range(9)
        for row in data.training_batch(learnt, vocabulary, 0, step, 16).target
    }
    assert drawn <= {pair.german for pair in learnt}


def test_texts_are_read_back_from_their_tokens():
    pairs = [Pair("one " * 30, "fünf"), Pair("a", "eins " * 30), Pair("%(n)s … 3.5", " zwei  Wörter ")]
    vocabulary = data.pieces([*PAIRS, *pairs], MOST)
    got = data.encode(pairs, vocabulary)
    assert got.source.shape == got.target.shape == (3, data.TOKENS)
    assert got.length[0] == data.TOKENS and 1 <= got.length[1] <= 2
    texts = [data.decode(row, vocabulary) for row in got.target]
    assert texts[0] == "fünf" and texts[2].split() == ["zwei", "Wörter"]
    assert ("eins " * 30).startswith(texts[1]) and data.END not in got.target[1]
    assert data.decode(got.source[2], vocabulary) == "%(n)s … 3.5"


def test_characters_never_seen_are_one_token():
    vocabulary = data.pieces(PAIRS, MOST)
    target = data.encode([Pair("a", "Ω")], vocabulary).target[0]
    assert data.UNKNOWN in target and data.decode(target, vocabulary).strip() == "<unk>"


def test_the_vocabulary_is_a_function_of_the_pairs_and_no_larger_than_asked():
    a, b = data.pieces(PAIRS, MOST), data.pieces(PAIRS, MOST)
    assert a.serialized_model_proto() == b.serialized_model_proto()
    assert a.get_piece_size() <= MOST and data.pieces(PAIRS).get_piece_size() < data.PIECES
    assert (a.pad_id(), a.bos_id(), a.eos_id(), a.unk_id()) == (data.PAD, data.START, data.END, data.UNKNOWN)


def test_batches_are_a_pure_function_of_seed_and_step():
    vocabulary = data.pieces(PAIRS, MOST)
    draw = lambda seed, step: data.training_batch(PAIRS, vocabulary, seed, step, 4)
    chex.assert_trees_all_equal(draw(3, 7), draw(3, 7))
    assert not np.array_equal(draw(3, 7).source, draw(3, 8).source)
    assert draw(3, 7).seed != draw(4, 7).seed


def test_the_messages_of_django():
    if not _archives.is_here(_archives.ARCHIVES["django"]):
        pytest.skip("django is not in the cache: python -m jattn.zoo fetch django")
    pairs = data.messages()
    assert Pair("Hungarian", "Ungarisch") in pairs
    assert len(pairs) > 500


@pytest.mark.parametrize("content", [None, b"\xff\xfe", DICTIONARY.encode()])
def test_a_file_that_is_no_dictionary(tmp_path, content, capsys):
    path = tmp_path / "de-en"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="--dictionary must be .*trans-de-en"):
        data.dictionary(path)
    assert main(["translate", "--dictionary", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("given", "path"), [("none", None), ("de-en", Path("de-en"))])
def test_the_dictionary_is_a_choice_where_there_is_one(given, path):
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert parser.parse_args(["--dictionary", given]).dictionary == path


# chrF


def test_chrf_is_what_is_written():
    def counted(written, wanted, n):
        pieces = lambda text: collections.Counter(text[i : i + n] for i in range(len(text) - n + 1))
        a, b = (pieces(text.replace(" ", "")) for text in (written, wanted))
        both = sum(min(a[x], b[x]) for x in a)
        precision, recall = both / sum(a.values()), both / sum(b.values())
        return 5 * precision * recall / (4 * precision + recall) if both else 0

    want = np.mean([counted("der kleine Hund", "die kleine Katze", n) for n in range(1, 7)])
    assert chrf(["der kleine Hund"], ["die kleine Katze"]) == pytest.approx(want)


def test_chrf_at_its_ends():
    assert chrf(["ab", "c"], ["ab", "c"]) == 1
    assert chrf([""], ["ab"]) == chrf(["ab"], [""]) == chrf([""], [""]) == 0
    # recall counts more: of two that share as much, the longer is the better translation
    assert chrf(["abcdef"], ["abc"]) > chrf(["abc"], ["abcdef"])


# model


def test_it_learns():
    task = tiny()
    graph, params = nnx.split(task.model, nnx.Param)
    state, one, losses = TrainState(params, task.optimizer.init(params)), task.batch(0), []
    for _ in range(60):
        state, loss = update(task.loss, task.optimizer, graph, state, one)
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    before, after = (jax.tree.leaves(x) for x in (params, state.params))
    # biases of keys, [2, 2], get no gradient: they add the same to all scores of a row, which the softmax cancels
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(before, after, strict=True) if a.shape[-2:] != (2, 2))


def test_padding_changes_nothing():
    one, (source, length, target) = model(), batch()
    inside = np.arange(12) < length[:, None]
    longer = np.pad(np.where(inside, source, 7), ((0, 0), (0, 3)), constant_values=9)
    np.testing.assert_allclose(run(one, longer, length, target), run(one, source, length, target), atol=2e-5)


def test_the_decoder_does_not_see_what_it_is_to_write():
    one, (source, length, target) = model(), batch()
    changed = target.copy()
    changed[:, 4:] = 5
    before, after = run(one, source, length, target), run(one, source, length, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 1e-3


def test_greedy_writes_what_teacher_forcing_finds_most_likely():
    one, (source, length, _) = model(), batch()
    written = nnx.jit(lambda one: one.greedy(source, length, 9))(one)
    np.testing.assert_array_equal(run(one, source, length, written).argmax(-1), written)


def test_dropout_comes_from_the_seed():
    one, arrays = model(), batch()
    first, again, second = (run(one, *arrays, jnp.uint32(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - run(one, *arrays)).max() > 1e-3


def test_an_alignment_is_the_weights_with_which_the_source_is_read():
    one, (source, length, target) = model(), batch()
    weights = np.asarray(nnx.jit(Translator.alignment)(one, source, length, target))
    assert weights.shape == (TINY.layers, 3, TINY.heads, 9, 12)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    outside = np.arange(12) >= length[:, None]
    assert (np.moveaxis(weights, 1, 0).swapaxes(1, 3).swapaxes(1, 4)[outside] == 0).all()


# task


def test_progress_evaluations_and_pictures(tmp_path, capsys):
    figure = train(tiny(), 2, tmp_path, every=1)
    out = capsys.readouterr().out
    assert f"held-out chrF2 on a sample {figure:.1%}" in out
    held_out = data.split(PAIRS)[1]
    assert [line.split(" \N{RIGHTWARDS ARROW} ")[0] for line in out.splitlines() if "wanted: " in line] == [
        pair.english for pair in held_out[:4]
    ]
    assert (tmp_path / "alignments.png").read_bytes().startswith(b"\x89PNG")


def test_every_choice_that_decides_the_result_is_a_setting():
    assert tiny().settings != tiny(seed=1).settings
    assert tiny().settings != tiny(PAIRS[1:]).settings
    settings = [translate(PAIRS, "a sample", n, 0, None, most=MOST).settings for n in (1, 4)]
    assert settings[0] != settings[1]
    assert translate(PAIRS, "a sample", 4, 0, "reference", most=MOST).settings == settings[1]
