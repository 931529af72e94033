"""The README: every Python snippet runs when it is pasted, on its own."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"(?ms)^```python\n(.*?)^```", README)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(snippet):
    exec(compile(snippet, "README.md", "exec"), {"__name__": "pasted"})


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2
    assert README.count("```python") == len(SNIPPETS)
