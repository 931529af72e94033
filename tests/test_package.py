"""What importing does, what every public name must be, and where the tests of a module lie."""

import ast
import dataclasses
import graphlib
import importlib
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, scores

_PUBLIC = [
    "attention",
    "explain",
    "weights",
    "sample",
    "merge",
    "dot_product_attention",
    "operand",
    "Operand",
    "UnsupportedError",
    "Plan",
]
_ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=_ENV)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.smoke
def test_import_is_light_and_starts_no_device():
    code = """
import sys, jattn
from jax._src import xla_bridge
heavy = [m for m in ("flax", "matplotlib", "optax", "jax.experimental.pallas", "torch", "babel") if m in sys.modules]
print(heavy, xla_bridge._backends)
"""
    assert _run(code) == "[] {}"


def test_kernels_are_a_leaf():
    code = """
import pkgutil, importlib, sys, jattn_kernels
for m in pkgutil.walk_packages(jattn_kernels.__path__, "jattn_kernels."):
    importlib.import_module(m.name)
print([m for m in sys.modules if m == "jattn" or m.startswith("jattn.")])
"""
    assert _run(code) == "[]"


def _files() -> dict[str, Path]:
    """The modules of the two packages, by name."""
    root = Path(__file__).parents[1]
    files = {x.relative_to(base): x for base in (root, root / "kernels") for x in base.glob("jattn*/**/*.py")}
    return {".".join(x.with_suffix("").parts).removesuffix(".__init__"): file for x, file in files.items()}


def _imports(node: ast.AST) -> Iterator[str]:
    """What code imports when it runs, inside functions too."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (x.name for x in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (name for x in node.names for name in (f"{node.module}.{x.name}", str(node.module)))
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def _graph() -> dict[str, set[str]]:
    """Which modules each imports, but for the packages that it lies in itself."""
    files = _files()
    imported = {name: set(_imports(ast.parse(file.read_text()))) & set(files) for name, file in files.items()}
    return {name: {x for x in got if not f"{name}.".startswith(f"{x}.")} for name, got in imported.items()}


def test_no_modules_import_each_other_in_a_circle():
    graph = _graph()
    assert "jattn._call.checks" in graph["jattn.api"]
    graphlib.TopologicalSorter(graph).prepare()


def test_attention_does_without_what_is_made_of_it():
    lazy = tuple(f"jattn.{x}" for x in ("nn", "parallel", "viz", "zoo"))
    own = {name: got for name, got in _graph().items() if not name.startswith(lazy)}
    assert [(name, x) for name, got in own.items() for x in got if x.startswith(lazy)] == []


def test_lazy_modules_are_there():
    assert callable(jattn.viz.show_weights)
    assert "nn" in dir(jattn)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jattn.nothing


def test_the_examples_of_one_file_can_be_run_by_themselves():
    """Collected before jattn is imported, a module would be imported twice, and its gates be none of attention's."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "jattn/gates.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1], env=_ENV)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("name", _PUBLIC)
def test_public_names_have_docstrings(name):
    assert getattr(jattn, name).__doc__


AS_ONE_MODULE = {masks: "Mask", mods: "Mod", normalizers: "Normalizer"}


@pytest.mark.parametrize("package", AS_ONE_MODULE, ids=lambda x: x.__name__)
def test_names_are_those_of_the_package_whichever_file_they_are_written_in(package):
    files = [importlib.import_module(f"{package.__name__}.{x.name}") for x in pkgutil.iter_modules(package.__path__)]
    shown = {name: x for file in files for name, x in vars(file).items() if not name.startswith("_")}
    ours = {name: x for name, x in shown.items() if getattr(x, "__module__", "").startswith(package.__name__)}
    assert {AS_ONE_MODULE[package], "Function", "function"} < set(ours)
    assert {x.__module__ for x in ours.values()} == {package.__name__}
    assert all(getattr(package, name) is x for name, x in ours.items())
    assert sorted(name for name in ours if name.islower()) == sorted(x for x in package.__all__ if x.islower())
    assert dir(package) == package.__all__
    base = getattr(package, AS_ONE_MODULE[package])
    assert inspect.getsource(base.__call__).startswith("    def __call__(")
    assert "def function(" in inspect.getsource(package.function)


TERMS = {
    "cjattn.masks\nWindow\n": (masks.window(3, 2) & ~masks.dilated(2))
    | masks.blocks([[True]], 32) & masks.lengths(5, 7),
    "cjattn.mods\nSoftCap\n": mods.softcap(3.0),
    "cjattn.normalizers\nHard\n": normalizers.hard(True),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms_are_pickled_by_those_names(name):
    stored = pickle.dumps(TERMS[name], protocol=0)
    assert pickle.loads(stored) == TERMS[name]
    assert name.encode() in stored


MAKERS = {
    "dot": lambda: scores.dot(),
    "learned scale": lambda: scores.dot(jnp.float32(0.5)),
    "additive": lambda: scores.additive(jnp.ones((3, 4)), jnp.ones((2, 3, 4)), jnp.ones(4)),
    "entmax": normalizers.entmax15,
    "sigmoid": lambda: normalizers.sigmoid(jnp.float32(1.0)),
    "gumbel": lambda: normalizers.gumbel(jax.random.key(0)),
    "nested mask": lambda: ~(masks.causal() & masks.segments(jnp.arange(4))) | masks.dilated(2),
    "blocks": lambda: masks.blocks([[True, False]], 2),
    "relative": lambda: mods.relative(jnp.ones((2, 8))),
    "softcap": lambda: mods.softcap(3.0),
    "dropout": lambda: gates.dropout(0.5, 1),
    "gaussian": lambda: gates.gaussian(jnp.ones((2, 3)), jnp.float32(2.0)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_terms_are_frozen_pytrees_with_static_equality(name):
    one, two = MAKERS[name](), MAKERS[name]()
    leaves, tree = jax.tree.flatten(one)
    assert all(hasattr(x, "dtype") for x in leaves)
    assert tree == jax.tree.structure(two)  # else an equal term, made again, would recompile
    assert hash(tree) == hash(jax.tree.structure(two))
    again = jax.tree.unflatten(tree, leaves)
    assert type(again) is type(one)
    assert jax.tree.structure(again) == tree
    field = dataclasses.fields(one)[0].name if dataclasses.fields(one) else "anything"
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, field, None)


_ALIKE = {
    "Alibi", "Call", "Fold", "FoldedTerms", "Forward", "Function", "Keys", "OperandLayout", "Pairs", "Queries", "Settings",
    "TileSizes",
}  # fmt: skip
"""Classes that several families have, each for the same thing: of masks, mods and gates, of backends, of machines."""


def test_a_class_has_a_name_of_its_own():
    """One word means one thing; the zoo's tasks, which are models of their own, are left out."""
    root, where = Path(__file__).parents[1], {}
    for file in [*(root / "jattn").rglob("*.py"), *(root / "kernels").rglob("*.py")]:
        if "zoo" not in file.parts:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    where.setdefault(node.name.lstrip("_"), []).append(file.relative_to(root).as_posix())
    assert {name: files for name, files in where.items() if len(files) > 1 and name not in _ALIKE} == {}
    assert all(len(where[name]) > 1 for name in _ALIKE)


# Tests mirror the tree

_TREES = {"jattn": "tests", "kernels/jattn_kernels": "tests/kernels", "bench": "tests/bench"}
"""Where the tests of each tree of modules lie."""

_ZOO = "data, model and task are one program, which is trained"
_STAGES = "the stages of one call: what one of them leaves is what the next begins with"
_SIMULATED = "kernels run as calls alone, on a simulator: the table of cases is what they are tried on"
_ROUND = "parts of one program over devices, which goes round and is differentiated whole"
_TOGETHER: dict[str, tuple[str, str, str]] = {
    **{
        f"jattn/zoo/{name}": (modules, f"tests/zoo/test_{name}.py", _ZOO)
        for name, modules in {
            "boolq": "data model task vectors", "dates": "data losses model task", "documents": "data model task",
            "pairs": "data model task", "text": "data model task", "translate": "chrf data model task",
            "vowels": "data model task",
        }.items()
    },
    "jattn/zoo": ("errors task", "tests/zoo/test_main.py", "an error and a record of functions, seen by the command line alone"),
    "jattn/nn": ("hierarchical", "tests/nn/test_recurrent.py", "the layers over recurrent networks are tried side by side"),
    "jattn/parallel/_ring": ("backward tangent twin", "tests/parallel/test_attention.py", _ROUND),
    "jattn/backends/pallas": ("patterns", "tests/backends/pallas/test_work.py", "patterns are numbered for lists of work, and read by them"),
    "jattn/backends/blockwise": ("backward forward tangent", "tests/backends/blockwise/test_blockwise.py", _STAGES),
    "jattn/backends/cudnn": ("backward cut forward settings", "tests/backends/cudnn/test_call.py", _STAGES),
    "jattn/backends/pallas_gpu": (
        "backward call decode forward settings terms", "tests/backends/pallas_gpu/test_kernels.py", _SIMULATED,
    ),
    "jattn/backends/pallas_tpu": (
        "backward call forward settings sizes tangent terms", "tests/backends/pallas_tpu/test_kernels.py", _STAGES,
    ),
    "kernels/jattn_kernels/gpu": (
        "backward_keys backward_pairs backward_queries block forward gradients layout look_up machine",
        "tests/backends/pallas_gpu/test_kernels.py", _SIMULATED,
    ),
    "kernels/jattn_kernels/gpu/ampere": ("*", "tests/backends/pallas_gpu/test_kernels.py", _SIMULATED),
    "kernels/jattn_kernels/gpu/hopper": ("*", "tests/backends/pallas_gpu/test_kernels.py", _SIMULATED),
    "kernels/jattn_kernels/gpu/blackwell": ("*", "tests/backends/pallas_gpu/test_kernels.py", _SIMULATED),
    "kernels/jattn_kernels/gpu/lowering": (
        "*", "tests/kernels/gpu/lowering/test_entry.py", "a primitive is lowered by several of them, one after the other",
    ),
    "kernels/jattn_kernels/tpu": (
        "backward forward gradient grid_step", "tests/backends/pallas_tpu/test_kernels.py",
        "kernels run as calls alone, interpreted: the table of cases is what they are tried on",
    ),
    "kernels/jattn_kernels/tpu/decode": (
        "forward keys turned", "tests/backends/pallas_tpu/test_decode.py", "one kernel: what it copies, turns and computes",
    ),
}  # fmt: skip
"""Folders with modules that run together alone: which these are, `*` for all, the file that tests them, and why."""


def _module(name: str) -> str:
    return "main" if name == "__main__" else name.lstrip("_")


def _tests_of(tree: str, module: Path) -> Path:
    """The file that tests a module, by its name."""
    *folders, name = module.with_suffix("").parts
    return Path(_TREES[tree], *(x.lstrip("_") for x in folders), f"test_{_module(name)}.py")


@pytest.mark.parametrize("tree", _TREES)
def test_each_module_has_tests_of_its_name(tree):
    """Or is one of those that are told above to be tested by another file."""
    root = Path(__file__).parents[1]
    without = []
    for file in sorted((root / tree).rglob("*.py")):
        if file.name == "__init__.py" or (root / _tests_of(tree, file.relative_to(root / tree))).exists():
            continue
        modules, *_ = _TOGETHER.get(file.parent.relative_to(root).as_posix(), ("", "", ""))
        if modules != "*" and _module(file.stem) not in modules.split():
            without.append(f"{file.relative_to(root)}: {_tests_of(tree, file.relative_to(root / tree))} is not there")
    assert without == []


def test_modules_that_are_tested_together_are_there_and_so_are_their_tests():
    root = Path(__file__).parents[1]
    for folder, (modules, tests, reason) in _TOGETHER.items():
        assert (root / tests).is_file() and reason
        there = {_module(x.stem) for x in (root / folder).glob("*.py")}
        assert {*modules.split()} - {"*"} <= there, folder
