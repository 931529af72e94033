"""The estimate of a kernel's time: what it grows with, and the times that are published."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jattn_kernels.chips import GPUS

from jattn import gates, masks, mods, operand
from jattn._call import targets
from jattn._call.problem import reduce
from jattn.backends.contract import Spec
from jattn.backends.pallas_gpu import PALLAS_GPU
from jattn.backends.pallas_gpu.cut import cut, estimate
from tests.problems import problem

LONG = (1, 16384, 16, 128)


def _estimate(
    shape=LONG, keys=None, target: Any = "h100", known=True, tile: Any = (128, 128), dtype="bfloat16", **options
) -> Any:
    """In tiles that are given, or in the backend's own."""
    q, k = (jax.ShapeDtypeStruct(x, dtype) for x in (shape, keys or shape))
    given = problem((q, k, k), options)
    signature = []

    def arrays(given):
        *got, static = reduce(given)
        signature.append(static)
        return got

    _, _, _, operands = jax.eval_shape(arrays, given)
    target = targets.named(target) if isinstance(target, str) else target
    spec = Spec(PALLAS_GPU, signature[0], jnp.dtype(dtype), None, None, target)
    if tile is None:
        return cut(spec, q, k, k, operands, given.mask, known)
    return estimate(spec, q, k, k, operands, given.mask, known, tile, "these")


@pytest.mark.parametrize(
    ("mask", "published"), [(None, 3.17), (None, 3.30), (masks.causal(), 1.70), (masks.causal(), 1.73)]
)
def test_it_says_what_is_published_of_an_h100(mask, published):
    """cuDNN's and tokamax's times of [1, 16384, 16, 128] in bfloat16, in tokamax's tuning cache."""
    assert _estimate(mask=mask).milliseconds == pytest.approx(published, rel=0.1)


@pytest.mark.parametrize("name", GPUS)
def test_it_is_within_what_the_machine_can(name):
    chip = GPUS[name]
    cut = _estimate(target=name, mask=masks.causal())
    assert cut.milliseconds > 1e3 * cut.pairs * 512 / chip.peak()
    few = _estimate((8, 1, 16, 128), (8, 16384, 16, 128), target=name)
    assert few.milliseconds >= 1e3 * 2 * 8 * 16384 * 16 * 128 * 2 / chip.bandwidth


def test_blocks_are_those_of_the_tile():
    cut = _estimate(mask=masks.causal(), tile=(256, 128))
    assert cut.tile == (256, 128) and cut.tuned == "these"
    assert cut.blocks == (16 * (64 * 128 - 64 * 65), 16 * 128, 16 * 64 * 63)
    ends = _estimate((1, 130, 1, 128), (1, 200, 1, 128))
    assert ends.pairs == 130 * 200


def test_terms_take_their_time():
    plain = _estimate().milliseconds
    capped = _estimate(mods=mods.softcap(30.0)).milliseconds
    tilted = _estimate(mods=mods.alibi(jnp.ones(16))).milliseconds
    dropped = _estimate(dropout=gates.dropout(0.1, 0)).milliseconds
    assert plain < capped < tilted < 3 * plain
    # counted in machine code: 466 instructions without, 721, 769 and 741 with; in a loop whose products take 2048 cycles
    for got, instructions in ((capped, 721), (tilted, 769), (dropped, 741)):
        assert got / plain == pytest.approx((2048 + 2 * instructions) / (2048 + 2 * 466), rel=0.1)


def test_less_is_known_where_the_mask_or_the_chip_is_not():
    assert _estimate(known=False)[:4] == ((128, 128), None, "these", None)
    unknown = _estimate(target=targets.Target("gpu", None, False, (8, 9)))
    assert unknown.blocks is not None and unknown.milliseconds is None


def test_multiprocessors_without_work_are_counted():
    one, many = _estimate((1, 128, 1, 128), (1, 16384, 1, 128)), _estimate((1, 128, 132, 128), (1, 16384, 1, 128))
    assert one.milliseconds == pytest.approx(many.milliseconds)


@pytest.mark.parametrize("target", ["a100", "h100", "b200"])
def test_it_says_whose_gradients_are_not_the_kernels(target):
    table, ids = jnp.ones((16, 7)), jnp.ones((9,), jnp.int32)
    looked_up = mods.function(lambda s, i, j, table: s + table[(i + j) % 7], operand(table, "h"))
    counted = mods.function(lambda s, i, j, ids: s * (ids[i % 9] > 0), operand(ids, ""))
    own = (mods.relative(jnp.ones((16, 32))), mods.bias(jnp.ones((16, 64, 64)), "hts"), counted)
    gradients = lambda *x: _estimate((1, 64, 16, 64), target=target, tile=None, mods=x).gradients
    assert gradients(*own) is None
    assert gradients(*own, looked_up) == (
        "of what a function looks up ([16, 7]) by blockwise, since no two blocks of a kernel may add to one number; all"
        " others by the kernels"
    )


@pytest.mark.parametrize(
    ("device", "t", "s", "some"),
    [
        ("h100", 333, 333, "queries and keys and values"),
        ("b200", 40, 41, "keys and values"),
        ("h100", 8, 4, None),
        ("a100", 333, 333, None),  # whose threads look at ends themselves
    ],
)
def test_a_copy_of_lengths_that_eight_does_not_divide_is_told(device, t, s, some):
    source = _estimate((1, t, 4, 64), (1, s, 4, 64), device, tile=None).tuned
    assert ("filled up to eights" in source) == (some is not None)
    assert some is None or f"; {some} filled up" in source
