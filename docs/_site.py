"""What the site needs and Sphinx does not have: pages that stand elsewhere, links to other sites, quoted names.

`setup` is called from `conf.py`.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import tomllib
import zlib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext import autosummary
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

from jattn.normalizers import Normalizer
from jattn.scores import Score

HERE = Path(__file__).parent
ROOT = HERE.parent
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
PAPERS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
TYPES = {
    "Mask": "masks.Mask",
    "Mod": "mods.Mod",
    "Gate": "gates.Gate",
    "Operand": "jattn.Operand",
    "Plan": "jattn.Plan",
}
"""Types by the names that signatures call them, and what they are documented as."""
NAMESPACES = ("gates", "masks", "mods", "nn", "normalizers", "scores", "viz")


def copy_pages() -> None:
    """Copies the papers of the repository and its notebooks to where Sphinx finds them.

    They are written to be read where they stand, so their links are turned: to pages here, or to the repository.
    """
    for folder, files in {
        "papers": [ROOT / name for name in PAPERS if (ROOT / name).exists()],
        "notebooks": sorted((ROOT / "colab").glob("*.ipynb")),
    }.items():
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir()
        for file in files:
            text = file.read_text()
            (HERE / folder / file.name).write_text(turned(text, "" if file.suffix == ".md" else "../"))


def turned(text: str, root: str = "") -> str:
    """A page whose links to the repository begin with `root`, with links that work in `papers/` and `notebooks/`."""

    def turn(match: re.Match[str]) -> str:
        target, _, part = match[1].partition("#")
        part = f"#{part}" if part else ""
        if target in PAPERS and (ROOT / target).exists():
            return f"]({'../papers/' if root else ''}{target}{part})"
        if target.startswith("docs/"):
            return f"](../{target.removeprefix('docs/')}{part})"
        return f"]({ADDRESS}/blob/main/{target}{part})"

    return re.sub(rf"\]\((?!\w+:|#){re.escape(root)}([^)\s]+)\)", turn, text)


def inventory(project: str) -> str:
    """Writes the names of another site that pages here link to as an inventory, and returns the file's path.

    Intersphinx would download the whole of it at every build, which then fails behind a firewall.
    """
    names = tomllib.loads((HERE / "elsewhere.toml").read_text())[project]
    rows = [f"{name} py:{kind} 1 {page}#$ -" for kind, pages in names["names"].items() for name, page in pages.items()]
    head = (
        f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The remainder is compressed using zlib.\n"
    )
    file = HERE / "_build" / "inventories" / f"{project}.inv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(head.encode() + zlib.compress("".join(f"{row}\n" for row in sorted(rows)).encode()))
    return str(file)


def _quoted(name: Any, raw: str, text: str, line: int, inliner: Any, options: Any = None, content: Any = ()) -> Any:
    """The role of single backticks in a docstring: a link where they name something public, else code."""
    del name, line, options, content
    literal = nodes.literal(raw, text)
    dotted = re.match(r"[A-Za-z_]\w*(\.\w+)+(?=$|\(|\[)", text)
    if dotted is None:
        return [literal], []
    target = f"jattn.{dotted[0]}" if dotted[0].split(".")[0] in NAMESPACES else dotted[0]
    where = inliner.document.settings.env.current_document.docname
    link = addnodes.pending_xref(raw, literal, refdomain="py", reftype="obj", reftarget=target, refdoc=where)
    link["optional"] = True
    return [link], []


def _missing(app: Sphinx, env: Any, node: addnodes.pending_xref, contnode: nodes.Element) -> nodes.Element | None:
    """What a quoted name, or a type in a signature, is where nothing is documented under that very name.

    Types of jattn's must be found; those of others are text where `elsewhere.toml` does not have them.
    """
    if node.get("optional"):
        return contnode
    if node.get("reftype") != "class" or node["reftarget"].startswith("jattn."):
        return None
    target = TYPES.get(node["reftarget"], node["reftarget"])
    target = f"jattn.{target}" if target.split(".")[0] in NAMESPACES else target
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "class", target, node, contnode) or contnode


def _signature(
    app: Sphinx, what: str, name: str, subject: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """A signature with annotations as they are written: evaluated, they name the modules that JAX hides arrays in."""
    del app, name, options, returns
    if signature is None or what not in ("function", "method", "class"):
        return None
    written = inspect.signature(
        vars(subject)["__init__"] if what == "class" and "__init__" in vars(subject) else subject
    )
    rest = list(written.parameters.values())[what in ("method", "class") and "self" in written.parameters :]
    rest = [x.replace(default=_default(x.default)) if x.default is not x.empty else x for x in rest]
    written = written.replace(parameters=rest)
    given = written.return_annotation
    return stringify_signature(written, show_return_annotation=False), given if isinstance(given, str) else None


def _as_rst(app: Sphinx, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Docstrings speak of `*args` and a | b, which reStructuredText takes for its own, and indent their formulas."""
    del app, subject, options
    written: list[str] = []
    before, example = "", False  # the last line that is not empty; whether this line is part of an example
    for line in lines:
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if line.startswith("    ") and written and not written[-1] and not before.startswith(" "):
            written += [".. code-block:: text", ""]
        code = example or (line.startswith("    ") and _in_formula(written))
        written.append(line if code else _escaped(line))
        before = line or before
    lines[:] = written
    if what == "attribute":
        _kept[name] = written


_kept: dict[str, list[str]] = {}
"""The documentation of attributes, where napoleon would take what comes before a colon for a type."""


def _without_napoleon(app: Sphinx, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    del app, subject, options
    if what == "attribute":
        lines[:] = _kept.pop(name)


def _in_formula(lines: list[str]) -> bool:
    """Whether the lines so far end inside a block of code that was opened for a formula."""
    for line in reversed(lines):
        if line and not line.startswith("    "):
            return line == ".. code-block:: text"
    return False


def _escaped(line: str) -> str:
    """A line whose stars and bars outside of backticks stand for themselves; a letter may follow a backtick."""
    parts = re.split(r"(`[^`]*`)", line)
    for n, text in enumerate(parts):
        if n % 2:
            parts[n] = text + "\\ " * bool(re.match(r"\w", parts[n + 1]))
        else:
            parts[n] = re.sub(r"(?<![\w*\\])(\*{1,2}|\|)(?=[\w(])", r"\\\1", text)
    return "".join(parts)


def _pictures(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Warns where a cell ends with a figure that was not drawn."""
    del app, page
    for block in doctree.findall(nodes.literal_block):
        if block.astext().startswith("<Figure size"):
            logging.getLogger(__name__).warning("a figure is not drawn: %matplotlib inline", location=block)


def _written_in(app: Sphinx, module: str, name: str) -> str | None:
    """The module with the source of a public name that has the name of the package around it; None for any other."""
    del app
    subject = getattr(importlib.import_module(module), name.split(".")[0], None)
    if getattr(subject, "__module__", None) != module:
        return None
    functions = filter(inspect.isfunction, (subject, *vars(subject).values()))
    return next((inspect.unwrap(x).__globals__["__name__"] for x in functions), None)


def _default(value: Any) -> Any:
    """A default that says what it is where its repr would not."""
    if isinstance(value, (Score, Normalizer)):
        return _Text(f"{type(value).__module__.removeprefix('jattn.')}.{type(value).__name__.lower()}()")
    name = getattr(value, "__name__", None)
    return value if name is None else _Text("..." if inspect.isfunction(value) else f"jnp.{name}")


class _Text(str):
    """Text that is its own repr."""

    __repr__ = str.__str__


def _summary(doc: list[str], document: Any) -> str:
    """The first sentence of a docstring, which may name an equation and end before a formula."""
    return re.sub(r":\.?$", ".", _first_sentence(doc, document))


_first_sentence = autosummary.extract_summary


class Public(SphinxDirective):
    """`.. public:: MODULE` documents what a module shows: the names of its content, then the others in `__all__`, but
    for those of a module in it.

    Those of the content must be there.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        path = self.arguments[0]
        module = importlib.import_module(path)
        names = " ".join(self.content).split()
        shown = getattr(module, "__all__", ())
        inside = {x for name in shown for x in getattr(getattr(module, name), "__all__", ())}  # which has a page
        names += [name for name in shown if name not in names and name not in inside]
        names = [name for name in names if callable(getattr(module, name, callable))]  # no modules, no constants
        lines = [f".. automodule:: {path}", "   :no-members:", "", f".. currentmodule:: {path}", ""]
        lines += [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names), ""]
        for name in names:
            lines += [*_entry(name, getattr(module, name, None)), ""]
        return self.parse_text_to_nodes("\n".join(lines))


def _entry(name: str, subject: Any) -> list[str]:
    """The directive that documents something; a plan is read, not made, so that it has no signature."""
    if not inspect.isclass(subject):
        return [f".. autofunction:: {name}"]
    if issubclass(subject, Exception):
        return [f".. autoexception:: {name}"]
    shown = f"{name}()" if name == "Plan" else name
    return [f".. autoclass:: {shown}", "   :members:", "   :special-members: __call__"]


def setup(app: Sphinx) -> None:
    app.add_directive("public", Public)
    autosummary.WELL_KNOWN_ABBREVIATIONS = (*autosummary.WELL_KNOWN_ABBREVIATIONS, "eq.")
    autosummary.extract_summary = _summary
    app.connect("doctree-resolved", _pictures)
    app.add_role("quoted", _quoted)
    app.connect("missing-reference", _missing, priority=900)
    app.connect("autodoc-process-docstring", _as_rst, priority=400)
    app.connect("autodoc-process-docstring", _without_napoleon, priority=600)
    app.connect("autodoc-process-signature", _signature)
    app.connect("viewcode-follow-imported", _written_in)
