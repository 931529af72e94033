"""Where cuDNN is eligible, and the reason where it is not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, scores
from jattn._call import targets
from jattn._call.targets import Target
from jattn.backends.cudnn import CUDNN
from tests.problems import problem


def _refuses(d=64, e=None, dtype="bfloat16", target="h100", t=128, s=128, **options):
    q, k, v = ((2, t, 4, d), (2, s, 2, d), (2, s, 2, e or d))
    target = targets.named(target) if isinstance(target, str) else target
    return CUDNN.refuses(problem(tuple(jnp.zeros(x, dtype) for x in (q, k, v)), options), target)


LENGTHS = jnp.array([3, 100])
TAKEN = {
    "plain": {}, "float16": {"dtype": "float16"}, "narrow": {"d": 8}, "wide": {"d": 128}, "wider on Hopper": {"d": 256},
    "A100": {"target": "a100"}, "L4": {"target": "l4"}, "B200": {"target": "b200"},
    "a card without a line": {"target": Target("gpu", None, False, (12, 0))},
    "causal": {"mask": masks.causal()}, "more keys": {"mask": masks.causal(), "s": 200},
    "more queries": {"mask": masks.causal(), "t": 200}, "window": {"mask": masks.window(7)},
    "lengths": {"mask": masks.lengths(LENGTHS, LENGTHS)}, "prefix": {"mask": masks.prefix(9)},
    "all": {"mask": masks.causal() & masks.lengths(LENGTHS) & masks.window(7)},
    "a window as wide as all": {"mask": masks.window(128, 128)},
    "scale": {"score": scores.dot(0.3)}, "sinks": {"sinks": jnp.ones(4)}, "precision": {"precision": "highest"},
}  # fmt: skip
REFUSED = {
    "TPU": ({"target": "v5e"}, "runs on GPU, not tpu"),
    "CPU": ({"target": Target("cpu", None, True)}, "runs on GPU, not cpu"),
    "AMD": ({"target": Target("gpu")}, "runs on NVIDIA's GPUs alone"),
    "T4": ({"target": Target("gpu", None, False, (7, 5))}, "sm_75"),
    "float32": ({"dtype": "float32"}, "not float32"),
    "odd width": ({"d": 60}, "8 divides, not 60"),
    "wide": ({"d": 264}, "up to 256 there, not 264"),
    "wide on Ampere": ({"d": 136, "target": "a100"}, "up to 128 there, not 136"),
    "wide on Blackwell": ({"d": 256, "target": "b200"}, "up to 128 there, not 256"),
    "unequal widths": ({"d": 192, "e": 128}, "d 192 and e 128"),
    "a window to the right": ({"mask": masks.window(7, 7)}, "ends with the query's own position"),
    "a window of the past": ({"mask": masks.window(7, -2)}, "ends with the query's own position"),
    "a window without an end": ({"mask": masks.window(7, None)}, "to the left of causal queries"),
    "a window, more queries": ({"mask": masks.window(7), "t": 200}, "no more queries than keys, not t 200 and s 128"),
    "an offset": ({"mask": masks.causal(3)}, "ends with the query's own position"),
    "a traced offset": ({"mask": masks.causal(jnp.array(3))}, "takes masks of causal()"),
    "or": ({"mask": masks.prefix(3) | masks.causal()}, "takes masks of causal()"),
    "not": ({"mask": ~masks.causal()}, "takes masks of causal()"),
    "segments": ({"mask": masks.segments(jnp.zeros(128, int))}, "takes masks of causal()"),
    "dense": ({"mask": jnp.ones((128, 128), bool)}, "takes masks of causal()"),
    "bias": ({"bias": jnp.ones((128, 128), "bfloat16")}, "no bias"),
    "soft cap": ({"mods": mods.softcap(30.0)}, "has no soft cap"),
    "alibi": ({"mods": mods.alibi(jnp.ones(4))}, "has no mod alibi"),
    "dropout": ({"dropout": gates.dropout(0.1, 0)}, "computes another dropout"),
    "gate": ({"gates": gates.gaussian(jnp.ones((2, 128)), 3.0)}, "has no gate gaussian"),
    "sparsemax": ({"normalizer": normalizers.sparsemax()}, "has no normalizer sparsemax"),
    "gumbel": ({"normalizer": normalizers.gumbel(jax.random.key(0))}, "has no normalizer gumbel"),
    "additive": ({"score": scores.additive(jnp.ones((64, 8)), jnp.ones((64, 8)), jnp.ones(8))}, "no score additive"),
    "cosine": ({"score": scores.cosine()}, "has no score cosine"),
    "a learned scale": ({"score": scores.dot(jnp.array(0.3))}, "a scale that is a number"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_it_takes(name):
    assert _refuses(**TAKEN[name]) is None


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(name):
    options, reason = REFUSED[name]
    got = _refuses(**options)
    assert got is not None and reason in got
    assert "\n" not in got and not got.endswith(".")


def test_query_key_and_value_are_of_one_dtype():
    x = jnp.ones((1, 8, 2, 16), "bfloat16")
    assert "one dtype" in str(CUDNN.refuses(problem((x, x, x.astype("float16")), {}), targets.named("h100")))


def test_explain_gives_the_reason_and_so_does_the_error():
    x = jax.ShapeDtypeStruct((1, 128, 4, 64), "bfloat16")
    plan = jattn.explain(x, x, x, mods=mods.softcap(3.0), device="h100")
    assert plan.others["cudnn"] == "has no soft cap"
    with pytest.raises(jattn.UnsupportedError, match="'cudnn': has no soft cap; .*blockwise and reference can"):
        jattn.explain(x, x, x, mods=mods.softcap(3.0), device="h100", implementation="cudnn")
