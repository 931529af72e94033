"""Signatures are checked while tests run: every call of a function of `CHECKED` has the types and shapes that its
annotations say, as jaxtyping and beartype see them.

What users call, what they make (terms, layers and their records), and what looks at their arguments for these, is not
among them: there a wrong argument gets the library's own error, which would come too late.  That is most of
`jattn.nn`, `jattn.parallel` and `jattn.viz`.  Nor is what kernels and their index maps call, where references to memory
stand for arrays; nor `_terms.recipes` and `tiles.work`, whose Protocols cannot be asked for at run time.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import beartype
import jax
import jaxtyping
import numpy as np

_TERMS = (
    "block_tables", "counter_hash", "elementwise", "linear", "moved", "origin", "positions", "reach", "rows", "term",
    "untraced",
)  # fmt: skip
_CALL = ("dispatch", "hints", "layouts", "modes", "plan", "problem", "scales", "targets")
_LAYERS = tuple(f"cache.{x}" for x in ("_kinds", "_paged", "_quantised", "_rows"))
_TILES = ("cells", "functions", "place", "two_parts")
CHECKED = (
    *(f"jattn._terms.{x}" for x in _TERMS),
    *(f"jattn._call.{x}" for x in _CALL),
    "jattn._derivatives",
    "jattn.backends",
    *(f"jattn.parallel.{x}" for x in ("_cost", "_ring")),
    *(f"jattn.nn.{x}" for x in _LAYERS),
    "jattn.viz._canvas",
    *(f"jattn_kernels.tiles.{x}" for x in _TILES),
    *(f"jattn_kernels.{x}" for x in ("chips", "tables", "gpu.sizes", "online_softmax", "tpu.sizes")),
)


# An int is a float, as type checkers have it.  Where an array of JAX is asked for, a value that is known while tracing is
# one of NumPy or an entry of it, as JAX itself has it, and a plan is made of shapes alone.
_ARRAYS = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
_CONF = beartype.BeartypeConf(is_pep484_tower=True, hint_overrides=beartype.FrozenDict({jax.Array: _ARRAYS}))


def checked(fn: Any) -> Any:
    """The function, its arguments and result checked at every call; `Self` cannot be, of a method by itself."""
    fn.__annotations__ = {name: hint for name, hint in fn.__annotations__.items() if hint is not Self}
    return beartype.beartype(conf=_CONF)(fn)


def install() -> None:
    """To be called before anything imports jattn."""
    with jaxtyping.install_import_hook(CHECKED, "tests.signatures.checked"):
        modules = list(_modules())
    for module in modules:
        _complete(module)


def _modules() -> Iterator[ModuleType]:
    for name in CHECKED:
        module = importlib.import_module(name)
        yield module
        for got in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
            yield importlib.import_module(got.name)


def _complete(module: ModuleType) -> None:
    """Imports what the module imports for type checkers alone, so that annotations that name it can be looked up."""
    for node in ast.parse(Path(str(module.__file__)).read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module.__name__, "exec"), vars(module))
