"""What the replay of a jaxpr reads of it.

The types of JAX do not say that what is known of a variable is a shape and a dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Abstract(Protocol):
    """An array's shape and dtype."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


class Variable(Protocol):
    """A variable of a jaxpr, or a number in its place."""

    @property
    def aval(self) -> Abstract: ...


class Literal(Variable, Protocol):
    """A `jax.extend.core.Literal`: a number."""

    @property
    def val(self) -> Any: ...


class Primitive(Protocol):
    """What an equation computes."""

    @property
    def name(self) -> str: ...


class Equation(Protocol):
    """A `jax.extend.core.JaxprEqn`."""

    @property
    def primitive(self) -> Primitive: ...
    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def invars(self) -> Sequence[Variable]: ...
    @property
    def outvars(self) -> Sequence[Variable]: ...


class Jaxpr(Protocol):
    """A `jax.extend.core.Jaxpr`."""

    @property
    def constvars(self) -> Sequence[Variable]: ...
    @property
    def invars(self) -> Sequence[Variable]: ...
    @property
    def outvars(self) -> Sequence[Variable]: ...
    @property
    def eqns(self) -> Sequence[Equation]: ...
