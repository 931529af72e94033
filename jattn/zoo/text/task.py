"""The language model as a task: bits a byte of source never learnt from, what it looks at and what it writes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from jattn import viz
from jattn.zoo._errors import UsageError
from jattn.zoo._task import Task
from jattn.zoo.text import data
from jattn.zoo.text.model import LanguageModel, Sizes

TOKENS = 2048  # a step, as near as the length allows
EXAMINED = 2**15  # bytes of what is held out
DRAWN, SHOWN, WRITTEN = 40, 400, 600  # bytes of the pictures: attended, read, written
LONG = 1024  # from here on memory counts more than time


def text(
    length: int,
    window: int | None,
    positions: str,
    seed: int,
    implementation: str | None,
    sizes: Sizes = Sizes(),  # noqa: B008
    corpus: data.Corpus | None = None,
) -> Task:
    """The task for a context of so many bytes; `corpus` in the place of the standard library."""
    training, held_out = corpus or data.corpus()
    if length >= len(held_out):
        raise UsageError(f"--length must be less than the {len(held_out)} bytes held out, got {length}")
    examined = data.held_out_batch(held_out, EXAMINED, length)
    size = max(TOKENS // length, 1)
    return Task(
        settings={
            "task": "text",
            "length": length,
            "window": window,
            "positions": positions,
            "seed": seed,
            "batch": size,
            **dataclasses.asdict(sizes),
            "data": data.fingerprint(),
        },
        model=LanguageModel(sizes, window, positions, implementation, nnx.Rngs(seed), remat=length > LONG),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(_learning_rate)),
        batch=lambda step: data.training_batch(training, seed, step, size, length),
        loss=_loss,
        evaluate=lambda model: _bits(model, examined, size),
        metric="held-out bits per byte",
        pictures=lambda model: {"attention.png": _attention(model, held_out), "written.png": _written(model, held_out)},
        show="{:.3f}".format,
        baseline=("trigrams", data.trigram_bits(training, examined)),
    )


def _learning_rate(step: Any) -> jax.Array:
    """Rises for 50 steps, falls as 1/sqrt(step) after 200.  No part for the length of the run: any run can go on."""
    return 3e-3 * jnp.minimum((step + 1) / 50, jnp.sqrt(200 / jnp.maximum(step, 200)))


def _loss(model: LanguageModel, batch: data.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[:, :-1]), batch[:, 1:]).mean()


_examine = nnx.jit(_loss)


def _bits(model: LanguageModel, pieces: np.ndarray, size: int) -> float:
    """As many pieces at a time as a step has."""
    parts = np.split(pieces, range(size, len(pieces), size))
    nats = [float(_examine(model, part)) * len(part) for part in parts]
    return sum(nats) / len(pieces) / np.log(2)


def _snippet(source: np.ndarray, size: int) -> np.ndarray:
    """So many bytes from the first `def` of the second half on, `[1, size]`."""
    whole = source.tobytes()
    first = max(whole.find(b"\n    def ", len(whole) // 2) + 1, 0)
    return source[None, first : first + size].astype(np.int32)


@nnx.jit
def _weights(model: LanguageModel, source: data.Array) -> jax.Array:
    return model.weights(source)


def _attention(model: LanguageModel, held_out: np.ndarray) -> Figure:
    """The heads of the last layer, on the last bytes of a snippet."""
    source = _snippet(held_out, 4 * DRAWN)
    weights = np.asarray(_weights(model, source))[-1, 0, :, -DRAWN:, -DRAWN:]
    tokens = [_readable(chr(byte)).replace("\n", "\\n") for byte in source[0, -DRAWN:]]
    title = "the last layer: what each byte of source (down) attends to, among the last bytes (across)"
    figure = viz.show_weights(weights, tokens, tokens, title=title)
    assert isinstance(figure, Figure)
    return figure


def _readable(text: str) -> str:
    """With a question mark for what no font draws."""
    return "".join(x if x == "\n" or (x.isprintable() and x < "\u0250") else "?" for x in text)


def _written(model: LanguageModel, held_out: np.ndarray) -> Figure:
    """Source held out, and how the model goes on."""
    source = _snippet(held_out, SHOWN)
    write = nnx.jit(lambda model, source: model.write(source, WRITTEN, jax.random.key(0), temperature=0.7))
    parts = (("read", source[0], "0.4"), ("written", np.asarray(write(model, source))[0], "black"))
    texts = [bytes(tokens.astype(np.uint8).tolist()).decode("utf-8", "replace").splitlines() for _, tokens, _ in parts]
    figure = Figure(figsize=(10, 0.6 + 0.14 * max(map(len, texts))), layout="constrained")
    for axes, (name, _, colour), lines in zip(figure.subplots(1, 2), parts, texts, strict=True):
        shown = "\n".join(_readable(line[:58]) for line in lines)
        axes.set_axis_off()
        axes.set_title(name)
        axes.text(0, 1, shown, family="monospace", fontsize=8, va="top", color=colour, parse_math=False)
    return figure
