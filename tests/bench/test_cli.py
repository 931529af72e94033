"""What command lines share: how what is typed is read, and errors of one line."""

import argparse

import pytest

from bench import _cli


def test_an_error_is_one_line_without_the_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.Parser(prog="bench thing").parse_args(["--nonsense"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "bench thing: unrecognized arguments: --nonsense\n"
    assert _cli.complain("bench thing", "no") == 2
    assert capsys.readouterr().err == "bench thing: no\n"


def test_choices_are_kept_in_order_and_once():
    parse = _cli.choices(["jax", "torch", "jattn"])
    assert parse("torch,jax,torch,") == ("torch", "jax")
    for text in ("", ",", "torch,numpy"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a comma-separated choice of jax, torch, jattn"):
            parse(text)


def test_numbers_are_positive():
    assert _cli.integers("64,128") == (64, 128)
    for text in ("0", "-1", "1.5", "", "64,"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a positive integer"):
            _cli.integers(text)


def test_what_is_not_installed_is_found_without_an_import():
    assert _cli.missing(["jax", "no_such_module", "json"]) == ["no_such_module"]
    assert _cli.install("aot,bench") == "pip install -e '.[aot,bench]'"
