"""The site: what its build does not check.  `python -m sphinx -W docs docs/_build/html` runs every cell of every page."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import jattn
from jattn._extras import ADDRESS
from tests import aot

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] not in ("_build", "papers", "notebooks")
)
PAPERS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
WIDTH = 88  # columns of code that a page has room for
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


def _cells(page):
    """The code that the build executes, without what is for notebooks alone."""
    got = re.findall(r"(?ms)^```\{code-cell\} python\n(.*?)^```", page.read_text())
    return [re.sub(r"(?m)^(:tags:|%).*\n", "", cell) for cell in got]


def test_there_are_pages():
    assert len(PAGES) >= 20


@each_page
def test_nothing_looks_like_python_and_is_not_run(page):
    fences = re.findall(r"(?m)^(?:```|:::)(\S+)", page.read_text())
    assert set(fences) <= {"{code-cell}", "{literalinclude}", "{toctree}", "{eval-rst}", "sh", "text"}


@each_page
def test_code_fits_on_the_page(page):
    included = [(page.parent / name).read_text() for name in re.findall(r"{literalinclude} (\S+)", page.read_text())]
    shown = [*_cells(page), *(code.partition("# begin")[2].partition("# end")[0] or code for code in included)]
    assert [line for code in shown for line in code.splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize(
    ("page", "package"),
    [("hugging_face", "torch"), ("flex_attention", "torch"), ("splash", "jax"), ("tokamax", "tokamax")],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_peers_compute_the_same(page, package, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.setattr(sys, "argv", ["python"])  # tokamax reads its flags from there
    ours: dict = {}
    for cell in _cells(DOCS / "coming_from" / f"{page}.md"):
        exec(compile(cell, page, "exec"), ours)
    into, out_of = _torch() if package == "torch" else (lambda x: x, np.asarray)
    names = {"q", "k", "v", "ids", "slopes", "attention_mask", "lengths", "bias"} & set(ours)
    theirs = {name: into(ours[name]) for name in names}
    file = DOCS / "coming_from" / "peers" / f"{page}.py"
    exec(compile(file.read_text(), str(file), "exec"), theirs)
    np.testing.assert_allclose(out_of(theirs["out"]), ours["out"], atol=1e-5)


def _torch():
    """To PyTorch's tensors, with heads before positions, and back."""
    torch = pytest.importorskip("torch")

    def into(x):
        x = torch.from_numpy(np.array(x))
        return x.swapaxes(1, 2) if x.ndim == 4 else x

    return into, lambda x: np.asarray(x.swapaxes(1, 2))


@aot.needed
def test_the_copies_that_reshaping_activations_costs():
    page = (DOCS / "performance.md").read_text()
    shown = {name: [int(x), int(y)] for name, x, y in re.findall(r"\| `(\w+)` \| (\d+) \| (\d+) \|", page)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    done = subprocess.run(
        [sys.executable, DOCS / "copies.py"], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == shown == {"flat": [4, 8], "by_head": [0, 0]}


def test_every_namespace_has_a_page_of_the_reference():
    pages = (page.read_text() for page in (DOCS / "api").glob("*.md"))
    described = re.findall(r"(?m)^\.\. public:: (\S+)$", "".join(pages))
    modules = {"gates", "masks", "mods", "nn", "normalizers", "parallel", "scores", "viz"}
    assert set(described) == {"jattn", "jattn.nn.cache", *(f"jattn.{name}" for name in modules)}
    assert modules <= set(dir(jattn))


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_links_lead_somewhere(paper):
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", paper.read_text()):
        assert (ROOT / link).exists(), link


def _paths(paper):
    """What looks like a path in code, and in listings that are of no language."""
    fences = re.compile(r"(?ms)^```([^\n]*)\n(.*?)^```")
    text = paper.read_text()
    listings = [code for language, code in fences.findall(text) if not language]
    spans = re.findall(r"`([^`\n]+)`", fences.sub("", text))
    words = (word.strip(",:;") for code in (*listings, *spans) for word in code.split())
    return [x for x in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/|[\w./-]*(\w/\w|\.(py|md|json))[\w./-]*", x)]


@pytest.mark.parametrize("paper", PAPERS[:3], ids=lambda paper: paper.name)
def test_paths_are_of_files_that_exist(paper):
    """From the root on, or the end of one: `_terms/reach.py`."""
    folders = [ROOT / x for x in ("jattn", "kernels", "tests", "bench")]
    there = lambda path: (ROOT / path).exists() or any(any(x.glob(f"**/{path.rstrip('/')}")) for x in folders)
    paths = [x for x in _paths(paper) if not x.startswith("docs/_build")]
    assert len(paths) >= 5
    assert [x for x in paths if not there(x)] == []


def test_the_error_shown_is_one_of_the_code():
    [line] = re.findall(r"(?m)^raise .*$", (ROOT / "CONTRIBUTING.md").read_text())
    assert any(line in file.read_text() for file in (ROOT / "jattn").rglob("*.py"))


def test_examples_of_style_are_python():
    snippets = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(snippets) >= 3
    for snippet in snippets:
        ast.parse(snippet)


def test_the_address_is_one():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Source"] == ADDRESS
    assert all(url.startswith(ADDRESS) for url in urls.values())
    named = re.findall(r"https://github\.com/[\w-]+/jattn\b", "".join(page.read_text() for page in (*PAGES, *PAPERS)))
    assert set(named) <= {ADDRESS}


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="sphinx is not installed: '.[docs]'")
def test_links_of_the_papers_are_turned(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    turned = importlib.import_module("_site").turned
    assert turned("[a](CONTRIBUTING.md#style)") == "[a](CONTRIBUTING.md#style)"
    assert turned("[a](docs/start.md)") == "[a](../start.md)"
    assert turned("[a](jattn/api.py)") == f"[a]({ADDRESS}/blob/main/jattn/api.py)"
    assert turned("[a](../docs/start.md) [b](3_x.ipynb)", "../") == "[a](../start.md) [b](3_x.ipynb)"
    assert turned("[a](https://docs.jax.dev) [b](#c)") == "[a](https://docs.jax.dev) [b](#c)"
