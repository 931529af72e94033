"""Predictions: bytes and times by the formulas of `jattn.parallel.explain`, of kernels that were counted."""

import jax
import pytest

import jattn
from bench.scale._cases import COUNTS, WAYS, Case, Way
from bench.scale._predict import predict, predictions

T = 2**20
RING, ZIGZAG, EXCHANGE, SPLASH = WAYS


def case(way: Way = RING, chip: str = "v5e", mask: str = "causal", direction: str = "fwd", heads: bool = False) -> Case:
    return Case(chip, 32, 8, T, mask, direction, way, heads)


@pytest.mark.parametrize("way", [RING, ZIGZAG, EXCHANGE])
@pytest.mark.parametrize(("heads", "sequence"), [(1, 8), (4, 2)])
def test_as_explained(way, heads, sequence):
    """Forward what is sent is what `explain` says, and so is the time that it takes."""
    one = predict(case(way), heads * sequence, heads, sequence)
    of = lambda n: jax.ShapeDtypeStruct((1, T, n, 128), "bfloat16")
    said = jattn.parallel.explain(
        of(32), of(8), of(8), mesh=jax.sharding.AbstractMesh((heads, sequence), ("heads", "sequence")),
        head_axis="heads", sequence_axis="sequence", strategy=way.strategy, order=way.order,
        mask=jattn.masks.causal(), device="v5e",
    )  # fmt: skip
    assert one is not None
    assert one.sent == said.sent
    assert one.network == pytest.approx(said.network)
    assert one.compute == pytest.approx(said.compute, rel=0.05)


def test_one_device_is_what_all_are_compared_with():
    one = predict(case(), 1, 1, 1)
    assert one is not None
    assert (one.efficiency, one.sent, one.network) == (pytest.approx(1), 0, 0)


def test_in_order_half_of_the_devices_wait():
    in_order, zigzag = predict(case(), 32, 1, 32), predict(case(ZIGZAG), 32, 1, 32)
    assert in_order is not None
    assert zigzag is not None
    assert 0.45 < in_order.efficiency < 0.55
    assert 0.9 < zigzag.efficiency < 1


def test_backward_sends_sums_of_gradients_as_well():
    forward, both = (predict(case(direction=x), 8, 1, 8) for x in ("fwd", "fwdbwd"))
    assert forward is not None
    assert both is not None
    keys = forward.sent // 8
    assert both.sent == forward.sent + 8 * keys + 7 * 2 * keys + keys
    assert both.hidden < forward.hidden == 1


def test_the_best_mesh_is_taken():
    (alone,), (best,) = (predictions(case(ZIGZAG, heads=x), [256]) for x in (False, True))
    assert (alone.heads, alone.sequence) == (1, 256)
    assert best.heads * best.sequence == 256
    assert alone.efficiency < 0.9 < best.efficiency


def test_what_a_way_cannot_do_is_left_out():
    assert [one.chips for one in predictions(case(EXCHANGE), COUNTS)] == [1, 2, 4, 8]
    assert [one.chips for one in predictions(case(chip="h100"), COUNTS)] == [1, 2, 4, 8]
    assert [one.sequence for one in predictions(case(chip="tpu7x"), COUNTS)][:2] == [2, 4]  # two devices a chip
