"""Meshes in which the devices of a sequence are a closed loop of neighbours.

A ring sends from each device to the next and from the last to the first.  On a torus without a link between the ends of
a row (a part of a TPU pod) that last step of a straight row goes through all its chips, and XLA then waits for it in
the place of computing meanwhile.  A loop over two rows has neighbours alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jattn._terms import is_whole

# Devices are Any: JAX's type of them is none to type checkers.


def mesh(*, sequence_axis: str = "sequence", devices: Sequence[Any] | None = None, **sizes: int) -> Mesh:
    """A mesh of such axes, in which the devices along the sequence are a closed loop of neighbours wherever chips say
    where they stand (TPU), and side by side elsewhere.

    Args:
      sequence_axis: which of the axes a ring goes along.
      devices: those to take, all of `jax.devices()` unless given; also those of a topology that is only compiled for.
      **sizes: how many devices along each axis, in the order of the axes: `mesh(data=2, sequence=4)`.

    Returns:
      The mesh, whose axes are of type Auto.  Where no closed loop of such a length fits in the torus, as an odd one
      does not, devices are in the order of `jax.make_mesh`.

    Raises:
      ValueError: sizes are no ints >= 1, or there are not as many devices.

    >>> import jax, jattn
    >>> mesh = jattn.parallel.mesh(data=1, sequence=1, devices=jax.devices()[:1])
    >>> mesh.axis_names
    ('data', 'sequence')
    """
    if not sizes or any(not is_whole(n) or n < 1 for n in sizes.values()):
        raise ValueError(f"mesh: sizes must be ints >= 1, one for each axis, got {sizes}")
    devices, names, shape = list(jax.devices() if devices is None else devices), tuple(sizes), tuple(sizes.values())
    if math.prod(shape) != len(devices):
        asked = " x ".join(f"{name} {n}" for name, n in sizes.items())
        raise ValueError(f"mesh: {asked} takes {math.prod(shape)} devices, and there are {len(devices)}")
    auto = (AxisType.Auto,) * len(names)
    order = _in_loops(devices, sizes.get(sequence_axis, 1))
    if order is None:
        return jax.make_mesh(shape, names, auto, devices=devices)
    at = names.index(sequence_axis)
    rest = [n for name, n in sizes.items() if name != sequence_axis]
    array = np.array(devices, dtype=object)[order].reshape(*rest, shape[at])
    return Mesh(np.moveaxis(array, -1, at), names, axis_types=auto)


def _in_loops(devices: Sequence[Any], length: int) -> np.ndarray | None:
    """Which devices make up each loop of such a length, `[loops, length]`; None where they are in none."""
    coordinates = [getattr(x, "coords", None) for x in devices]
    if length == 1 or any(x is None for x in coordinates):
        return None
    places = np.array([(*x, getattr(y, "core_on_chip", 0)) for x, y in zip(coordinates, devices, strict=True)])  # type: ignore[misc]
    return loops(places - places.min(0), length)


def loops(places: np.ndarray, length: int) -> np.ndarray | None:
    """The rows of `places`, the points of a box, as loops `[loops, length]`: a step along one axis leads to the next,
    in all loops the same, and one from the last to the first.  None where there are none."""
    sides = tuple(int(n) for n in places.max(0) + 1)
    if math.prod(sides) != len(places) or len(np.unique(places, axis=0)) != len(places):
        return None  # a box with holes, or with a point taken twice, has no neighbour at every step
    box = min(_boxes(sides, length), key=lambda x: (sorted(x), x), default=None)
    if box is None:
        return None
    number = {tuple(x): n for n, x in enumerate(places.tolist())}
    corners = itertools.product(*(range(0, n, m) for n, m in zip(sides, box, strict=True)))
    loop = _loop(box)
    return np.array([[number[tuple(np.add(corner, x).tolist())] for x in loop] for corner in corners])


def _boxes(sides: tuple[int, ...], length: int) -> Iterator[tuple[int, ...]]:
    """Boxes of `length` points that tile the sides, through which a loop leads."""
    for box in itertools.product(*([m for m in range(1, n + 1) if n % m == 0] for n in sides)):
        if math.prod(box) == length and (length == 2 or (length % 2 == 0 and sum(m > 1 for m in box) > 1)):
            yield box


def _loop(box: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The points of a box as a closed loop: out along the first row of each line, and back through its other rows.

    One axis counts the rows, all others are one line from end to end and back; either of the two has an even length.
    """
    rows = max(range(len(box)), key=lambda n: (box[n] > 1, box[n] % 2 == 0, -box[n]))
    line = _line([m for n, m in enumerate(box) if n != rows])
    at = lambda row, n: (*line[n][:rows], row, *line[n][rows:])
    height, width = box[rows], len(line)
    if width == 1:
        return [at(row, 0) for row in range(height)]
    if height % 2 == 0:  # the last row ends beside the line's first place, along which the way back is free
        there = [at(r, n) for r in range(height) for n in (range(1, width) if r % 2 == 0 else range(width - 1, 0, -1))]
        return [*there, *(at(r, 0) for r in range(height - 1, -1, -1))]
    there = [at(r, n) for n in range(width) for r in (range(1, height) if n % 2 == 0 else range(height - 1, 0, -1))]
    return [*there, *(at(0, n) for n in range(width - 1, -1, -1))]


def _line(sides: Sequence[int]) -> list[tuple[int, ...]]:
    """All points of a box, each beside the one before."""
    if not sides:
        return [()]
    rest = _line(sides[1:])
    return [(n, *x) for n in range(sides[0]) for x in (rest if n % 2 == 0 else reversed(rest))]
