"""Estimates beside published times."""

from bench.tpu import _published, _spread
from bench.tpu._cases import Case
from tests.bench.tpu.estimates import counts


def test_spread_is_by_chip_pass_width_and_length():
    entries = [
        _published.Published(Case("tpu7x", "full", 8, 16, 2048, d, direction), 1, {"n": n}, milliseconds)
        for n, (d, direction, milliseconds) in enumerate(
            [(64, "bwd", 1.0), (128, "fwd", 1.0), (128, "fwd", 2.0), (256, "fwd", 4.0), (256, "fwd", 5.0)]
        )
    ]
    times = [0.5, 0.9, 2.0, 3.6, None]

    def answer(case, setting):
        milliseconds = times[setting["config"]["n"]]
        return milliseconds and {"kernels": {"a.1": counts(round(1.75e6 * milliseconds))}, "between_bytes": 0}

    got = _spread.compare(entries, answer)
    assert [one.ratio for one in got] == [0.5, 0.9, 1.0, 0.9, None]
    first, _, *rest = _spread.table(got).splitlines()
    assert first.startswith("Estimate over published time, 4 of the 5 times in tokamax's cache; 1 not counted yet")
    assert [one.split() for one in rest] == [
        ["tpu7x", "forward", "d", "128", "2", "0.90", "0.95", "1.00"],
        ["tpu7x", "forward", "d", "256", "1", "0.90", "0.90", "0.90"],
        ["tpu7x", "forward", "t", "2048", "3", "0.90", "0.90", "1.00"],
        ["tpu7x", "forward", "all", "3", "0.90", "0.90", "1.00"],
        ["tpu7x", "backward", "d", "64", "1", "0.50", "0.50", "0.50"],
        ["tpu7x", "backward", "t", "2048", "1", "0.50", "0.50", "0.50"],
        ["tpu7x", "backward", "all", "1", "0.50", "0.50", "0.50"],
    ]
    assert _spread.line(got[1]).split() == [
        "tpu7x-full-t2048-d128-fwd",
        "8x16x2048x128",
        "1.000",
        "0.900",
        "0.900",
    ]
