"""The table, its summary and the README's tables."""

import dataclasses
import json

from bench._report import header, line
from bench.tpu import _cases, _published, _report
from bench.tpu._estimate import Coverage, Estimate


def row(chip: str, mask: str, t: int, jattn: float | None, splash: float | None) -> _report.Row:
    case = next(case for case in _cases.cases([chip], [mask], directions=["fwd"]) if case.t == t)
    ends = [None if time is None else time + 0.5 for time in (jattn, splash)]
    jattn_estimate = Estimate(jattn, ends[0], errors=["too large"])
    splash_estimate = Estimate(splash, ends[1], parts={"fwd": Coverage(8, 2, 40)})
    return _report.Row(case, {"jattn": jattn_estimate, "splash": splash_estimate})


def test_table_says_what_was_met():
    columns = _report.columns(["jattn", "splash"])
    head = header(columns)
    lines = [
        line(columns, one).split()
        for one in (
            row("v5e", "full", 2048, 1.49, 1.5),
            row("v5e", "full", 2048, 1.8, 1.5),
            row("v6e", "causal", 4096, 0.5, 0.6),
            row("v6e", "causal", 8192, 0.9, 0.6),
            row("v6e", "causal", 4096, None, 0.6),
        )
    ]
    assert "ratio  target" in head
    assert lines[0] == [
        "v5e",
        "full",
        "fwd",
        "8x16x2048x128",
        "1.49",
        "94%",
        "1.99",
        "1.50",
        "93%",
        "2.00",
        "0.995",
        "0.993",
        "1.00",
        "met",
        "85%",
        "met",
    ]
    assert lines[1][-5:] == ["1.20", "1.00", "MISSED", "85%", "MISSED"]
    assert lines[2][-4:] == ["0.833", "0.850", "met", "-"]
    assert lines[3][-3:] == ["1.50", "-", "-"]
    assert lines[4][4:7] == ["-", "-", "-"]
    assert lines[4][-3:] == ["-", "0.850", "-"]


def test_table_without_peers():
    columns = _report.columns(["jattn"])
    alone = dataclasses.replace(row("v5p", "full", 2048, 0.6, None), estimates={"jattn": Estimate(0.6)})
    assert "splash" not in header(columns)
    assert line(columns, alone).endswith("93%  met")
    assert _report.summary([alone]).startswith("utilisation: 1 of 1 targets met; worst: v5p-full-t2048-d128-fwd, 0.999")


def test_summary_names_the_worst_and_what_failed():
    rows = [
        row("v6e", "full", 2048, 1.1, 1.0),
        row("v6e", "causal", 2048, 0.9, 1.0),
        row("v6e", "full", 4096, None, 1.0),
    ]
    text = _report.summary(rows)
    assert "jattn / splash: 0 of 2 targets met; worst: v6e-causal-t2048-d128-fwd, 0.900, target <= 0.800" in text
    assert "v6e-full-t4096-d256-fwd: no estimate for jattn: too large" in text
    covered = "24 of its 120 settings are counted, 6 cannot be the best; 90 are left, which --settings all counts"
    assert f"splash: {covered}" in text
    document = json.loads(json.dumps([one.as_json() for one in rows]))
    assert document[0]["estimates"]["jattn"]["milliseconds"] == 1.1
    assert document[2]["estimates"]["jattn"]["utilisation"] is None


def test_tables_of_the_readme():
    case = row("tpu7x", "full", 2048, None, None).case
    entry = _published.Published(case, 1, {}, 0.956)
    entries = (entry, dataclasses.replace(entry, group=4, milliseconds=1.0))
    rows = [
        row("v5e", "full", 2048, 1.4, 1.5),
        row("tpu7x", "full", 2048, 0.7, 0.8),
        row("v5e", "causal", 2048, 1, None),
    ]
    assert _report.markdown(rows, entries).splitlines() == [
        "| mask | b h t d | v5e kernels | v5e + XLA | tpu7x kernels | tpu7x + XLA | tpu7x splash, timed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| full | 8 16 2048 128 | 1.40 / 1.50 | 1.90 / 2.00 | 0.700 / 0.800 | 1.20 / 1.30 | 0.956 |",
        "| causal | 8 16 2048 128 | 1.00 / - | 1.50 / - | - | - | - |",
    ]


def test_coverage_has_a_row_for_each_part():
    case = row("v5e", "full", 2048, None, None).case
    one = Estimate(1.0, parts={"lse": Coverage(10, 3, 13), "bwd": Coverage(9, 0, 9)})
    assert _report.coverage(case, "splash", one) == [
        "| v5e-full-t2048-d128-lse | splash | 10 | 3 | 13 |",
        "| v5e-full-t2048-d128-bwd | splash | 9 | 0 | 9 |",
    ]
    assert _report.covered([one]) == "19 of its 22 settings are counted, 3 cannot be the best"
