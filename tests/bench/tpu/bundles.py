"""Programs of a few bundles, and a real dump."""

import re
from pathlib import Path

from bench.tpu import _bundles
from bench.tpu._bundles import parse

RECORDED = Path(__file__).parent / "v5e_final_bundles.txt"


def program(*lines: str) -> _bundles.Listing:
    """A program of these bundles; `1: ...` starts region 1."""
    text = ""
    for at, line in enumerate(lines):
        got = re.fullmatch(r"(?:(\d+): )?(.*)", line)
        assert got
        region, body = got.groups()
        note = f" /* Start region {region} */" if region else ""
        text += f"  {at:#x}   : > {{ {body} }}{note}\n"
    return parse(text)
