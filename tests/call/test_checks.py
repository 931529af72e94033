"""Bad input of calls, and the error each gets before anything is traced: the type, and what its one line must name."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import gates, masks, mods, normalizers, scores
from jattn._call import checks
from tests.bad_input import K, Q, V, attend, call, check_named

KEY = jax.random.key(0)
_VARIABLE: Any = nnx.Variable  # which type checkers do not take for an array
OUT = jnp.asarray(Q)

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
    "fp8": (attend(jnp.asarray(Q).astype("float8_e4m3fn")), TypeError, ["query", "float8_e4m3fn", "cast"]),
    # mask
    "float mask": (attend(mask=np.zeros((6, 5), np.float32)), TypeError, ["boolean", "float32", "bias="]),
    "int mask": (attend(mask=np.ones((6, 5), int)), TypeError, ["boolean", "int64"]),
    "mask shape": (attend(mask=np.ones((5, 6), bool)), ValueError, ["mask", "[2, 4, 6, 5]", "[5, 6]"]),
    "float mask of a variable": (attend(mask=nnx.Variable(np.ones((6, 5)))), TypeError, ["boolean", "float64", "bias="]),
    "mask and variable": (lambda: masks.causal() & nnx.Variable(np.ones((6, 5), bool)), TypeError, ["masks.dense", "[6, 5]"]),
    "window of a variable": (lambda: masks.window(_VARIABLE(3), -4), ValueError, ["left + right", "-4"]),
    "rate of a bool": (lambda: gates.dropout(False, 0), ValueError, ["rate", "static number", "False"]),
    "seed of a bool": (lambda: gates.dropout(0.1, True), TypeError, ["seed", "an int", "bool"]),
    "heads of a bool": (lambda: mods.alibi_slopes(True), TypeError, ["heads", "an int >= 1", "True"]),
    "buckets of a bool": (lambda: mods.t5_bucket(False, 32, True), TypeError, ["max_distance", "ints", "True"]),
    "blocks of bools": (attend(blocks=(True, 8)), ValueError, ["blocks", "two ints", "(True, 8)"]),
    "rate of a variable": (lambda: gates.dropout(_VARIABLE(jnp.float32(0.1)), 0), ValueError, ["rate", "static number"]),
    "mask function": (attend(mask=lambda i, j: i >= j), TypeError, ["mask", "jattn.masks.function"]),
    "mask factory": (attend(mask=masks.causal), TypeError, ["mask", "call it", "masks.causal()"]),
    "mod for a mask": (attend(mask=mods.softcap(3.0)), TypeError, ["mask", "masks.causal()", "got SoftCap(cap=3.0)"]),
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
    "position before the first": (attend(positions=-1), ValueError, ["positions", "within 0 and 2^30", "-1", "t = 6"]),
    "key before the first": (attend(positions={"s": -2}), ValueError, ["positions['s']", "-2", "s = 5"]),
    "truth of a mask": (lambda: masks.causal() and masks.window(3), TypeError, ["&", "and"]),
    "centre": (lambda: masks.around(3.0, 1, 1), ValueError, ["center", "[t], [b, t] or [b, h, t]", "float32[]"]),
    "no centre": (lambda: masks.around(None, 1, 1), TypeError, ["center must be an array", "NoneType"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    "float position": (attend(positions=jnp.float32(1)), TypeError, ["positions must be an integer, got float32[]"]),
    "float offset": (lambda: masks.causal(jnp.float32(1)), TypeError, ["offset must be an integer, got float32[]"]),
    "ragged layout": (lambda: masks.blocks([[True], [True, False]], 2), ValueError, ["layout", "unequal lengths"]),
    "float window": (lambda: masks.window(2.5), TypeError, ["left", "integer", "2.5"]),
    "stride": (lambda: masks.dilated(0), ValueError, ["stride", ">= 1", "0"]),
    "layout dtype": (lambda: masks.blocks(np.ones((2, 2)), 4), ValueError, ["layout", "boolean", "float64"]),
    "layout too small": (attend(mask=masks.blocks(np.ones((1, 2), bool), 4)), ValueError, ["layout", "t = 6"]),
    # mods, gates, score, normaliser
    "mods not a tuple": (attend(mods=3), TypeError, ["mods", "tuple", "3"]),
    "a gate among mods": (attend(mods=(gates.dropout(0.1, 0),)), TypeError, ["mods[0]", "jattn.mods.softcap"]),
    "a mod for dropout": (attend(dropout=mods.softcap(3.0)), TypeError, ["dropout", "got SoftCap(cap=3.0)"]),
    "mods factory": (attend(mods=(mods.softcap,)), TypeError, ["mods[0]", "call it"]),
    "score factory": (attend(score=scores.dot), TypeError, ["score", "scores.dot()", "call it"]),
    "score name": (attend(score="dot"), TypeError, ["score", "'dot'"]),
    "normalizer name": (attend(normalizer="softmax"), TypeError, ["normalizer", "'softmax'"]),
    "slopes": (attend(mods=(mods.alibi(np.ones(3)),)), ValueError, ["mods", '"h"', "h = 4", "[3]"]),
    "slopes of pairs": (lambda: mods.alibi(np.ones((4, 6))), ValueError, ["slopes", "[h]", "(4, 6)"]),
    "operand axes": (lambda: jattn.operand(np.ones((2, 3)), "hb"), ValueError, ["bhts", "'hb'"]),
    "operand rank": (lambda: jattn.operand(np.ones(2), "hs"), ValueError, ["'hs'", "(2,)"]),
    "cap": (lambda: mods.softcap(0), ValueError, ["cap", "> 0", "0"]),
    "table": (lambda: mods.relative(np.ones(3)), ValueError, ["table", "[h, buckets]", "(3,)"]),
    "table of many": (lambda: mods.relative(np.ones((2, 600))), ValueError, ["table", "4 to 511", "600", "give bucket"]),
    "table of few": (lambda: mods.relative(np.ones((2, 2))), ValueError, ["table", "4 to 511", "got 2"]),
    "table of none": (lambda: mods.relative(np.ones((2, 0)), lambda r: r), ValueError, ["table", "a bucket", "got 0"]),
    "heads of slopes": (lambda: mods.alibi_slopes(4.0), TypeError, ["heads", "int", "4.0"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    "half a bucket": (lambda: mods.t5_bucket(True, 32.5), TypeError, ["buckets", "ints", "32.5"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
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
    "no center": (lambda: gates.gaussian(None, 1.0), TypeError, ["center must be an array", "NoneType"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    "sigma": (lambda: gates.gaussian(np.ones((2, 6)), 0.0), ValueError, ["sigma", "> 0"]),
    "random key": (lambda: normalizers.gumbel(0), TypeError, ["key", "jax.random", "0"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    "temperature": (lambda: normalizers.gumbel(jax.random.key(0), -1.0), ValueError, ["temperature", "> 0"]),
    "dropout": (attend(dropout=0.1), TypeError, ["dropout", "gates.dropout(0.1, seed)", "0.1"]),
    "general": (attend(score=scores.general(np.ones((8, 7)))), ValueError, ["scores.general", "w", "[8, 8]", "[8, 7]"]),
    "additive": (attend(score=scores.additive(np.ones((8, 3)), np.ones((8, 4)), np.ones(3))), ValueError, ["m", "[3, 4]"]),
    "additive of nothing": (attend(score=scores.additive(np.ones((8, 0)), np.ones((8, 0)), np.ones(0))), ValueError,
                            ["scores.additive", "m >= 1", "m = 0"]),
    "no weight": (lambda: scores.general(None), TypeError, ["w must be an array", "NoneType"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    "concat": (attend(score=scores.concat(np.ones(7), np.ones(8))), ValueError, ["w_q", "[8]", "[7]"]),
    # the rest
    "sinks": (attend(sinks=np.ones(2, np.float32)), ValueError, ["sinks", "[4]", "[2]"]),
    "sinks of sparsemax": (attend(sinks=np.ones(4, np.float32), normalizer=normalizers.sparsemax()), ValueError,
                           ["sinks", "sparsemax"]),
    "lse of sparsemax": (attend(return_lse=True, normalizer=normalizers.sparsemax()), ValueError,
                         ["return_lse", "softmax", "sparsemax"]),
    "implementation": (attend(implementation="cuda"), ValueError, ["implementation", "blockwise", "'cuda'"]),
    "blocks": (attend(blocks=(0, 4)), ValueError, ["blocks", ">= 1", "(0, 4)"]),
    "precision of each": (attend(precision={}), ValueError, ["precision", "jax.lax.Precision", "{}"]),
    "precision": (attend(precision="tops"), ValueError, ["precision", "jax.lax.Precision", "'tops'"]),
    "several implementations": (attend(implementation=["blockwise"]), ValueError, ["implementation", "['blockwise']"]),
    "lse of an array": (attend(return_lse=jnp.array(True)), TypeError, ["return_lse", "True or False"]),
    "merge": (lambda: jattn.merge((OUT, OUT[..., 0]), (OUT, OUT)), ValueError, ["merge", "[2, 6, 4, 8]"]),
    "merge of one array": (lambda: jattn.merge(Q), TypeError, ["pairs", "return_lse=True"]),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    "sample of gates": (call(jattn.sample, jax.random.key(0), Q, K, V, gates=(gates.dropout(0.1, 0),)), ValueError,
                        ["sample", "gates"]),
    "sample of sinks": (call(jattn.sample, jax.random.key(0), Q, K, V, sinks=np.ones(4)), ValueError, ["sample", "sinks"]),
}  # fmt: skip


@pytest.mark.smoke
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    check_named(BAD[name])


def test_what_was_called_is_not_told_to_be():
    for wrong in ({"dropout": mods.softcap(3.0)}, {"mods": (gates.dropout(0.1, 0),)}, {"mask": mods.softcap(3.0)}):
        with pytest.raises(TypeError) as caught:
            attend(**wrong)()
        assert "call it" not in str(caught.value) and "wrap it" not in str(caught.value)


@pytest.mark.parametrize("precision", ["highest", "HIGHEST", jax.lax.Precision.HIGHEST])
def test_a_precision_has_a_name(precision):
    np.testing.assert_array_equal(attend(precision=precision)(), attend(precision="highest")())


@pytest.mark.parametrize("positions", [0, 6, jnp.int32(6), {"t": 2**30, "s": 2**30}])
def test_no_queries_and_no_keys_stand_anywhere(positions):
    assert jattn.attention(Q[:, :0], K[:, :0], V[:, :0], positions=positions).shape == (2, 0, 4, 3)
    assert not jattn.attention(Q[:, :1], K[:, :0], V[:, :0], positions=positions).any()


@pytest.mark.parametrize("backend", ["pallas_tpu", "pallas_gpu", "cudnn"])
def test_a_backend_that_cannot_says_who_can(backend):
    with pytest.raises(jattn.UnsupportedError, match=f"'{backend}'.*(runs on TPU|runs on GPU).*blockwise"):
        jattn.attention(Q, K, V, implementation=backend)
    assert issubclass(jattn.UnsupportedError, NotImplementedError)


class _Tempered(mods.Mod):
    def __init__(self, heat):
        self.heat = heat

    def __call__(self, score, i, j):
        return score / self.heat


_PLAIN = {"score": scores.dot(), "normalizer": normalizers.softmax()}
_HEAT, _HOW_MANY, _WHICH = jnp.float32(2.0), jnp.array([2, 4]), np.tri(6, 5, dtype=bool)
TAKES_VARIABLES = {
    "cap": lambda hold: {"mods_": mods.softcap(hold(_HEAT))},
    "scale": lambda hold: {"score": scores.dot(hold(_HEAT))},
    "sigma": lambda hold: {"gates": gates.gaussian(hold(np.ones((2, 6), np.float32)), hold(_HEAT))},
    "sigmoid": lambda hold: {"normalizer": normalizers.sigmoid(hold(_HEAT))},
    "gumbel": lambda hold: {"normalizer": normalizers.gumbel(hold(KEY), hold(_HEAT))},
    "lengths": lambda hold: {"mask": masks.lengths(hold(_HOW_MANY), hold(np.int32(5)))},
    "window": lambda hold: {"mask": masks.window(hold(np.int32(3)), hold(jnp.int32(1)))},
    "layout": lambda hold: {"mask": masks.blocks(hold(_WHICH), 1)},
    "positions": lambda hold: {"mask": masks.causal(), "positions": {"t": hold(_HOW_MANY), "h": hold(jnp.int32(1))}},
    "seed": lambda hold: {"dropout": gates.dropout(hold(0.5), hold(jnp.uint32(3)))},
    "mask": lambda hold: {"mask": hold(_WHICH)},
    "pages": lambda hold: {"pages": hold(np.array([[1], [0]]))},
    "own term": lambda hold: {"mods_": _Tempered(hold(_HEAT))},
}


@pytest.mark.parametrize("name", TAKES_VARIABLES)
def test_variables_are_the_arrays_that_they_hold(name):
    got, want = (
        checks.problem(Q, K, V, **{**_PLAIN, **TAKES_VARIABLES[name](hold)}) for hold in (nnx.Variable, lambda x: x)
    )
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_variables_get_the_gradients_of_their_arrays():
    x = np.arange(V.size, dtype=np.float32).reshape(V.shape) / V.size

    def loss(heat):
        itself = mods.function(lambda score, i, j: heat)
        terms = (mods.softcap(heat), _Tempered(heat))
        either = jattn.attention(x, x, x, mods=terms, score=scores.dot(heat)), jattn.attention(x, x, x, mods=itself)
        return (either[0] ** 2 + either[1]).sum()

    want = jax.grad(loss)(_HEAT)
    assert want != 0
    np.testing.assert_allclose(jax.grad(loss)(nnx.Param(_HEAT))[...], want, 1e-6)


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
