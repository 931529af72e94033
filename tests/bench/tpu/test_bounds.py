"""What siblings' counts say of a setting, against all counts that are kept."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest

from bench.tpu import _bounds
from bench.tpu._cases import Case, Setting, cases
from bench.tpu._contenders import splash_parts, splash_settings
from bench.tpu.command import KEPT
from tests.bench.tpu.estimates import counts

FULL = Case("v5e", "full", 1, 2, 2048, 128, "fwd")
SETTING = {"tiles": [1024, 512, 512], "transposed": "", "scheduler": True}


def answer(cycles: int) -> dict[str, object]:
    return {"kernels": {"splash_mha_fwd_residuals.1": counts(cycles), "splash_mha_dkv.1": counts(10 * cycles)}}


@pytest.mark.parametrize("mask", ["full", "causal", "window"])
def test_visited_tiles_hold_a_visible_pair(mask):
    part = replace(FULL, mask=mask)
    for query, key in ((512, 512), (1024, 512), (512, 1024), (2048, 2048), (256, 2048)):
        tiles = 0
        for i in range(0, part.t, query):
            for j in range(0, part.t, key):
                nearest = min(i + query - 1 - j, i + query - 1)  # the furthest back that a pair of the tile reaches
                furthest = i - (j + key - 1)
                visible = {"full": True, "causal": nearest >= 0, "window": nearest >= 0 and furthest <= 1023}[mask]
                tiles += visible
        assert _bounds._visited(part, {"tiles": [query, key, 256]}) == tiles * query * key


def kept() -> dict[tuple[str, str], dict[str, dict]]:
    """By name and shape of a part, the answers by the text of their setting."""
    answers: dict[tuple[str, str], dict[str, dict]] = {}
    for key, reply in json.loads(KEPT.read_text()).items():
        head, brace, setting = key.partition("{")
        name, shape = head.split()[-2:]
        answers.setdefault((name, shape), {})[brace + setting] = reply
    return answers


PARTS = [part for case in cases() for part in splash_parts(case.walked())]


def test_every_kept_count_is_above_what_its_siblings_say():
    """The factors of `_bounds` are measured: here is how near they are."""
    answers = kept()
    shares: dict[str, list[float]] = {}
    for part in PARTS:
        for text, reply in answers.get((part.name, part.shape), {}).items():
            setting = json.loads(text)
            for sibling in _bounds.siblings(part, setting) if "tiles" in setting else ():
                of = answers.get((sibling.part.name, sibling.part.shape), {})
                there = of.get(json.dumps(sibling.setting, sort_keys=True))
                if there is None or ("error" in there and not sibling.memory):
                    continue
                assert "error" in reply or "error" not in there, (part.name, setting, sibling)
                if "error" in reply or "error" in there:
                    continue
                share = _bounds.cycles(part, reply) / (sibling.factor * _bounds.cycles(sibling.part, there))
                shares.setdefault(kind(part, setting, sibling), []).append(share)
    print({kind: (len(each), round(min(each), 3)) for kind, each in sorted(shares.items())})
    assert min(map(min, shares.values())) >= 1
    assert min(map(len, shares.values())) >= 7
    assert len(shares) == 10 + 9 + 2  # each factor: of chips, of directions and masks, of settings


def test_every_setting_is_counted_or_cannot_be_the_best():
    answers = kept()

    def known(part: Case, setting: Setting) -> dict | None:
        return answers.get((part.name, part.shape), {}).get(json.dumps(setting, sort_keys=True))

    for part in PARTS:
        # What is kept holds the best even where tokamax, whose tuning cache names it, is not installed.
        counts_kept = [json.loads(text) for text in answers[part.name, part.shape]]
        settings = [*splash_settings(part), *(one for one in counts_kept if "tiles" in one)]
        for setting in settings:
            counted = known(part, setting) is not None
            assert counted or _bounds.hopeless(part, setting, settings, known), (part.name, setting)


def kind(part: Case, setting: Setting, sibling: _bounds.Sibling) -> str:
    """The factor that a sibling goes by."""
    backward = part.direction == "bwd"
    if sibling.setting["transposed"] != setting["transposed"]:
        return "transposed"
    if sibling.setting["scheduler"] != setting["scheduler"]:
        return "scheduler"
    if sibling.part.chip != part.chip:
        return f"{part.chip} {part.direction} {part.mask if backward else ''}"
    return f"{part.mask} {part.direction}{' of fwd' if sibling.part.mask == part.mask else ''}"


def test_what_compiled_needs_no_more_memory_than_there_is():
    answers, refused = kept(), Counter[bool]()
    for part in PARTS:
        for text, reply in answers.get((part.name, part.shape), {}).items():
            if "tiles" not in json.loads(text):
                continue
            too_large = _bounds.memory(part, json.loads(text)) > _bounds._UNASKED[part.chip]
            assert "error" in reply or not too_large, (part.name, text)
            refused[too_large] += "error" in reply
    assert refused[True] >= 50


def test_hopeless_settings():
    fast, slow = dict(SETTING), {**SETTING, "scheduler": False}
    lse = replace(FULL, direction="lse")
    table = {(lse.name, True): answer(90), (FULL.name, False): answer(91)}
    known = lambda part, setting: table.get((part.name, setting["scheduler"]))
    assert _bounds.hopeless(lse, slow, [fast, slow], known)  # 91 > 90
    table[FULL.name, False] = answer(89)
    assert not _bounds.hopeless(lse, slow, [fast, slow], known)
    table[FULL.name, False] = {"error": "too little memory"}
    assert _bounds.hopeless(lse, slow, [fast, slow], known)
    del table[lse.name, True]
    assert not _bounds.hopeless(lse, slow, [fast, slow], known)  # nothing to be slower than


def test_what_follows_goes_on_from_sibling_to_sibling():
    part = Case("v5p", "causal", 1, 2, 2048, 128, "lse")
    share = 0.75  # of the tiles have a visible pair
    only = lambda one: lambda part, setting: answer(1000) if (part, setting) == (one, SETTING) else None
    assert _bounds.least(part, SETTING, only(FULL)) == pytest.approx(1.03 * share * 0.475 * 1000)
    other = {**SETTING, "transposed": "k", "scheduler": False}
    assert _bounds.least(part, other, only(part)) == pytest.approx(0.75 * 0.75 * 1000)
    backward = replace(part, direction="bwd")
    full = only(replace(FULL, direction="bwd"))
    assert _bounds.least(backward, SETTING, full) == pytest.approx(0.98 * 1.01 * share * 10000)
    without = lambda part, setting: {"error": "too little memory"} if part == FULL else None
    assert _bounds.least(replace(FULL, chip="v5p"), SETTING, without) == math.inf
    assert _bounds.least(replace(FULL, mask="causal"), SETTING, without) == 0
