"""Docstrings of the public functions and layers: every parameter, what is raised, an example, the source."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest

import jattn
from jattn import gates, masks, mods, nn, normalizers, parallel, scores, viz

FUNCTIONS = ("attention", "dot_product_attention", "explain", "merge", "operand", "sample", "weights")
WITHOUT_PAPER = {  # and why
    "jattn.dot_product_attention": "a function of jax.nn",
    "jattn.explain": "says what a call would do",
    "jattn.operand": "names axes",
    "jattn.weights": "an option of attention, as it were",
    "masks.dense": "an array as it is",
    "masks.lengths": "padding",
    "mods.bias": "an array as it is",
    "gates.function": "whatever its argument is",
    **{f"viz.{x}": "a picture" for x in ("show_blocks", "show_cache", "show_mask", "show_positions", "show_weights")},
    "parallel.explain": "says what a call would do",
    "parallel.mesh": "an order of devices",
    "parallel.unzigzag": "the inverse of what has one",
    **{f"nn.cache.{x}": "what is done with lists" for x in ("free", "put", "shorten", "take")},
    "nn.BlockCache": "a `nn.Cache` and what lies beside it",
    "nn.Generated": "tokens and how many",
    "nn.StackCache": "as many of those as a stack has blocks",
    "nn.frozen": "marks what does not learn",
}


def _public():
    yield from ((f"jattn.{x}", getattr(jattn, x)) for x in FUNCTIONS)
    for module in (masks, mods, gates, scores, normalizers, parallel, viz, nn.cache):
        names = [x for x in module.__all__ if inspect.isfunction(getattr(module, x))]
        yield from ((f"{module.__name__.removeprefix('jattn.')}.{x}", getattr(module, x)) for x in names)
    for name in getattr(nn, "__all__", [x for x in vars(nn) if not x.startswith("_")]):
        if inspect.isclass(x := getattr(nn, name)) or inspect.isfunction(x):
            yield f"nn.{name}", x


PUBLIC = dict(_public())
everything = pytest.mark.parametrize("name", PUBLIC)


def _docstring(name: str) -> str:
    """A class may say of its arguments in the docstring of `__init__`."""
    x = PUBLIC[name]
    own = [x, x.__init__] if inspect.isclass(x) else [x]
    return "\n\n".join(inspect.cleandoc(y.__doc__ or "") for y in own)


def _section(text: str, title: str) -> str:
    """What stands indented beneath `title:`, over all such sections."""
    lines, inside = [], False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            inside = line == f"{title}:"
        elif inside:
            lines.append(line)
    return "\n".join(lines)


@everything
def test_every_parameter_is_named(name):
    x = PUBLIC[name]
    called = (
        x.__init__ if inspect.isclass(x) and "__init__" in vars(x) else x
    )  # of a layer: calling its class takes anything
    parameters = [x for x in inspect.signature(called).parameters if x != "self"]
    arguments = _section(_docstring(name), "Args") + _section(_docstring(name), "Attributes")
    heads = re.findall(r"^[ ]+([*\w, ]+):", arguments, re.M)
    named = {x.strip().lstrip("*") for head in heads for x in head.split(",")}
    assert [x for x in parameters if x not in named] == []


def _raises(name: str) -> bool:
    """Whether the function raises, by itself or in the helpers of its file that it calls by name."""
    x = PUBLIC[name]
    made = getattr(x, "__post_init__", x.__init__) if inspect.isclass(x) else x  # a dataclass has no __init__ to read
    first = inspect.unwrap(made)
    names = first.__globals__ if inspect.isfunction(first) else {}
    seen, waiting = set(), [first]
    while waiting:
        fn = inspect.unwrap(waiting.pop())
        if not inspect.isfunction(fn) or fn in seen or fn.__globals__ is not names:
            continue
        seen.add(fn)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(fn)))):
            if isinstance(node, ast.Raise):
                return True
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                waiting.append(names.get(node.func.id))
    return False


@everything
def test_what_it_raises_is_said(name):
    said = _section(_docstring(name), "Raises")
    assert not _raises(name) or re.search(r"^[ ]+(\w*Error)\b.*:", said, re.M), "no section Raises:"


@everything
def test_there_is_an_example(name):
    assert re.search(r"^>>> ", _docstring(name), re.M)


_SHOWN = (jattn, masks, mods, gates, scores, normalizers, parallel, viz, nn.cache)
_CLASSES = {f"{m.__name__}.{x}": getattr(m, x) for m in _SHOWN for x in m.__all__ if inspect.isclass(getattr(m, x))}


@pytest.mark.parametrize("name", _CLASSES)
def test_there_is_an_example_of_a_class(name):
    assert re.search(r"^>>> ", inspect.cleandoc(_CLASSES[name].__doc__ or ""), re.M)


_FORMULA = re.compile(r"[=<>*^+~]|\w[\[(]|\w - \w")  # an operator, or what is indexed or called
_OF_TERMS = [x for x in PUBLIC if x.split(".")[0] in ("masks", "mods", "gates", "scores", "normalizers")]


@pytest.mark.parametrize("name", _OF_TERMS)
def test_what_makes_a_term_begins_with_its_formula(name):
    first = _docstring(name).partition("\n\n")[0]
    assert _FORMULA.search(first), first


_PAPER = re.compile(r"[A-Z]\w+(,| et al\.| & [A-Z]\w+| Team)? (19|20)\d\d\b|^Source: that of ", re.M)


@everything
def test_the_source_is_named(name):
    got = _PAPER.search(_docstring(name))
    if name in WITHOUT_PAPER:
        assert not got, f"{name} names a paper: take it out of WITHOUT_PAPER"
    else:
        assert got, "no paper with its year"


def test_what_is_without_a_paper_exists():
    assert [x for x in WITHOUT_PAPER if x not in PUBLIC] == []
