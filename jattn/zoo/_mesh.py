"""Training on many devices: a mesh of them, where parameters and batches lie on it, and what that asks of a task."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn import parallel
from jattn.zoo._errors import UsageError

AXES = ("data", "model", "sequence")
SIMULATE = "XLA_FLAGS=--xla_force_host_platform_device_count="

_OF_MODEL = {"query": -2, "key": -2, "value": -2, "out": -3, "mlp_in": -1, "mlp_gate": -1, "mlp_out": -2}
"""Of a block's kernels, by the names of their layers, the axis of heads or of hidden units, counted from the end."""


class Devices(NamedTuple):
    """mesh: with all of `AXES`; None for one device, on which nothing is to be said."""

    mesh: Mesh | None = None

    @contextlib.contextmanager
    def at_work(self) -> Generator[None, None, None]:
        """Inside, whatever attends does so along the mesh."""
        if self.mesh is None:
            yield
            return
        sequence = "sequence" if self.mesh.shape["sequence"] > 1 else None
        with jax.set_mesh(self.mesh), parallel.layout(batch="data", heads="model", sequence=sequence):
            yield

    def place(self, state: Any) -> Any:
        """Parameters, and what an optimizer keeps of each: heads and hidden units along `model` (Shoeybi et al. 2019),
        all else on every device."""
        if (mesh := self.mesh) is None:
            return state
        return jax.tree.map_with_path(
            lambda path, x: jax.device_put(x, NamedSharding(mesh, _along_model(path, x))), state
        )

    def step(self, fn: Callable[[Any, Any], Any], state: Any) -> Callable[[Any, Any], Any]:
        """The function (state, batch) -> (state, loss), which leaves the state where it lies, for the next."""
        if self.mesh is None:
            return fn
        where = jax.tree.map(lambda x: x.sharding, state), NamedSharding(self.mesh, P())
        return jax.jit(fn, out_shardings=where)

    def batch(self, arrays: Any) -> Any:
        """A batch that every process has made whole, along `data`."""
        if self.mesh is None:
            return arrays
        along = NamedSharding(self.mesh, P("data"))
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, along, x.__getitem__), arrays)

    def whole(self, params: Any) -> Any:
        """Parameters as one device has them, one of each process."""
        if self.mesh is None:
            return params
        gather = jax.jit(lambda x: x, out_shardings=NamedSharding(self.mesh, P()))
        return jax.tree.map(lambda x: x.addressable_data(0), gather(params))


def _along_model(path: Any, x: Any) -> P:
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]  # a variable's own `value` is none
    axis = next((axis for name, axis in _OF_MODEL.items() if name in names), None)
    if axis is None or np.ndim(x) < -axis or "kernel" not in names:
        return P()
    return P(*[None] * (np.ndim(x) + axis), "model")


def sequences(x: jax.Array | np.ndarray) -> Any:
    """An array `[b, t]`, which lies along the mesh of here, if there is one."""
    there = jax.sharding.get_abstract_mesh()
    return x if there.empty else jax.lax.with_sharding_constraint(x, P("data", "sequence"))


def is_first() -> bool:
    """Whether this is the process that prints and draws for all."""
    return jax.process_index() == 0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mesh", type=_sizes, help="devices along axes, as data=2,sequence=4; axes: " + ", ".join(AXES)
    )
    parser.add_argument("--distributed", action="store_true", help="first finds other hosts, each with this command")


def _sizes(text: str) -> dict[str, int]:
    """Devices along each axis, by its name."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, count = part.partition("=")
        if name not in AXES or name in sizes or not count.isdecimal() or not int(count):
            raise argparse.ArgumentTypeError(
                f"expected counts of {', '.join(AXES)}, as data=2,sequence=4, got {text!r}"
            )
        sizes[name] = int(count)
    return sizes


def check(mesh: dict[str, int] | None, distributed: bool) -> None:
    """Finds the other hosts, if there are some, and whether there are as many devices as were asked for.

    Raises:
        UsageError: there are not; or there are no other hosts to be found.
    """
    if distributed:
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"--distributed: JAX finds no other hosts here ({error})") from error
    if mesh is None:
        return
    asked, there = math.prod(mesh.values()), jax.device_count()
    named = ",".join(f"{name}={n}" for name, n in mesh.items())
    if asked > there:
        how = (
            f"; {SIMULATE}{asked} in the environment simulates them on a CPU" if jax.default_backend() == "cpu" else ""
        )
        raise UsageError(f"--mesh {named} takes {asked} devices, of which there are {there} here{how}")
    if asked < there and jax.process_count() > 1:
        raise UsageError(f"--mesh {named} takes {asked} devices, and on several hosts all {there} have to take part")


def devices(mesh: dict[str, int] | None, **divided: tuple[str, int]) -> Devices:
    """The first devices there are, as the mesh that was asked for.

    Args:
        mesh: devices along each axis.
        **divided: what lies along the axis, as a message names it, and how many there are of it.

    Raises:
        UsageError: an axis does not divide what lies along it.
    """
    if mesh is None:
        return Devices()
    for axis, (what, count) in divided.items():
        if count % mesh.get(axis, 1):
            raise UsageError(f"--mesh {axis}={mesh[axis]} does not divide {what}")
    sizes: dict[str, Any] = {**mesh, **{axis: 1 for axis in AXES if axis not in mesh}}
    return Devices(parallel.mesh(**sizes, devices=jax.devices()[: math.prod(mesh.values())]))
