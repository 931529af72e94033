"""JAX's two calls of cuDNN: whether they are the ones that are known; and what is handed to them, in the lowered program."""

from __future__ import annotations

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jattn import masks, scores
from jattn._call import dispatch, targets
from jattn.backends.cudnn import CUDNN, binding
from tests.problems import problem

T, S = 64, 128
Q, K = jnp.ones((2, T, 4, 64), "bfloat16"), jnp.ones((2, S, 2, 64), "bfloat16")
H100 = targets.named("h100")


def _attend(q, k, v, **options):
    given = problem((q, k, v), options)
    assert CUDNN.refuses(given, H100) is None
    return dispatch.run(given, CUDNN, None, H100)[0]


def _lowered(fn, *arguments):
    return jax.jit(fn).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def _calls(text):
    """Of each call of cuDNN: its name, what it is told, and the types of its operands."""
    got = []
    for line in text.splitlines():
        if name := re.search(r"@__cudnn\$(\w+)", line):
            config: Any = re.search(r'backend_config = "(.*?[^\\])"', line)
            told = json.loads(config[1].replace("\\22", '"'))["cudnn_fmha_backend_config"]
            got.append((name[1], told, re.findall(r"tensor<([^>]*)>", line.split(" : (")[1].split("->")[0])))
    return got


MASKED = {
    "none": (None, "NO_MASK", 0),
    "causal": (masks.causal(), "CAUSAL", 0),
    "window": (masks.window(31), "CAUSAL", 32),
    "causal & window": (masks.causal() & masks.window(31, 5), "CAUSAL", 32),
    "wide": (masks.window(T, S), "NO_MASK", 0),
    "lengths": (masks.lengths(jnp.array([3, 100])), "PADDING", 0),
    "all": (masks.window(31) & masks.lengths(jnp.array([3, 100]), jnp.array([3, 100])), "PADDING_CAUSAL", 32),
}


@pytest.mark.parametrize("name", MASKED)
def test_forward(name):
    mask, kind, window = MASKED[name]
    ((call, told, operands),) = _calls(_lowered(lambda *a: _attend(*a, mask=mask), Q, K, K))
    assert call == "fmhaSoftmax"
    assert (told["mask_type"], told["sliding_window_length"]) == (kind, window)
    assert (told["fmha_scale"], told["dropout_rate"]) == (0.125, 0)
    keys = T if "CAUSAL" in kind else S  # keys that no query of the call sees are cut off
    assert operands[:3] == [f"2x{T}x4x64xbf16", *[f"2x{keys}x2x64xbf16"] * 2]  # grouped heads are not repeated
    assert operands[3:] == ["2xi32", "2xi32"] * ("PADDING" in kind)


def test_the_scale_is_the_callers():
    ((_, told, _),) = _calls(_lowered(lambda *a: _attend(*a, score=scores.dot(0.5)), Q, K, K))
    assert told["fmha_scale"] == 0.5


def test_backward():
    loss = lambda *a: jnp.sum(_attend(*a, mask=masks.window(31)).astype(jnp.float32) ** 2)
    forward, backward = _calls(_lowered(jax.grad(loss, (0, 1, 2)), Q, K, K))
    assert (forward[0], backward[0]) == ("fmhaSoftmax", "fmhaSoftmaxBackward")
    assert (backward[1]["mask_type"], backward[1]["sliding_window_length"]) == ("CAUSAL", 32)
    rows, keys = f"2x{T}x4x64xbf16", f"2x{T}x2x64xbf16"
    assert backward[2] == [rows, keys, keys, f"2x4x{T}xf32", rows, rows]  # lse, dout, out


def test_forward_mode_and_higher_orders_are_ours():
    fn = lambda q: jnp.sum(_attend(q, K, K, mask=masks.causal()).astype(jnp.float32))
    along = _lowered(lambda q: jax.jvp(fn, (q,), (q,)), Q)
    assert [x[0] for x in _calls(along)] == ["fmhaSoftmax"]
    assert _lowered(lambda q: jax.jvp(jax.grad(fn), (q,), (q,)), Q)
    assert [x[0] for x in _calls(_lowered(jax.vmap(fn), Q[None]))] == ["fmhaSoftmax"]


def test_another_binding_is_refused(monkeypatch):
    assert binding.missing() is None
    of_next_year = lambda query, key, value: None
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo._dot_product_attention_bwd_impl", of_next_year)
    reason = f"does not know the binding of jax {jax.__version__}"
    assert binding.missing() == reason
    assert CUDNN.refuses(problem((Q, K, K), {}), H100) == reason
