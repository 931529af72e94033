"""`python -m bench`: which subcommands there are."""

import subprocess
import sys

import pytest

from bench import __main__ as bench


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["cpu", "--help"],
        ["tpu", "--help"],
        ["gpu", "--help"],
        ["decode", "--help"],
        ["scale", "--help"],
        ["tune", "--help"],
        ["tune", "tpu", "--help"],
        ["zoo", "--help"],
    ],
)
def test_help(arguments):
    got = subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, check=True)
    assert got.stdout.startswith("usage: ")
    assert not got.stderr


def test_no_subcommand(capsys):
    assert bench.main([]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.split()[:2]) == ("", ["usage:", "python"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["cqu"],
            "bench: unknown subcommand 'cqu' (there is: cpu, tpu, gpu, decode, scale, tune, zoo; each has --help)",
        ),
        (["tune"], "bench tune: the following arguments are required: platform"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    try:
        status = bench.main(arguments)
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert (status, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(message)
