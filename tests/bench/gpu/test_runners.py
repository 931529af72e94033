"""Peers compute what they are timed for: each ask, as it is put to them, beside the definition."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from bench.gpu import _runners
from bench.gpu._cases import Case
from bench.gpu._runners import RUNNERS
from bench.gpu._terms import ASKS

B, T, H, D = 2, 96, 3, 16


def _case(ask: str) -> Case:
    return Case(ask, B, T, H, D, "fwd", window=40, document=48)


def _drawn(ask: str):
    rng = np.random.default_rng(1)
    arrays = _case(ask).values(np.random.default_rng(0))
    return arrays, [rng.standard_normal((B, T, H, D), np.float32) for _ in range(3)]


def _wanted(ask: str) -> np.ndarray:
    arrays, (q, k, v) = _drawn(ask)
    options = _case(ask).options({name: jnp.asarray(x) for name, x in arrays.items()})
    return np.asarray(jattn.attention(q, k, v, implementation="reference", **options))


def _names(runner: str) -> list[str]:
    return [ask for ask in ASKS if not RUNNERS[runner].skips(_case(ask))]


@pytest.mark.parametrize("ask", _names("xla"))
def test_jax_nn_computes_what_was_asked(ask):
    attend = _runners.jax_nn_attend(_case(ask), "xla")
    arrays, inputs = _drawn(ask)
    got = attend({name: jnp.asarray(x) for name, x in arrays.items()}, *map(jnp.asarray, inputs))
    tolerance = 2e-2 if ask == "alibi" else 2e-5  # its bias is made in bfloat16, as it is timed
    np.testing.assert_allclose(got, _wanted(ask), atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("ask", _names("torch"))
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flex_attention_computes_what_was_asked(ask):
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # pyright: ignore[reportMissingImports]

    arrays, inputs = _drawn(ask)
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}
    score_mod, mask_mod = _runners._torch_functions(torch, _case(ask), tensors)
    block_mask = mask_mod and create_block_mask(mask_mod, B, None, T, T, device="cpu")
    q, k, v = (torch.from_numpy(x.transpose(0, 2, 1, 3).copy()) for x in inputs)
    got: Any = flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask)
    np.testing.assert_allclose(got.numpy().transpose(0, 2, 1, 3), _wanted(ask), atol=2e-5, rtol=2e-5)


def test_gradients_of_a_runner_are_of_all_three():
    case = Case("causal", 1, 16, 2, 8, "fwdbwd")
    prepared = RUNNERS["blockwise"].prepare(case, 2)
    assert prepared.copies == 2
    got = prepared.wait(prepared.draw()(1))
    assert [x.shape for x in got] == [(1, 16, 2, 8)] * 4
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(got))
