"""The language model of the standard library's source: its data, its model, its memory."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.zoo.__main__ import main
from jattn.zoo._errors import UsageError
from jattn.zoo._train import TrainState, train, update
from jattn.zoo.text import data
from jattn.zoo.text import task as task_module
from jattn.zoo.text.model import LanguageModel, Sizes
from jattn.zoo.text.task import text

TINY = Sizes(width=8, layers=2, heads=2)
SOURCE = b"def double(number):\n    return 2 * number\n\n\n    def halve(number):\n        return number / 2\n"
CORPUS = data.divide([SOURCE * (1 + n % 7) for n in range(40)])


def tiny(length=16, window=None, positions="rotary", seed=0):
    return text(length, window, positions, seed, None, TINY, CORPUS)


def model(window=None, positions="rotary", **options):
    return LanguageModel(TINY, window, positions, None, nnx.Rngs(0), **options)


# data


def test_files_are_held_out_whole():
    texts = [bytes([65 + n % 26]) * (n + 1) for n in range(45)]
    training, held_out = data.divide([*texts[:10], b"", *texts[10:]])
    assert held_out.tobytes() == b"\0" + texts[19] + b"\0" + texts[39]
    assert training.tobytes() == b"".join(b"\0" + x for n, x in enumerate(texts) if n not in (19, 39))


def test_the_library_is_all_source_and_no_tests():
    files = data.library()
    names = {path.name for path in files}
    assert {"argparse.py", "zipfile.py"} & names and "ast.py" in names
    assert not any("test" in path.parts or path.name.startswith("_sysconfigdata") for path in files)
    assert files == data.library()


def test_batches_are_a_pure_function_of_seed_and_step():
    draw = lambda seed, step: data.training_batch(CORPUS.training, seed, step, 5, 16)
    np.testing.assert_array_equal(draw(3, 7), draw(3, 7))
    assert not np.array_equal(draw(3, 7), draw(3, 8))
    assert not np.array_equal(draw(3, 7), draw(4, 7))
    whole = CORPUS.training.tobytes()
    assert all(row.astype(np.uint8).tobytes() in whole for row in draw(3, 7))


@pytest.mark.parametrize(("most", "pieces"), [(10**9, 9), (64, 4), (1, 1)])
def test_what_is_held_out_is_examined_in_pieces_without_overlap(most, pieces):
    source = np.arange(150) % 251
    batch = data.held_out_batch(source, most, 16)
    assert batch.shape == (pieces, 17)
    assert (batch == batch[:, :1] + np.arange(17)).all()
    assert len(np.unique(batch[:, :-1])) == 16 * pieces


def test_trigrams_are_counted_and_smoothed():
    def probability(context, byte):
        """As it is written, one context at a time."""
        if context is None:
            return 1 / 256
        n = len(context)
        after = [training[i + n] for i in range(len(training) - n) if training[i : i + n] == context]
        shorter = probability(context[1:] if n else None, byte)
        if not after:
            return shorter
        return (after.count(byte) + len(set(after)) * shorter) / (len(after) + len(set(after)))

    training = b"abracadabra, alakazam"
    piece = b"abraxas\xff"
    bits = -np.log2([probability((b"\0" + piece)[i - 1 : i + 1], piece[i]) for i in range(1, len(piece))])
    got = data.trigram_bits(np.frombuffer(training, np.uint8), np.frombuffer(piece, np.uint8)[None])
    assert got == pytest.approx(bits.mean())


def test_the_fingerprint_is_of_what_is_learnt_from():
    assert data.fingerprint(data.divide([SOURCE] * 40)) != data.fingerprint(CORPUS)
    assert tiny().settings["data"] == data.fingerprint(CORPUS)


# model


@pytest.mark.parametrize(("window", "positions"), [(None, "rotary"), (3, "alibi"), (None, "none")])
def test_it_learns(window, positions):
    task: Any = tiny(window=window, positions=positions)
    graph, params = nnx.split(task.model, nnx.Param)
    state, batch, losses = TrainState(params, task.optimizer.init(params)), task.batch(0), []
    for _ in range(40):
        state, loss = update(task.loss, task.optimizer, graph, state, batch)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("window", "reach"), [(None, 16), (2, 2 * TINY.layers)])
def test_a_byte_is_guessed_from_those_before_it_as_far_as_it_reaches(window, reach):
    source = np.full((1, 16), 97)
    changed = source.copy()
    changed[:, 5] = 98
    run = jax.jit(lambda x: model(window)(x))
    difference = np.abs(run(source) - run(changed)).max((0, 2))
    assert (difference[:5] == 0).all()
    assert (difference[5 : 6 + reach] > 0).all()
    assert (difference[6 + reach :] == 0).all()


def test_remat_changes_nothing():
    source = CORPUS.training[None, :33].astype(np.int32)
    gradients = []
    for remat in (False, True):
        graph, params = nnx.split(model(remat=remat), nnx.Param)
        gradients.append(jax.jit(jax.grad(lambda p, graph=graph: jnp.sum(nnx.merge(graph, p)(source) ** 2)))(params))
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-4)


def test_memory_of_a_step_is_linear_in_the_length():
    def temporary(length):
        task = text(length, None, "rotary", 0, None, TINY, CORPUS._replace(held_out=np.tile(CORPUS.held_out, 200)))
        graph, params = nnx.split(task.model, nnx.Param)
        state = TrainState(params, task.optimizer.init(params))
        batch = jax.ShapeDtypeStruct((1, length + 1), np.int32)
        memory = update.lower(task.loss, task.optimizer, graph, state, batch).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    short, long = temporary(2048), temporary(8192)
    assert long < 4.5 * short
    assert long < 8192**2  # the scores of one head, in float32, are four times that


@pytest.mark.parametrize(("window", "positions"), [(None, "rotary"), (3, "alibi")])
def test_what_is_written_is_drawn_from_the_logits_of_what_came_before(window, positions):
    one, source = model(window, positions), np.array([[100, 101, 102], [32, 61, 32]])
    write = nnx.jit(lambda one, key, temperature: one.write(source, 9, key, temperature))
    written = write(one, jax.random.key(0), 1e-4)
    whole = np.concatenate([source, written], axis=1)
    np.testing.assert_array_equal(nnx.jit(LanguageModel.__call__)(one, whole)[:, 2:-1].argmax(-1), written)
    draws = [write(one, jax.random.key(n), 1.0) for n in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_weights_are_those_of_every_layer_and_head():
    weights = np.asarray(model(window=3).weights(np.full((2, 8), 97)))
    assert weights.shape == (TINY.layers, 2, TINY.heads, 8, 8)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    i, j = np.arange(8)[:, None], np.arange(8)
    assert (weights[..., (j > i) | (j < i - 3)] == 0).all()


# task


def test_progress_evaluations_and_pictures(tmp_path, capsys):
    bits = train(tiny(), 2, tmp_path, every=1)
    out = capsys.readouterr().out
    assert f"held-out bits per byte {bits:.3f}" in out
    assert 0 < bits < 16
    for name in ("attention.png", "written.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_written_is_printed_and_drawn(tmp_path, capsys):
    task: Any = tiny()
    train(task, 1, tmp_path)
    read, written = task_module._texts(task.model, CORPUS.held_out)  # of the model before the step
    assert len(written) >= task_module.WRITTEN / 4 and read in SOURCE.decode() * 9
    said = task.written(task.model)
    assert said.splitlines()[1:-1] == [*read.splitlines(), "--- and written:", *written.splitlines()]
    assert said.splitlines()[0] in capsys.readouterr().out
    left, right = task.pictures(task.model)["written.png"].axes
    for axes, shown in ((left, read), (right, written)):
        lines = axes.texts[0].get_text().split("\n")
        assert max(map(len, lines)) <= task_module.COLUMNS
        for drawn, whole in zip(lines, shown.splitlines()[: task_module.LINES], strict=True):
            assert drawn == whole or (drawn[-1] == "\N{HORIZONTAL ELLIPSIS}" and whole.startswith(drawn[:-1]))


def test_a_question_mark_is_told_from_what_cannot_be_read():
    source = np.frombuffer("why?\t\x01é ж\n\n".encode() + b"\xff?", np.uint8)
    unknown = task_module.UNREADABLE
    assert unknown != "?"
    assert task_module._readable(source) == f"why?    {unknown}é {unknown}\n\n{unknown}?"
    labels = [task_module._byte(byte) for byte in range(256)]
    assert len(set(labels)) == 256
    assert [labels[ord(x)] for x in "?a \n\t"] == [*"?a \n\t"]
    assert (labels[0], labels[0xC3]) == ("\\x00", "\\xc3")


def test_every_choice_that_decides_the_result_is_a_setting():
    settings = [task.settings for task in (tiny(), tiny(8), tiny(window=3), tiny(positions="alibi"), tiny(seed=1))]
    assert all(a != b for n, a in enumerate(settings) for b in settings[:n])


def test_a_length_beyond_what_is_held_out():
    with pytest.raises(UsageError, match=f"--length must be less than the {len(CORPUS.held_out)} bytes held out"):
        tiny(len(CORPUS.held_out))


@pytest.mark.parametrize("flags", [("--length", "0"), ("--window", "-1"), ("--positions", "sine")])
def test_bad_flags(flags, capsys):
    assert main(["text", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and repr(flags[1]) in err
