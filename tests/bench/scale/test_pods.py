"""A ring compiled for sixteen chips that are not there: every permute of its loops is under way while a kernel runs."""

from bench.scale._pods import SMALLEST, compiled, fits
from tests import aot


@aot.needed
def test_a_ring_sends_while_it_computes():
    ((name, one),) = compiled(list(SMALLEST), seconds=900)
    assert name in SMALLEST
    assert not isinstance(one, str), one
    looped = [x for x in one.permutes if x.loop]
    assert len(looped) == 6  # keys and values forward; backward also both of their gradients
    assert all(x.asynchronous and x.encloses for x in looped), looped
    assert one.asynchronous
    assert fits(one)


def test_why_there_is_no_program():
    ((name, reason),) = compiled(["nowhere"], seconds=300)
    assert name == "nowhere"
    assert isinstance(reason, str)
    assert "nowhere" in reason
