"""The facts that stand beside times."""

import datetime
import importlib.metadata

from bench import _machine


def test_facts_name_the_processor_and_every_package():
    got = _machine.facts(["jax", "no-such-package"])
    assert got["jax"] == importlib.metadata.version("jax")
    assert got["no-such-package"] == "not installed (run from source)"
    assert got["cpu"]
    date = datetime.datetime.fromisoformat(str(got["date"]))
    assert date.tzinfo is not None  # an hour without its zone says nothing on another machine
