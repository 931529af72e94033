"""A step that takes no time."""

from bench.decode._cases import Case


def small(kind: str, **changes) -> Case:
    """Two examples that have had 37 keys, of few narrow heads."""
    page = 16 if kind == "paged" else None
    return Case(**{"kind": kind, "b": 2, "fill": 37, "n": 64, "h": 4, "g": 2, "d": 8, "page": page, **changes})
