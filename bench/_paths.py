"""Where things are: the benchmarks run from a checkout, never from an installed package."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
OUT = ROOT / "bench" / "out"  # what runs write, unless told otherwise; not in the repository
