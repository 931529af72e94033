"""Text as it was written: what a web page made of it is undone."""

from __future__ import annotations

import html


def unescaped(text: str) -> str:
    """With `&amp;` and all other HTML entities as the characters that they stand for, even if they were escaped twice.

    >>> unescaped("at&amp;t, AT&amp;amp;T, 5 &#8364;, R&D?")
    'at&t, AT&T, 5 €, R&D?'
    """
    while (less := html.unescape(text)) != text:
        text = less
    return text
