"""What every machine's report is made of."""

import pytest

from bench import _report


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.12345, "0.123"),
        (1.2345, "1.23"),
        (123.45, "123"),
        (54321.0, "54321"),
        (1e-6, "1.0e-06"),
    ],
)
def test_number(value, text):
    assert _report.number(value) == text


def test_aligned():
    assert _report.aligned([("name", "x"), ("a", "10")]) == "name   x\na     10"
