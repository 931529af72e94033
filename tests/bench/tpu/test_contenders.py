"""Splash's settings."""

import json

import pytest

from bench.tpu import _cases, _contenders
from bench.tpu._published import published
from tests.bench.tpu.estimates import needs_tokamax

PARTS = [part for case in _cases.cases() for part in _contenders.splash_parts(case)]


def test_splash_settings_fit_every_part():
    for part in PARTS:
        near, settings = _contenders.near_settings(part), _contenders.splash_settings(part)
        assert settings[: len(near)] == near
        assert len({json.dumps(one, sort_keys=True) for one in settings}) == len(settings)
        for tiles in (one["tiles"] for one in settings):
            assert all(part.t % size == 0 for size in tiles)
            assert tiles[1] % tiles[2] == 0
        large = [one for one in settings if 4096 in one["tiles"]]
        assert {one["scheduler"] for one in large} == (schedulers(part) if part.t >= 4096 else set())


def schedulers(part: _cases.Case) -> set[bool]:
    """Splash's backward is compiled by one, whatever it is told."""
    return {True} if part.direction == "bwd" else {False, True}


def test_a_call_with_gradients_has_two_parts():
    case = next(case for case in _cases.cases() if case.backward)
    assert [part.direction for part in _contenders.splash_parts(case)] == ["lse", "bwd"]


@needs_tokamax
@pytest.mark.parametrize(
    "part", [p for p in PARTS if p.chip == "v5e" and p.mask != "window"], ids=lambda part: part.name
)
def test_splash_gets_every_setting_of_tokamaxs_cache(part):
    settings = _contenders.splash_settings(part)
    near = _contenders.near_settings(part)
    suffix = "_dkv" if part.direction == "bwd" else ""
    for entry in published():
        if (entry.case.direction == "bwd") != (part.direction == "bwd"):
            continue
        config = entry.config
        here = (entry.case.mask, entry.case.t, entry.case.d) == (part.mask, part.t, part.d)
        names = (f"block_q{suffix}", f"block_kv{suffix}", f"block_kv{suffix}_compute")
        tiles = [min(config[name], part.t) for name in names]
        layouts = "".join(name for name in "qkv" if config.get(f"{name}_layout") == 2)
        got = near if here else settings
        same = [one["scheduler"] for one in got if (one["tiles"], one["transposed"]) == (tiles, layouts)]
        assert set(same) == schedulers(part)
