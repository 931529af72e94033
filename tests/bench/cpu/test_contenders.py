"""jattn and its peers compute the same, or sit out what they have not."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.cpu import _cases, _contenders, _measure
from bench.cpu._cases import Case
from tests.bench.cpu.recorded import SMALL

NAMED = [
    Case("full", 3, 8, "fwdbwd", b=2, h=4, group="decode", s=40, g=2),
    Case("window", 512, 8, "fwdbwd", b=1, h=1, group="window-32k", window=100),
    Case("full", 20, 8, "fwdbwd", b=1, h=1, group="additive", score="additive"),
]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.group)
def test_peers_of_named_cases_agree(case):
    data = _cases.inputs(case)
    contenders = [x for x in (_contenders.JATTN, *_contenders.PEERS.values()) if not x.skips(case)]
    if len(contenders) > 2:
        pytest.importorskip("torch")
    ours, *theirs = (x.arrays(x.prepare(case, data)()) for x in contenders)
    assert theirs
    assert all(_measure.compare(ours, x)[1] for x in theirs)
    pairs = np.broadcast_to(_cases.dense_mask(case, data.ids), (case.b, 1, case.t, case.keys)).sum()
    assert _cases.attended_pairs(case, data.ids) == pairs


def test_peers_sit_out_what_they_have_not():
    skips = {
        (case.group, name) for case in _cases.named_cases() for name, x in _contenders.PEERS.items() if x.skips(case)
    }
    sparse = {(group, peer) for group in ("sparsemax", "entmax15") for peer in ("torch", "jax")}
    assert skips == {*sparse, ("additive", "torch"), ("window-32k", "jax")}


@pytest.mark.parametrize("peer", _contenders.PEERS)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_peers_compute_the_case(case, peer):
    if peer == "torch":
        pytest.importorskip("torch")
    data = _cases.inputs(case)
    mask = jnp.asarray(_cases.dense_mask(case, data.ids))

    def plain(q, k, v, ids):
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(case.d)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1), v)

    expected = jax.jit(_contenders.jax_program(case, plain))(*data)
    contender = _contenders.PEERS[peer]
    got = contender.arrays(contender.prepare(case, data)())
    assert len(got) == (4 if case.backward else 1)
    largest, agree = _measure.compare(got, [np.asarray(x) for x in expected])
    assert agree, largest


def test_jax_sits_out_what_needs_too_much_memory():
    skipped = {case.name for case in _cases.cases() if _contenders.PEERS["jax"].skips(case)}
    assert skipped == {f"{mask}-t16384-d{d}-fwdbwd" for mask in _cases.MASKS for d in _cases.WIDTHS}
