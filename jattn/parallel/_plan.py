"""The plan of a call over many devices: by which strategy, what is sent, how long that takes, what is hidden."""

from __future__ import annotations

import dataclasses
import math
from typing import Unpack

import jax
import numpy as np
from jattn_kernels import chips
from jattn_kernels.tiles.work import FULL, PARTIAL
from jax.sharding import AbstractMesh, Mesh
from jax.typing import ArrayLike

from jattn import _terms, api
from jattn._call import checks, modes, targets
from jattn._call.layouts import Order
from jattn._call.options import ShardedPlanOptions
from jattn._call.plan import Plan, _short, plan
from jattn._call.problem import Problem
from jattn._terms import Terms
from jattn._terms.moved import moved
from jattn.backends.contract import Backend
from jattn.parallel import _checks, _cost
from jattn.parallel._cost import Cost, Load
from jattn.parallel._ring.pieces import kinds
from jattn.parallel._sharded_call import MeshAxes, Strategy
from jattn.parallel._shares import Shares


@dataclasses.dataclass(frozen=True)
class ParallelPlan:
    """What `jattn.parallel.attention` would do with the same arguments, forward; prints as a table.

    >>> import jax, jattn
    >>> x = jax.ShapeDtypeStruct((1, 8192, 8, 64), "bfloat16")
    >>> mesh = jax.sharding.AbstractMesh((4,), ("sequence",))
    >>> plan = jattn.parallel.explain(x, x, x, mask=jattn.masks.causal(), mesh=mesh, sequence_axis="sequence")
    >>> plan.strategy, plan.devices, round(plan.balance, 2)
    ('ring', 4, 0.57)
    >>> plan.why, sorted(plan.others)
    ('a softmax joins over parts of the keys, and what is sent hides behind what is computed', ['all_to_all', 'gather'])
    """

    strategy: str
    """The strategy chosen."""
    why: str
    """The rule by which, or that it was asked for."""
    others: dict[str, str]
    """Each other strategy: what it would take, or why it cannot."""
    devices: int
    """How many devices the sequence lies over."""
    sent: int
    """Bytes that a device sends."""
    memory: int
    """Bytes a device: of its inputs, outputs and what the strategy holds beside them."""
    balance: float | None
    """Work of the mean device as a share of that of the busiest; None where it is known only at run time."""
    compute: float | None
    """Estimated milliseconds that a device computes; None where the chip is not known."""
    network: float | None
    """Estimated milliseconds that it sends."""
    hidden: float | None
    """The share of those during which it computes."""
    one: Plan
    """The plan of the same call on one device."""

    def __str__(self) -> str:
        ms = lambda x: "known for a chip: device=" if x is None else f"{x:.3g} ms"
        rows = [
            ("strategy", f"{self.strategy}: {self.why}"),
            *((f"  not {name}", what) for name, what in self.others.items()),
            ("shapes", self.one.shape),
            ("devices", f"{self.devices} along the sequence, on each {self.one.backend}"),
            ("balance", "known at run time" if self.balance is None else f"{self.balance:.0%} of the busiest device's"),
            ("sent", f"{_short(self.sent, 1024)}B a device, forward"),
            ("memory", f"{_short(self.memory, 1024)}B a device"),
            ("compute", ms(self.compute)),
            ("network", ms(self.network) + ("" if self.hidden is None else f", {self.hidden:.0%} hidden")),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


@modes.ordinary
def explain(
    query: ArrayLike | jax.ShapeDtypeStruct,
    key: ArrayLike | jax.ShapeDtypeStruct,
    value: ArrayLike | jax.ShapeDtypeStruct,
    *,
    mesh: Mesh | AbstractMesh | None = None,
    batch_axis: str | None = None,
    head_axis: str | None = None,
    sequence_axis: str,
    strategy: Strategy | None = None,
    order: Order = "contiguous",
    implementation: str | Backend | None = None,
    blocks: tuple[int, int] | None = None,
    device: str | None = None,
    **options: Unpack[ShardedPlanOptions],
) -> ParallelPlan:
    """The plan of `jattn.parallel.attention` with the same arguments.  Nothing is run.

    Times are estimates of the forward pass: those of `jattn.explain` for one chip, of which the busiest device of each
    step takes its share, and what a ring reads and writes beside; and the bytes that a device sends, over the rate of
    one link.  `python -m bench scale` of the project predicts whole pods by the same formulas, gradients too.

    Args:
      query: `[b, t, h, d]`, an array or a `jax.ShapeDtypeStruct`, of all devices.
      key: `[b, s, g, d]`, likewise.
      value: `[b, s, g, e]`, likewise.
      mesh: as in `attention`; a `jax.sharding.AbstractMesh` needs no devices.
      batch_axis: as in `attention`.
      head_axis: likewise.
      sequence_axis: likewise.
      strategy: likewise.
      order: likewise.
      implementation: likewise.
      blocks: likewise.
      device: a chip that need not be here, as in `jattn.explain`.
      **options: all else that `attention` takes.

    Raises:
      ValueError, TypeError: what `attention` would not take; there is no such device.

    >>> import jax, jattn
    >>> x = jax.ShapeDtypeStruct((1, 131072, 8, 128), "bfloat16")
    >>> mesh = jax.sharding.AbstractMesh((16,), ("sequence",))
    >>> options = {"mesh": mesh, "sequence_axis": "sequence", "mask": jattn.masks.causal(), "device": "v5p"}
    >>> plan = jattn.parallel.explain(x, x, x, order="zigzag", **options)
    >>> plan.strategy, round(plan.balance, 2)
    ('ring', 1.0)
    >>> plan.compute < jattn.parallel.explain(x, x, x, **options).compute
    True
    """
    _checks.check_choices(strategy, order)
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    axes = _checks.mesh_axes(mesh, batch_axis, head_axis, sequence_axis)
    arrays = [checks.array(x, n) for x, n in ((query, "query"), (key, "key"), (value, "value"))]
    problem = checks.problem(*arrays, **api._named("parallel.explain", options, ("pages", "scales")))
    _checks.check_sizes(problem.sizes, axes, order, False)
    chosen = strategy or _checks.default_strategy(problem, axes, False)
    _checks.check_strategy(problem, axes, chosen, False)
    target = targets.current() if device is None else targets.named(device)
    one = plan(problem, implementation, checks.blocks(blocks), target.chip if device is None else device)
    shares = Shares(axes.devices, order == "zigzag")
    work = _work(problem, shares)
    load, times = _load(problem, axes), _times(one, axes, work)
    chip = chips.CHIPS.get(target.chip or "")
    cost = {x: _cost.cost(x, load, times, chip) for x in ("ring", "all_to_all", "gather")}
    mean_of_busiest = None if work is None else float(work.sum(1).mean() / work.sum(1).max())
    return ParallelPlan(
        chosen, _why(strategy, problem, chosen), _others(problem, axes, chosen, cost), axes.devices, cost[chosen].sent,
        cost[chosen].memory, 1.0 if chosen == "all_to_all" else mean_of_busiest, cost[chosen].compute,
        cost[chosen].network, cost[chosen].hidden, one,
    )  # fmt: skip


def _why(asked: str | None, problem: Problem, chosen: str) -> str:
    if asked is not None:
        return "asked for"
    if chosen == "ring":
        return "a softmax joins over parts of the keys, and what is sent hides behind what is computed"
    whole = f"normalizer {type(problem.normalizer).__name__.lower()} sees whole rows"
    return f"{whole}, and heads divide" if chosen == "all_to_all" else f"{whole}, and heads do not divide"


def _others(problem: Problem, axes: MeshAxes, chosen: str, cost: dict[str, Cost]) -> dict[str, str]:
    others = {}
    for name, x in cost.items():
        if name == chosen:
            continue
        try:
            _checks.check_strategy(problem, axes, name, False)  # type: ignore[arg-type]
        except (ValueError, NotImplementedError) as error:
            others[name] = str(error).removeprefix("parallel.attention: ")
            continue
        time = "" if x.total is None else f", {x.total:.3g} ms in all"
        others[name] = f"sends {_short(x.sent, 1024)}B, takes {_short(x.memory, 1024)}B of memory{time}"
    return others


def _work(problem: Problem, shares: Shares) -> np.ndarray | None:
    """How much there is to compute for each device's queries and each device's keys, `[n, n]`, 1 where all is full.

    None where that depends on arrays.
    """
    mask = _terms.bind(problem.mask, *problem.origin.indices(problem.sizes["b"], problem.sizes["h"]))
    mask = moved(Terms(None, mask=mask, offsets=problem.origin.offsets))
    table = kinds(mask, problem.sizes["t"], problem.sizes["s"], shares)
    if table is None:
        return None
    every = np.arange(shares.devices)
    chunks = np.stack([shares.chunk(every, n) for n in range(shares.each)])
    # Of what a mask hides in part, about a half is computed.
    of = np.where(table == FULL, 1.0, np.where(table == PARTIAL, 0.5, 0.0))
    return of[chunks[:, None, :, None], chunks[None, :, None, :]].mean((0, 1))


def _load(problem: Problem, axes: MeshAxes) -> Load:
    n, heads = axes.devices, axes.count(axes.head)
    share = lambda x, heads: math.prod(x.shape) * x.dtype.itemsize // (n * axes.count(axes.batch) * heads)
    keys = sum(share(x, min(heads, problem.sizes["g"])) for x in (problem.key, problem.value))
    query = share(problem.query, heads)
    out = query * problem.sizes["e"] // problem.query.shape[-1]
    return Load(n, query, keys, out, problem.query.dtype.itemsize)


def _times(one: Plan, axes: MeshAxes, work: np.ndarray | None) -> np.ndarray | None:
    """Milliseconds of each device's queries with each device's keys: their share of what one device takes for all."""
    if one.milliseconds is None:
        return None
    work = np.ones((axes.devices,) * 2) if work is None else work
    return one.milliseconds / (axes.count(axes.batch) * axes.count(axes.head)) * work / work.sum()
