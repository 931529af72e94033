"""`python -m bench tune`: which platforms there are, and that the rest of the line is the platform's."""

import pytest

from bench import tune


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "bench tune: the following arguments are required: platform"),
        (["gpu"], "bench tune: argument platform: invalid choice: 'gpu'"),
        (["tpu", "--t", "0"], "bench tune tpu: argument --t: '0' is not a positive integer"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        tune.main(arguments)
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(message)
