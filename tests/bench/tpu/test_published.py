"""tokamax's tuning cache is read."""

import json

from bench.tpu import _published
from bench.tpu._cases import Case
from bench.tpu._published import published
from tests.bench.tpu.estimates import needs_tokamax


@needs_tokamax
def test_published_times_are_read():
    entries = published()
    assert len({(one.case, one.group) for one in entries}) == len(entries)
    count = lambda *directions: sum(one.case.direction in directions for one in entries)
    assert count("fwd", "lse") >= 76
    assert count("bwd") >= 36
    grouped = Case("tpu7x", "causal", 32, 32, 4096, 128, "fwd")
    assert [one.group for one in entries if one.case == grouped] == [4]
    assert all(one.milliseconds > 0 for one in entries)
    assert all(one.case.h % one.group == one.case.walked().h % one.group == 0 for one in entries)


def test_entries_that_are_no_plain_call_are_left_out(tmp_path):
    call = {"q": "bf16[2,512,4,64]", "k": "bf16[2,512,2,64]", "return_residuals": False, "mask": {"is_causal": True}}
    call |= dict.fromkeys(_published.PLAIN)
    calls = [call, {**call, "q": "f32[2,512,4,64]"}, {**call, "logits_soft_cap": 30.0}]
    calls.append({**call, "mask": {"is_causal": True, "k_start": "i32[512]"}})
    folder = tmp_path / "tpu_v6_lite"
    folder.mkdir()
    times = {json.dumps({"block_q": 512}): {"evaluation_times_ms": [3.0, 1.0, 2.0]}, "{}": {"evaluation_times_ms": []}}
    text = json.dumps({json.dumps(one): times for one in calls})
    (folder / "pallas_mosaic_tpu_flash_attention.json").write_text(text)
    (folder / "pallas_mosaic_tpu_flash_attention_vjp.json").write_text("")
    case = Case("v6e", "causal", 2, 4, 512, 64, "fwd")
    assert _published.read(tmp_path) == (_published.Published(case, 2, {"block_q": 512}, 2.0),)
