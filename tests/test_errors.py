"""Bad input, and the error each gets: the type, and what its one line must name."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, scores

KEY = jax.random.key(0)
Q, K, V = (np.ones(x, np.float32) for x in ((2, 6, 4, 8), (2, 5, 2, 8), (2, 5, 2, 3)))
OUT = jnp.asarray(Q)


RELATIVE: Any = mods.relative  # whose types would refuse what is wrong on purpose


def attend(q: Any = Q, k: Any = K, v: Any = V, **options: Any):
    return lambda: jattn.attention(q, k, v, **options)


def call(fn: Callable[..., Any], *args: Any, **options: Any):
    return lambda: fn(*args, **options)


class Ranked(normalizers.Normalizer):
    elementwise = True

    def __call__(self, scores):
        return jnp.sort(scores, -1)


BAD = {
    # query, key, value
    "layout [b, h, t, d]": (attend(Q.transpose(0, 2, 1, 3), Q.transpose(0, 2, 1, 3)[..., :5, :], Q.transpose(0, 2, 1, 3)[..., :5, :]),
                            ValueError, ["h = 6", "g = 5", "look like [b, h, t, d]", "jnp.swapaxes"]),
    "integers": (attend(np.ones(Q.shape, int)), TypeError, ["query", "int64", "float32", "cast"]),
    "complex": (attend(v=V.astype(complex)), TypeError, ["value", "complex"]),
    "not an array": (attend("text"), TypeError, ["query", "array", "str"]),
    "two axes": (attend(Q[0, 0], K[0, 0], V[0, 0]), ValueError, ["[4, 8]", "[b, t, h, d]", "jax.vmap"]),
    "mixed axes": (attend(Q[0]), ValueError, ["[6, 4, 8]", "[2, 5, 2, 8]"]),
    "batch": (attend(Q[:1]), ValueError, ["same batch size", "[1, 6, 4, 8]"]),
    "key and value": (attend(v=V[:, :4]), ValueError, ["key and value", "same length s", "[2, 4, 2, 3]"]),
    "width": (attend(k=K[..., :7]), ValueError, ["same width d", "[2, 5, 2, 7]"]),
    "heads": (attend(Q[:, :, :3]), ValueError, ["h = 3", "multiple", "g = 2"]),
    "no heads": (attend(Q[:, :, :0]), ValueError, [">= 1", "[2, 6, 0, 8]"]),
    "no width": (attend(Q[..., :0], K[..., :0]), ValueError, [">= 1", "[2, 6, 4, 0]"]),
    # mask
    "float mask": (attend(mask=np.zeros((6, 5), np.float32)), TypeError, ["boolean", "float32", "bias="]),
    "int mask": (attend(mask=np.ones((6, 5), int)), TypeError, ["boolean", "int64"]),
    "mask shape": (attend(mask=np.ones((5, 6), bool)), ValueError, ["mask", "[2, 4, 6, 5]", "[5, 6]"]),
    "mask function": (attend(mask=lambda i, j: i >= j), TypeError, ["mask", "jattn.masks.function"]),
    "mask factory": (attend(mask=masks.causal), TypeError, ["mask", "function"]),
    "mask string": (attend(mask="causal"), TypeError, ["mask", "masks.causal()", "'causal'"]),
    "segment ids": (attend(mask=masks.segments(np.zeros((2, 7), int), np.zeros((2, 5), int))), ValueError,
                    ['mask', '"bt"', "t = 6", "[2, 7]"]),
    "float ids": (lambda: masks.segments(np.zeros((2, 6))), ValueError, ["q_ids", "integers", "float64"]),
    "padding mask": (attend(mask=np.ones((2, 5), int)), TypeError, ["padding", "[:, None, None, :]", "masks.lengths"]),
    "boolean padding mask": (attend(mask=np.ones((2, 5), bool)), ValueError, ["[2, 4, 6, 5]", "mask[:, None, None, :]"]),
    "list of masks": (attend(mask=[masks.causal()]), TypeError, ["one mask", "&"]),
    "mask and array": (lambda: masks.causal() & np.ones((6, 5), bool), TypeError, ["masks.dense", "[6, 5]"]),
    "array or mask": (lambda: np.ones((6, 5), bool) | masks.causal(), TypeError, ["masks.dense", "[6, 5]"]),
    "ids beyond int32": (lambda: masks.segments(np.array([0, 2**32])), ValueError, ["q_ids", "4294967296", "x64"]),
    "table beyond int32": (lambda: jattn.operand(np.array([0, 2**40]), "t"), ValueError, ["int32", "x64"]),
    "float lengths": (lambda: masks.lengths(np.ones(2)), TypeError, ["kv", "integers [b]", "float64[2]"]),
    "window of nothing": (lambda: masks.window(-3), ValueError, ["left + right", "-3"]),
    "window beside nothing": (lambda: masks.window(3, -4), ValueError, ["left + right", "-4"]),
    "around nothing": (lambda: masks.around(np.ones(6), 0, -1), ValueError, ["left + right"]),
    # what functions are and return
    "mask of integers": (attend(mask=masks.function(lambda i, j: (i - j) % 3)), TypeError,
                         ["masks.function", "returns int32", "must return bool"]),
    "operand for a mask": (attend(mask=masks.function(lambda i, j, m: m, jattn.operand(np.ones(5, int), "s"))), TypeError,
                           ["returns int32", "must return bool"]),
    "mod of booleans": (attend(mods=mods.function(lambda s, i, j: s > 0)), TypeError, ["mods.function", "returns bool"]),
    "mod of one row": (attend(mods=mods.function(lambda s, i, j: s[:1])), ValueError, ["elementwise", "[1, bs]", "[bt, bs]"]),
    "mask of one row": (attend(mask=masks.function(lambda i, j: (j >= i)[:1])), ValueError, ["elementwise", "[1, bs]"]),
    "NumPy on a tile": (attend(mask=masks.function(lambda i, j: np.eye(8, dtype=bool)[i, j])), TypeError, ["jax.numpy"]),
    "a list by a tile": (attend(mask=masks.function(lambda i, j: [1, 2, 3][i] > j)), TypeError, ["jax.numpy"]),
    "mask turned": (attend(mask=masks.function(lambda i, j: (j >= i).T)), ValueError, ["elementwise", "[bs, bt]"]),
    "mod over the row": (attend(mods=mods.function(lambda s, i, j: s - s.max(-1, keepdims=True))), ValueError,
                         ["elementwise", "reduce_max"]),
    "gate of a running sum": (attend(gates=gates.function(lambda w, i, j: jnp.cumsum(w, 1))), ValueError,
                              ["gates.function", "elementwise", "cumsum"]),
    **{
        f"tile: {name}": (attend(mods=mods.function(fn)), ValueError, ["mods.function", "elementwise", "tile"])
        for name, fn in {
            "counted": lambda s, i, j: s - 0.3 * abs(i - jnp.arange(s.shape[1])),
            "counted before": lambda s, i, j: s + np.arange(s.shape[1]),
            "first column": lambda s, i, j: s - s[:, :1],
            "one entry": lambda s, i, j: s - jax.lax.dynamic_slice(s, (0, 0), (1, 1)),
            "taken": lambda s, i, j: s + jnp.take(s, 0, axis=1)[:, None],
            "rolled": lambda s, i, j: jnp.roll(s, 1, -1),
            "padded": lambda s, i, j: s + jnp.pad(s, ((0, 0), (1, 0)))[:, :-1],
            "written": lambda s, i, j: s.at[0].set(0.0),
            "product": lambda s, i, j: s @ s.T @ s,
            "reshaped": lambda s, i, j: s.reshape(s.shape[::-1]).T,
            "sum of a scan": lambda s, i, j: jax.lax.scan(lambda c, x: (c + x, c), jnp.zeros(s.shape[1]), s)[1],
            "transformed": lambda s, i, j: jnp.fft.fft(s).real,
            "width": lambda s, i, j: s * s.shape[1],
            "half the height": lambda s, i, j: s + j * (s.shape[0] // 2),
        }.items()
    },
    "mask that counts": (attend(mask=masks.function(lambda i, j: jnp.arange(j.shape[1])[None] <= i)), ValueError,
                         ["masks.function", "iota", "i and j"]),
    "gate that counts": (attend(gates=gates.function(lambda w, i, j: w * jnp.arange(w.shape[1]))), ValueError,
                         ["gates.function", "iota"]),
    "random mod": (attend(mods=mods.function(lambda s, i, j: s + jax.random.normal(KEY, s.shape))),
                   ValueError, ["random numbers", "gates.dropout"]),
    "random gate": (attend(gates=gates.function(lambda w, i, j: w * jax.random.uniform(jax.random.PRNGKey(1)))), ValueError,
                    ["gates.function", "random numbers"]),
    "gate that adds": (attend(gates=gates.function(lambda w, i, j: w + 0.1)), ValueError, ["linear in the weight", "add"]),
    "gate at least": (attend(gates=gates.function(lambda w, i, j: jnp.maximum(w, 0.1))), ValueError, ["linear", "max"]),
    "gate that fills": (attend(gates=gates.function(lambda w, i, j: jnp.where(i > j, w, 1.0))), ValueError,
                        ["linear", "select_n"]),
    "gate of a root": (attend(gates=gates.function(lambda w, i, j: jnp.sqrt(w))), ValueError, ["linear", "sqrt"]),
    "mod of two results": (attend(mods=mods.function(lambda s, i, j: (s, s))), TypeError, ["one array", "tuple"]),
    "mod of a list": (attend(mods=mods.function(lambda s, i, j: [s])), TypeError, ["one array", "list"]),
    "mod of text": (attend(mods=mods.function(lambda s, i, j: "s")), TypeError, ["one array", "str"]),
    "mask with and": (attend(mask=masks.function(lambda i, j: i < 3 and j < 4)), TypeError, ["& | ~"]),
    "four arguments": (lambda: mods.function(lambda score, h, i, j: score), TypeError,
                       ["(score, h, i, j)", "(score, i, j)", "(score, b, h, i, j)", "3 or 5 in all"]),
    "mask of three arguments": (lambda: masks.function(lambda h, i, j: i >= j), TypeError, ["(i, j)", "(b, h, i, j)"]),
    # normalisers of a user's own
    "normaliser of two arguments": (lambda: normalizers.function(lambda s, i: s), TypeError, ["(scores)", "0 operands"]),
    "one weight a row": (attend(normalizer=normalizers.function(lambda s: s.max(-1, keepdims=True))), ValueError,
                         ["normalizers.function", "weights [bt, s]", "[bt, 1]"]),
    "random weights": (attend(normalizer=normalizers.function(lambda s: s * jax.random.uniform(KEY, s.shape))), ValueError,
                       ["random numbers", "gumbel"]),
    "not elementwise: a sum": (attend(normalizer=normalizers.function(lambda s: s / s.sum(-1, keepdims=True), elementwise=True)),
                               ValueError, ["normalizers.function", "elementwise", "whole rows"]),
    "not elementwise: its length": (attend(normalizer=normalizers.function(lambda s: jnp.maximum(s, 0) / s.shape[-1], elementwise=True)),
                                    ValueError, ["elementwise", "what else is in its row"]),
    "not elementwise: a place": (attend(normalizer=normalizers.function(lambda s: s * jnp.arange(s.shape[-1]), elementwise=True)),
                                 ValueError, ["elementwise"]),
    "not elementwise: a class": (attend(normalizer=Ranked()), ValueError, ["normalizer: Ranked", "elementwise"]),
    "sinks of a function": (attend(sinks=np.ones(4, np.float32), normalizer=normalizers.function(lambda s: s)), ValueError,
                            ["sinks", "function has none"]),
    "lse of a function": (attend(return_lse=True, normalizer=normalizers.function(lambda s: s)), ValueError, ["return_lse", "function"]),
    "sample of a function": (call(jattn.sample, KEY, Q, K, V, normalizer=normalizers.function(lambda s: s)), ValueError,
                             ["sample", "no normalizer"]),
    "bucket in NumPy": (attend(mods=RELATIVE(np.ones((4, 3)), lambda r: np.clip(r, 0, 2))), TypeError,
                        ["mods.relative", "bucket", "jax.numpy"]),
    "bucket with if": (attend(mods=RELATIVE(np.ones((4, 3)), lambda r: 0 if r < 0 else 1)), TypeError,
                       ["bucket", "jnp.where"]),
    "bucket by a list": (attend(mods=RELATIVE(np.ones((4, 3)), lambda r: [1, 2][r])), TypeError, ["bucket", "jnp.asarray"]),
    "bucket of two": (lambda: RELATIVE(np.ones((4, 3)), lambda r, x: r), TypeError, ["mods.relative: bucket", "(j - i)"]),
    "shorter bucket": (attend(mods=mods.relative(np.ones((4, 3)), lambda r: r[:2])), TypeError, ["bucket", "as many"]),
    "complex slopes": (attend(mods=mods.alibi(np.ones(4) * 1j)), TypeError, ["real", "complex128"]),
    "complex weight": (attend(score=scores.general(np.eye(8) * 1j)), TypeError, ["real", "complex128"]),
    "key for a bias": (lambda: mods.bias(KEY, ""), TypeError, ["bias", "key<"]),
    "complex cap": (lambda: mods.softcap(np.complex64(5)), TypeError, ["cap", "real"]),
    "endless cap": (lambda: mods.softcap(float("inf")), ValueError, ["cap", "1e+30", "inf"]),
    "cap of all": (lambda: mods.softcap(1e38), ValueError, ["cap", "1e+30"]),
    "cap of nan": (lambda: mods.softcap(float("nan")), ValueError, ["cap", "nan"]),
    "ids of two dtypes": (lambda: masks.segments(np.full(6, 2**32 - 1, np.uint32), np.full(5, -1, np.int32)), ValueError,
                          ["one dtype", "uint32", "int32"]),
    "traced layout": (lambda: jax.jit(lambda x: masks.blocks(x, 4))(np.ones((2, 2), bool)), ValueError,
                      ["layout", "while tracing", "masks.function"]),
    "far positions": (attend(mask=masks.causal(), positions=2**31 - 1), ValueError, ["positions", "2^30", "2147483647"]),
    "bucket of floats": (attend(mods=mods.relative(np.ones((4, 3)), lambda r: r * 0.5)), TypeError, ["bucket", "integers"]),
    # from elsewhere
    "is_causal": (attend(is_causal=True), TypeError, ["is_causal", "mask=jattn.masks.causal()"]),
    "scale": (attend(scale=0.1), TypeError, ["scale", "jattn.scores.dot(scale)"]),
    "num_heads": (attend(num_heads=4), TypeError, ["num_heads", "[b, t, h, d]"]),
    "mask in place": (lambda: jattn.attention(Q, K, V, masks.causal()), TypeError, ["4 arguments", "mask="]),  # pyright: ignore[reportCallIssue]  # wrong on purpose
    "fp8": (attend(jnp.asarray(Q).astype("float8_e4m3fn")), TypeError, ["query", "float8_e4m3fn", "cast"]),
    "weights and lse": (call(jattn.weights, Q, K, V, return_lse=True), TypeError, ["weights", "return_lse"]),
    "weights by a backend": (call(jattn.weights, Q, K, V, implementation="nonsense"), TypeError, ["weights", "implementation"]),
    "sample by a backend": (call(jattn.sample, jax.random.key(0), Q, K, V, blocks=(4, 4)), TypeError, ["sample", "blocks"]),
    "explain of another": (call(jattn.explain, Q, K, V, is_causal=True), TypeError, ["explain", "masks.causal()"]),
    "truth of a mask": (lambda: masks.causal() and masks.window(3), TypeError, ["&", "and"]),
    "centre": (lambda: masks.around(3.0, 1, 1), ValueError, ["center", "[t], [b, t] or [b, h, t]", "float32[]"]),
    "float window": (lambda: masks.window(2.5), TypeError, ["left", "integer", "2.5"]),
    "stride": (lambda: masks.dilated(0), ValueError, ["stride", ">= 1", "0"]),
    "layout dtype": (lambda: masks.blocks(np.ones((2, 2)), 4), ValueError, ["layout", "boolean", "float64"]),
    "layout too small": (attend(mask=masks.blocks(np.ones((1, 2), bool), 4)), ValueError, ["layout", "t = 6"]),
    # mods, gates, score, normaliser
    "mods not a tuple": (attend(mods=3), TypeError, ["mods", "tuple", "3"]),
    "a gate among mods": (attend(mods=(gates.dropout(0.1, 0),)), TypeError, ["mods[0]", "jattn.mods.softcap"]),
    "mods factory": (attend(mods=(mods.softcap,)), TypeError, ["mods[0]", "call it"]),
    "score factory": (attend(score=scores.dot), TypeError, ["score", "scores.dot()", "call it"]),
    "score name": (attend(score="dot"), TypeError, ["score", "'dot'"]),
    "normalizer name": (attend(normalizer="softmax"), TypeError, ["normalizer", "'softmax'"]),
    "slopes": (attend(mods=(mods.alibi(np.ones(3)),)), ValueError, ["mods", '"h"', "h = 4", "[3]"]),
    "operand axes": (lambda: jattn.operand(np.ones((2, 3)), "hb"), ValueError, ["bhts", "'hb'"]),
    "operand rank": (lambda: jattn.operand(np.ones(2), "hs"), ValueError, ["'hs'", "(2,)"]),
    "cap": (lambda: mods.softcap(0), ValueError, ["cap", "> 0", "0"]),
    "table": (lambda: mods.relative(np.ones(3)), ValueError, ["table", "[h, buckets]", "(3,)"]),
    "bucket": (lambda: mods.t5_bucket(True, 32, 4), ValueError, ["max_distance", "4"]),
    "bias is a mod": (attend(bias=mods.softcap(3.0)), TypeError, ["bias", "mods="]),
    "bias shape": (attend(bias=np.ones((4, 5, 6), np.float32)), ValueError, ["bias", "[2, 4, 6, 5]", "[4, 5, 6]"]),
    "bias dtype": (attend(bias=np.ones((6, 5), int)), TypeError, ["bias", "int64"]),
    "bias axes": (lambda: mods.bias(np.ones((2, 3)), "h"), ValueError, ["bias", "'h'", "(2, 3)"]),
    "rate": (lambda: gates.dropout(1.0, 0), ValueError, ["rate", "[0, 1)", "1.0"]),
    "rate text": (lambda: gates.dropout("0.1", 0), ValueError, ["rate", "[0, 1)", "'0.1'"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    "traced rate": (lambda: gates.dropout(jnp.float32(0.1), 0), ValueError, ["rate", "static"]),
    "seed": (lambda: gates.dropout(0.1, -1), ValueError, ["seed", "2^32", "-1"]),
    "key for a seed": (lambda: gates.dropout(0.1, jax.random.key(0)), TypeError, ["seed", "jax.random.bits"]),
    "center": (lambda: gates.gaussian(np.ones(3), 1.0), ValueError, ["center", "[b, t]", "(3,)"]),
    "sigma": (lambda: gates.gaussian(np.ones((2, 6)), 0.0), ValueError, ["sigma", "> 0"]),
    "random key": (lambda: normalizers.gumbel(0), TypeError, ["key", "jax.random", "0"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    "temperature": (lambda: normalizers.gumbel(jax.random.key(0), -1.0), ValueError, ["temperature", "> 0"]),
    "dropout": (attend(dropout=0.1), TypeError, ["dropout", "gates.dropout(0.1, seed)", "0.1"]),
    "general": (attend(score=scores.general(np.ones((8, 7)))), ValueError, ["scores.general", "w", "[8, 8]", "[8, 7]"]),
    "additive": (attend(score=scores.additive(np.ones((8, 3)), np.ones((8, 4)), np.ones(3))), ValueError, ["m", "[3, 4]"]),
    "concat": (attend(score=scores.concat(np.ones(7), np.ones(8))), ValueError, ["w_q", "[8]", "[7]"]),
    # the rest
    "sinks": (attend(sinks=np.ones(2, np.float32)), ValueError, ["sinks", "[4]", "[2]"]),
    "sinks of sparsemax": (attend(sinks=np.ones(4, np.float32), normalizer=normalizers.sparsemax()), ValueError,
                           ["sinks", "sparsemax"]),
    "lse of sparsemax": (attend(return_lse=True, normalizer=normalizers.sparsemax()), ValueError,
                         ["return_lse", "softmax", "sparsemax"]),
    "implementation": (attend(implementation="cuda"), ValueError, ["implementation", "blockwise", "'cuda'"]),
    "blocks": (attend(blocks=(0, 4)), ValueError, ["blocks", ">= 1", "(0, 4)"]),
    "precision": (attend(precision="tops"), ValueError, ["precision", "jax.lax.Precision", "'tops'"]),
    "merge": (lambda: jattn.merge((OUT, OUT[..., 0]), (OUT, OUT)), ValueError, ["merge", "[2, 6, 4, 8]"]),
    "merge of one array": (lambda: jattn.merge(Q), TypeError, ["pairs", "return_lse=True"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    "sample of gates": (call(jattn.sample, jax.random.key(0), Q, K, V, gates=(gates.dropout(0.1, 0),)), ValueError,
                        ["sample", "gates"]),
    "sample of sinks": (call(jattn.sample, jax.random.key(0), Q, K, V, sinks=np.ones(4)), ValueError, ["sample", "sinks"]),
    "unknown option": (call(jattn.weights, Q, K, V, masks=None), TypeError, ["masks", "jattn.attention"]),
}  # fmt: skip


@pytest.mark.smoke
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, kind, named = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    missing = [x for x in named if x not in message]
    assert not missing, f"{message!r} does not say {missing}"
    assert "\n" not in message
    assert type(caught.value) is kind


@pytest.mark.parametrize("backend", ["pallas_tpu", "pallas_gpu", "cudnn"])
def test_a_backend_that_cannot_says_who_can(backend):
    with pytest.raises(jattn.UnsupportedError, match=f"'{backend}'.*(runs on TPU|runs on GPU).*blockwise"):
        jattn.attention(Q, K, V, implementation=backend)
    assert issubclass(jattn.UnsupportedError, NotImplementedError)


def test_errors_come_before_tracing():
    traced = []

    def tilt(score, i, j):
        traced.append(score.shape)
        return score - i + j

    tilted = mods.function(tilt)
    traced.clear()
    with pytest.raises(ValueError, match=re.escape("h = 4")):
        jattn.attention(Q, K, V, mods=(tilted, mods.alibi(jnp.ones(3))))
    assert not traced
    jattn.attention(Q, K, V, mods=(tilted,))
    assert traced
