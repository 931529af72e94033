"""The language model as a task: bits a byte of source never learnt from, what it looks at and what it writes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from jattn import viz
from jattn.zoo import _mesh
from jattn.zoo._errors import UsageError
from jattn.zoo._optimizer import adam
from jattn.zoo._task import Task
from jattn.zoo.text import data
from jattn.zoo.text.model import LanguageModel, Sizes

TOKENS = 2048  # a step, as near as the length allows
EXAMINED = 2**15  # bytes of what is held out
DRAWN, SHOWN, WRITTEN = 40, 400, 600  # bytes of the pictures: attended, read, written
COLUMNS, LINES = 88, 60  # letters of a line and lines of the picture, at most
UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # as for bytes that are no text; a question mark is one that was written
LONG = 1024  # from here on memory counts more than time


def text(
    length: int,
    window: int | None,
    positions: str,
    seed: int,
    implementation: str | None,
    sizes: Sizes = Sizes(),  # noqa: B008
    corpus: data.Corpus | None = None,
    sequences: int | None = None,
    mesh: dict[str, int] | None = None,
) -> Task:
    """The task for a context of so many bytes; `corpus` in the place of the standard library.

    sequences: of a step.  mesh: devices along each axis of `_mesh.AXES`.
    """
    size = sequences or max(TOKENS // length, 1)
    devices = _mesh.devices(
        mesh,
        data=(f"the {size} sequences of a step (--sequences)", size),
        model=(f"the {sizes.heads} heads", sizes.heads),
        sequence=(f"the {length} bytes of a sequence (--length)", length),
    )
    corpus = corpus or data.corpus()
    training, held_out = corpus
    if length >= len(held_out):
        raise UsageError(f"--length must be less than the {len(held_out)} bytes held out, got {length}")
    examined = data.held_out_batch(held_out, EXAMINED, length)
    return Task(
        settings={
            "task": "text",
            "length": length,
            "window": window,
            "positions": positions,
            "seed": seed,
            "batch": size,
            **dataclasses.asdict(sizes),
            "data": data.fingerprint(corpus),
        },
        model=LanguageModel(sizes, window, positions, implementation, nnx.Rngs(seed), remat=length > LONG),
        optimizer=adam(3e-3, rises=50, falls=200),
        batch=lambda step: data.training_batch(training, seed, step, size, length),
        loss=_loss,
        evaluate=lambda model: _bits(model, examined, size),
        metric="held-out bits per byte",
        pictures=lambda model: {"attention.png": _attention(model, held_out), "written.png": _draw(model, held_out)},
        show="{:.3f}".format,
        baseline=("trigrams", data.trigram_bits(training, examined)),
        written=lambda model: "--- read, of source held out:\n{}\n--- and written:\n{}\n---".format(
            *_texts(model, held_out)
        ),
        devices=devices,
    )


def _loss(model: LanguageModel, batch: data.Array) -> jax.Array:
    source, target = _mesh.sequences(batch[:, :-1]), _mesh.sequences(batch[:, 1:])
    return optax.softmax_cross_entropy_with_integer_labels(model(source), target).mean()


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
    tokens = [_byte(byte) for byte in source[0, -DRAWN:].tolist()]
    title = "the last layer: what each byte of source (down) attends to, among the last bytes (across)"
    figure = viz.show_weights(weights, tokens, tokens, title=title)
    assert isinstance(figure, Figure)
    return figure


def _byte(byte: int) -> str:
    """A label: what the byte is by itself, else its number as Python writes it."""
    letter = chr(byte)
    return letter if letter in "\t\n" or (letter.isascii() and letter.isprintable()) else f"\\x{byte:02x}"


@nnx.jit
def _write(model: LanguageModel, source: data.Array) -> jax.Array:
    return model.write(source, WRITTEN, jax.random.key(0), temperature=0.7)


def _texts(model: LanguageModel, held_out: np.ndarray) -> tuple[str, str]:
    """Source held out, and how the model goes on."""
    source = _snippet(held_out, SHOWN)
    return _readable(source[0]), _readable(np.asarray(_write(model, source))[0])


def _readable(source: np.ndarray) -> str:
    """Bytes as text, with `UNREADABLE` for what no font draws."""
    text = source.astype(np.uint8).tobytes().decode("utf-8", "replace").expandtabs()
    return "\n".join(
        "".join(x if x.isprintable() and x < "\u0250" else UNREADABLE for x in line) for line in text.splitlines()
    )


def _draw(model: LanguageModel, held_out: np.ndarray) -> Figure:
    """What was read and what was written, side by side."""
    texts = [[_cut(line) for line in text.splitlines()[:LINES]] for text in _texts(model, held_out)]
    figure = Figure(figsize=(13, 0.6 + 0.14 * max(map(len, texts))), layout="constrained")
    panels = zip(figure.subplots(1, 2), ("read", "written"), ("0.4", "black"), texts, strict=True)
    for axes, name, colour, lines in panels:
        axes.set_axis_off()
        axes.set_title(name)
        axes.text(0, 1, "\n".join(lines), family="monospace", fontsize=8, va="top", color=colour, parse_math=False)
    return figure


def _cut(line: str) -> str:
    return line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "\N{HORIZONTAL ELLIPSIS}"
