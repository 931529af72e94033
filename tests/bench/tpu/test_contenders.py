"""Splash's settings."""

import json

import pytest

from bench.tpu import _cases, _contenders
from bench.tpu._published import published
from tests.bench.tpu.estimates import needs_tokamax


def test_splash_settings_fit_every_case():
    for case in _cases.cases():
        near, settings = _contenders.near_settings(case), _contenders.splash_settings(case)
        assert settings[: len(near)] == near
        assert len({json.dumps(one, sort_keys=True) for one in settings}) == len(settings)
        assert all(("backward" in one) == case.backward for one in settings)
        for tiles in (one[name] for one in settings for name in ("tiles", "backward") if name in one):
            assert all(case.t % size == 0 for size in tiles)
            assert tiles[1] % tiles[2] == 0
        large = [one for one in settings if 4096 in one["tiles"]]
        assert {one["scheduler"] for one in large} == ({False, True} if case.t >= 4096 else set())


@needs_tokamax
@pytest.mark.parametrize("case", [c for c in _cases.cases(["v5e"]) if c.mask != "window"], ids=lambda case: case.name)
def test_splash_gets_every_setting_of_tokamaxs_cache(case):
    settings = _contenders.splash_settings(case)
    near = _contenders.near_settings(case)
    for entry in published():
        config = entry.config
        here = (entry.case.mask, entry.case.t, entry.case.d) == (case.mask, case.t, case.d)
        got = near if here else settings
        fit = lambda names, config=config: [min(config[name], case.t) for name in names]
        if entry.case.direction != "bwd":
            tiles = fit(("block_q", "block_kv", "block_kv_compute"))
            layouts = "".join(name for name in "qkv" if config[f"{name}_layout"] == 2)
            same = [one["scheduler"] for one in got if (one["tiles"], one["transposed"]) == (tiles, layouts)]
            assert set(same) == {False, True}
        elif case.backward:
            tiles = fit(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"))
            assert {one["scheduler"] for one in got if one["backward"] == tiles} == {False, True}
