"""Whose kernels are compiled: jattn's, tokamax's and those that come with JAX, each in its native layout.

What peers ask of a device that is not there is answered for them here, and nowhere else.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jattn_kernels.chips import GPUS

from bench.gpu._cases import Case
from bench.gpu._terms import ASKS, CAP

Program = tuple[Callable[..., Any], Sequence[jax.ShapeDtypeStruct]]
Role = str
FORWARD, QUERIES, KEYS, BIAS = "forward", "dq", "dkv", "dbias"
"""What a kernel computes: out and lse; the queries' gradients; the keys' and values'; an array's of pairs or diagonals
alone."""
PRODUCTS = {FORWARD: (1, 1), QUERIES: (2, 1), KEYS: (2, 2), BIAS: (1, 1)}
"""By role, how often d and e multiply-adds are made for each score."""


@dataclass(frozen=True)
class Contender:
    """One library.

    Attributes:
        name: in the tables.
        package: what has to be installed.
        program: for a case, a function and the shapes of its arguments.
        roles: by a pattern that a kernel's name has, what it computes.
        order: what kernels may compute whose names do not say it: the first kernel of a program the first of these,
            later ones any of the others, likelier the one in their place.
        skips: why a case is not for it, "" if it is.
    """

    name: str
    package: str
    program: Callable[[Case], Program]
    roles: Mapping[str, Role]
    order: Sequence[Role] = ()
    skips: Callable[[Case], str] = lambda case: ""

    def may_be(self, name: str, place: int) -> list[Role]:
        """What the place-th kernel of a program may compute: likelier first, nothing if nobody knows."""
        for pattern, role in self.roles.items():
            if re.search(pattern, name):
                return [role]
        if not place:
            return list(self.order[:1])
        return sorted(self.order[1:], key=lambda role: self.order.index(role) != place)


def differentiated(
    case: Case, attend: Callable[..., Any], rest: Sequence[Any] = (), dtype: str = "bfloat16"
) -> Program:
    """attend(q, k, v, *rest), with the backward also its gradients for a cotangent; q `[b, t, h, d]`, k, v
    `[b, s, g, d]`."""

    def forward_backward(
        g: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array
    ) -> tuple[jax.Array, ...]:
        floats = [x for x in rest if jnp.issubdtype(x.dtype, jnp.floating)]

        def of_floats(q: jax.Array, k: jax.Array, v: jax.Array, *floats: jax.Array) -> jax.Array:
            left = iter(floats)
            return attend(q, k, v, *(next(left) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in rest))

        out, pull_back = jax.vjp(of_floats, q, k, v, *floats)
        return out, *pull_back(g)

    query, key = (jax.ShapeDtypeStruct(x, jnp.dtype(dtype)) for x in (case.query, case.key))
    arrays = [query, key, key, *rest]
    return (forward_backward, [query, *arrays]) if case.backward else (attend, arrays)


def jattn_program(case: Case, implementation: str = "pallas_gpu") -> Program:
    """`jattn.attention` on its GPU kernels, or another backend, by its public name."""
    import jattn

    ask = ASKS[case.ask]
    arrays = ask.arrays(case.b, case.key[1], case.h)
    rest = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in arrays.values()]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array) -> jax.Array:
        options = case.options(dict(zip(arrays, rest, strict=True)))
        return jattn.attention(q, k, v, implementation=implementation, **options)

    return differentiated(case, attend, rest)


def mgpu_program(case: Case) -> Program:
    """JAX's own example of a Hopper kernel, at the tile sizes of its own tests: 64 rows a warpgroup, 128 keys; it takes
    float16 alone."""
    from jax.experimental.pallas.ops.gpu import attention_mgpu

    class Versions:
        cuda_runtime_get_version = staticmethod(lambda: 1000 * 13)

    setattr(attention_mgpu, "cuda_versions", Versions)  # noqa: B010  (it asks the CUDA library, which is not here)
    keys = 128 if case.d <= 128 else 64
    blocks: dict[str, Any] = dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), 64)
    config = attention_mgpu.TuningConfig(
        block_q=64,
        block_kv=keys,
        max_concurrent_steps=2,
        causal=case.mask == "causal",
        compute_wgs_bwd=2,
        **(blocks if case.backward else {}),
    )
    attend = lambda q, k, v: attention_mgpu.attention(q, k, v, config)
    return differentiated(case, attend, dtype="float16")


def _mgpu_skips(case: Case) -> str:
    if case.chip not in ("h100", "h200"):
        return "it is for Hopper"
    if case.backward and case.mask != "full":
        return "it has no causal backward"
    return "" if case.ask in ("plain", "causal") else f"it has no {case.ask}"


def tokamax_program(case: Case) -> Program:
    """tokamax's attention on its Mosaic kernels."""
    import tokamax  # pyright: ignore[reportMissingImports]

    _tokamax_device(case)
    attention: Any = tokamax.dot_product_attention  # options come as a dictionary
    options: dict[str, Any] = {"is_causal": case.mask == "causal", "implementation": "mosaic_gpu"}
    if case.ask == "softcap":
        options["logits_soft_cap"] = CAP

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, *bias: jax.Array) -> jax.Array:
        more = {"bias": bias[0]} if bias else {}
        return attention(q, k, v, **options, **more)

    bias = [jax.ShapeDtypeStruct((case.h, case.t, case.t), jnp.bfloat16)] if case.ask == "bias" else []
    return differentiated(case, attend, bias)


def _tokamax_device(case: Case) -> None:
    """Answers what tokamax asks of its device: which it is, and what it can."""
    from jax.extend import backend
    from tokamax._src import gpu_utils  # pyright: ignore[reportMissingImports]

    chip = GPUS[case.chip]
    major, minor = chip.capability

    class Device:
        platform = "gpu"
        core_count = chip.cores
        compute_capability = f"{major}.{minor}"
        device_kind = chip.card

    answers: dict[str, Any] = {
        "_compute_capability": lambda device=None: major + minor / 10,
        "has_mosaic_gpu_support": lambda device=None: True,
    }
    for name, answer in answers.items():
        setattr(gpu_utils, name, answer)
    setattr(backend, "get_default_device", lambda: Device)  # noqa: B010


def _tokamax_skips(case: Case) -> str:
    if case.chip == "a100":
        return "its Mosaic kernels are for Hopper and Blackwell"
    return "" if case.ask in ("plain", "causal", "softcap", "bias") else f"it has no {case.ask}"


JATTN = Contender(
    "jattn",
    "jattn",
    jattn_program,
    # the patterns are tried in this order: all of a backward's kernels may have `backward` in their names
    {"bias|pairs": BIAS, "dkv|keys": KEYS, "dq|queries": QUERIES, "forward|fwd": FORWARD},
    (FORWARD, QUERIES, KEYS),
)
PEERS = {
    "tokamax": Contender(
        "tokamax",
        "tokamax",
        tokamax_program,
        {"dkv": KEYS, "dq": QUERIES, "fwd|forward": FORWARD},
        (FORWARD, QUERIES, KEYS),
        _tokamax_skips,
    ),
    "mgpu": Contender("mgpu", "jax", mgpu_program, {"dkv": KEYS, "dq": QUERIES}, (FORWARD, QUERIES, KEYS), _mgpu_skips),
}
CONTENDERS = {"jattn": JATTN, **PEERS}


def installed() -> list[str]:
    """The peers that are here."""
    return [name for name, peer in PEERS.items() if importlib.util.find_spec(peer.package) is not None]
