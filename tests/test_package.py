"""What importing does, and what every public name must be."""

import dataclasses
import inspect
import os
import subprocess
import sys
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
_MODULES = (scores, normalizers, masks, mods, gates)


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


def _factories():
    for module in _MODULES:
        for name, x in vars(module).items():
            if inspect.isfunction(x) and x.__module__ == module.__name__ and not name.startswith("_"):
                yield pytest.param(x, id=f"{module.__name__.split('.')[-1]}.{name}")


@pytest.mark.parametrize("x", list(_factories()))
def test_every_factory_says_what_it_computes(x):
    assert x.__doc__, x.__name__
    assert len(x.__doc__.split()) >= 6


@pytest.mark.parametrize("name", _PUBLIC)
def test_public_names_have_docstrings(name):
    assert getattr(jattn, name).__doc__


PIECES = {
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


@pytest.mark.parametrize("name", PIECES)
def test_pieces_are_frozen_pytrees_with_static_equality(name):
    one, two = PIECES[name](), PIECES[name]()
    leaves, tree = jax.tree.flatten(one)
    assert all(hasattr(x, "dtype") for x in leaves)
    assert tree == jax.tree.structure(two)  # else an equal piece, made again, would recompile
    assert hash(tree) == hash(jax.tree.structure(two))
    again = jax.tree.unflatten(tree, leaves)
    assert type(again) is type(one)
    assert jax.tree.structure(again) == tree
    field = dataclasses.fields(one)[0].name if dataclasses.fields(one) else "anything"
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, field, None)
