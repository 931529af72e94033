"""chrF, how alike texts are in their pieces of up to six characters (Popović 2015): the figure of translations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

ORDERS = 6
BETA = 2.0  # recall counts twice as much as precision: chrF2


def chrf(written: Sequence[str], wanted: Sequence[str]) -> float:
    """chrF2 in [0, 1] of a corpus: white space is left out, and counts are of all texts together.

        F = mean over n = 1 .. 6 of (1 + beta^2) P_n R_n / (beta^2 P_n + R_n)

    with P_n the share of the n-grams written that are wanted, R_n the share of those wanted that were written.  Orders
    for which no text is long enough are left out.

    >>> chrf(["Guten Tag"], ["Guten Tag"]), chrf(["xyz"], ["Guten Tag"])
    (1.0, 0.0)
    """
    scores = []
    for n in range(1, ORDERS + 1):
        pairs = [(_pieces(a, n), _pieces(b, n)) for a, b in zip(written, wanted, strict=True)]
        both, ours, theirs = (sum(x.total() for x in xs) for xs in zip(*((a & b, a, b) for a, b in pairs), strict=True))
        if ours and theirs:
            # both / ours = P, both / theirs = R
            scores.append((1 + BETA**2) * both / (BETA**2 * theirs + ours))
    return sum(scores) / len(scores) if scores else 0.0


def _pieces(text: str, n: int) -> Counter[str]:
    text = "".join(text.split())
    return Counter(text[first : first + n] for first in range(len(text) - n + 1))
