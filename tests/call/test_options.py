"""The options of `attention` by their types: each function hands on those that it says it does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, scores
from jattn._call.options import PlanOptions, ScoreOptions, WeightOptions

X = np.ones((1, 4, 2, 4), np.float32)
GIVEN: dict[str, Any] = {
    "score": scores.dot(0.5), "mask": masks.causal(), "mods": mods.softcap(3.0), "bias": X[0, :, 0], "precision": "highest",
    "positions": 0, "pages": None, "scales": None, "normalizer": normalizers.softmax(), "gates": gates.dropout(0.5, 0),
    "sinks": np.ones(2, np.float32), "dropout": gates.dropout(0.5, 0), "return_lse": True,
}  # fmt: skip


def _names(options: type) -> set[str]:
    return set(options.__annotations__)


def test_each_has_those_of_the_one_before():
    assert _names(ScoreOptions) < _names(WeightOptions) < _names(PlanOptions)
    assert not any(x.__required_keys__ for x in (ScoreOptions, WeightOptions, PlanOptions))


def test_together_they_are_the_arguments_of_attention():
    by_name = {
        name
        for name, x in inspect.signature(jattn.attention).parameters.items()
        if x.kind == inspect.Parameter.KEYWORD_ONLY
    }
    assert _names(PlanOptions) == by_name - {"implementation", "blocks"}


FUNCTIONS: dict[str, tuple[Callable[..., Any], type]] = {
    "sample": (lambda **options: jattn.sample(jax.random.key(0), X, X, X, **options), ScoreOptions),
    "weights": (lambda **options: jattn.weights(X, X, X, **options), WeightOptions),
    "explain": (lambda **options: jattn.explain(X, X, X, **options), PlanOptions),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_what_its_type_says_and_nothing_else(name):
    function, options = FUNCTIONS[name]
    for option, value in GIVEN.items():
        if option in _names(options):
            function(**{option: value})
            continue
        with pytest.raises((TypeError, ValueError), match=f"{name}.*{option}"):
            function(**{option: value})
