"""Whose calls are timed on a GPU: jattn's two backends, `jax.nn` on cuDNN and on XLA, tokamax, torch's FlexAttention.

Each gets arrays in its native layout, made before the clock starts, in as many copies as keep them out of the caches.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.gpu._cases import Case
from bench.gpu._terms import CAP, Arrays

if TYPE_CHECKING:  # what torch is timed with does without JAX
    import jax

    from jattn.backends.contract import Fused

Call = Callable[[int], Any]
"""Begins the call on the copy of that number, and returns what `wait` waits for."""
Attend = Callable[[Arrays, "jax.Array", "jax.Array", "jax.Array"], "jax.Array"]
"""out, of the ask's arrays by name and of q, k and v."""
_OF_JAX_NN = ("plain", "causal", "window", "segments", "alibi", "bias", "decode")
LARGEST_SCORES = 40 * 2**30  # bytes of arrays of all pairs above which a peer sits a case out


@dataclass(frozen=True)
class Prepared:
    """What is timed: `draw()` makes `copies` sets of arrays and returns what begins a call on one of them; `wait(x)`
    waits for what a call returned.

    All that can be done without the GPU is done: others may be timed on it meanwhile.
    """

    draw: Callable[[], Call]
    wait: Callable[[Any], Any]
    copies: int


@dataclass(frozen=True)
class Runner:
    """One library.

    Attributes:
        name: in the tables.
        package: what has to be installed.
        prepare: for a case and a number of copies, arrays and a compiled call.
        skips: why a case is not for it, "" if it is.
    """

    name: str
    package: str
    prepare: Callable[[Case, int], Prepared]
    skips: Callable[[Case], str] = lambda case: ""


def copies(case: Case, second_level: int) -> int:
    """So many sets of q, k, v (and the cotangent) that one is out of a cache of that size when its turn comes again."""
    one = 2 * ((2 if case.backward else 1) * math.prod(case.query) + 2 * math.prod(case.key))
    return min(64, 1 + -(-2 * second_level // one))


def _jax_prepared(case: Case, count: int, attend: Attend) -> Prepared:
    """attend(arrays, q, k, v), in one jitted program, with the gradients of q, k, v where the case has them."""
    import jax
    import jax.numpy as jnp

    drawn = case.values(np.random.default_rng(0))
    if "bias" in drawn:
        drawn["bias"] = drawn["bias"].astype(jnp.bfloat16)
    shapes = [case.query, case.key, case.key, *([case.query] if case.backward else [])]

    def forward_backward(
        arrays: Arrays, q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array
    ) -> tuple[jax.Array, ...]:
        out, pull_back = jax.vjp(lambda q, k, v: attend(arrays, q, k, v), q, k, v)
        return out, *pull_back(g)

    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), drawn)
    each = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    program = jax.jit(forward_backward if case.backward else attend).lower(like, *each).compile()

    def draw() -> Call:
        arrays = jax.tree.map(jnp.asarray, drawn)
        make = jax.jit(lambda key, shape: jax.random.normal(key, shape, jnp.bfloat16), static_argnums=1)
        keys = iter(jax.random.split(jax.random.key(0), count * len(shapes)))
        sets = [[make(next(keys), shape) for shape in shapes] for _ in range(count)]
        return lambda n: program(arrays, *sets[n])

    return Prepared(draw, jax.block_until_ready, count)


def _jattn(implementation: str | Fused) -> Callable[[Case, int], Prepared]:
    def prepare(case: Case, count: int) -> Prepared:
        import jattn

        attend = lambda arrays, q, k, v: jattn.attention(q, k, v, implementation=implementation, **case.options(arrays))
        return _jax_prepared(case, count, attend)

    return prepare


def backend_with(settings: Mapping[str, Mapping[str, Any]]) -> Fused:
    """The backend with sizes in the place of the tuned ones: the one place that knows how the library takes them."""
    from jattn_kernels.gpu.sizes import TileSizes

    from jattn.backends.pallas_gpu import PALLAS_GPU
    from jattn.backends.pallas_gpu.settings import Settings

    return dataclasses.replace(
        PALLAS_GPU, settings=Settings(**{name: TileSizes(**one) for name, one in settings.items()})
    )


def jattn_with(settings: Mapping[str, Mapping[str, Any]]) -> Callable[[Case, int], Prepared]:
    """jattn's GPU kernels with sizes in the place of the tuned ones, for `bench.gpu.tune`."""
    return _jattn(backend_with(settings))


def _jax_nn(implementation: str) -> Callable[[Case, int], Prepared]:
    return lambda case, count: _jax_prepared(case, count, jax_nn_attend(case, implementation))


def jax_nn_attend(case: Case, implementation: str) -> Attend:
    """`jax.nn.dot_product_attention` with what it has for each ask: causal and window arguments, else arrays."""
    import jax
    import jax.numpy as jnp

    attention: Any = jax.nn.dot_product_attention  # its signature names each implementation
    own = functools.partial(attention, implementation=implementation)
    i, j = np.arange(case.t)[:, None], np.arange(case.t)[None]

    def attend(arrays: Arrays, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        match case.ask:
            case "plain":
                return own(q, k, v)
            case "decode":
                return own(q, k, v, key_value_seq_lengths=arrays["lengths"])
            case "window":
                return own(q, k, v, is_causal=True, local_window_size=(case.window - 1, 0))
            case "segments":
                ids = arrays["ids"]
                return own(q, k, v, is_causal=True, mask=ids[:, None, :, None] == ids[:, None, None, :])
            case "alibi":
                distance = jnp.asarray(np.abs(i - j), jnp.bfloat16)
                bias = -arrays["slopes"].astype(jnp.bfloat16)[None, :, None, None] * distance
                return own(q, k, v, bias=bias, is_causal=True)
            case "bias":
                return own(q, k, v, bias=arrays["bias"][None], is_causal=True)
            case _:
                return own(q, k, v, is_causal=True)

    return attend


def fills_memory(case: Case) -> bool:
    """Whether a peer makes an array of all pairs that is a GiB or more, which its process would keep."""
    return case.ask in ("segments", "alibi", "bias") and 2 * case.b * case.h * case.t**2 >= 2**30


def _dense_bytes(case: Case) -> int:
    """What float32 scores of all pairs take, twice, and twice that with the gradients."""
    return 4 * case.b * case.h * case.t * case.key[1] * (4 if case.backward else 2)


def _xla_skips(case: Case) -> str:
    if case.ask not in _OF_JAX_NN:
        return f"jax.nn has no {case.ask}"
    needed = _dense_bytes(case)
    return f"its scores would take {needed / 2**30:.0f} GiB" if needed > LARGEST_SCORES else ""


def _cudnn_skips(case: Case) -> str:
    if case.ask not in _OF_JAX_NN:
        return f"jax.nn has no {case.ask}"
    array = 2 * case.b * case.h * case.t**2
    if case.ask in ("segments", "alibi", "bias") and array > LARGEST_SCORES:
        return f"its array of {case.ask} would take {array / 2**30:.0f} GiB"
    return ""


def _tokamax_prepare(case: Case, count: int) -> Prepared:
    import tokamax  # pyright: ignore[reportMissingImports]

    more: dict[str, Any] = {"implementation": "mosaic_gpu"}
    if case.ask == "softcap":
        more["logits_soft_cap"] = CAP
    if case.ask == "window":
        more["local_window_size"] = (case.window - 1, 0)

    def attend(arrays: Arrays, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        bias = {"bias": arrays["bias"]} if "bias" in arrays else {}
        causal = case.mask != "full"
        return tokamax.dot_product_attention(q, k, v, is_causal=causal, **more, **bias)

    return _jax_prepared(case, count, attend)


def _tokamax_skips(case: Case) -> str:
    return "" if case.ask in ("plain", "causal", "softcap", "window", "bias") else f"it has no {case.ask}"


def _torch_prepare(case: Case, count: int) -> Prepared:
    """FlexAttention, compiled, on [b, h, t, d]: score and mask functions as its documentation writes them."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.attention.flex_attention import (  # pyright: ignore[reportMissingImports]
        create_block_mask,
        flex_attention,
    )

    device = "cuda"
    drawn = case.values(np.random.default_rng(0))
    arrays = {name: torch.from_numpy(np.array(x)).to(device) for name, x in drawn.items() if name != "seed"}
    if "bias" in arrays:
        arrays["bias"] = arrays["bias"].to(torch.bfloat16)
    score_mod, mask_mod = _torch_functions(torch, case, arrays)
    block_mask = mask_mod and create_block_mask(mask_mod, case.b, None, case.t, case.t, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)
    shape = (case.b, case.h, case.t, case.d)
    random = lambda: torch.randn(shape, device=device, dtype=torch.bfloat16)
    sets = [[random() for _ in range(4)] for _ in range(count)]
    if case.backward:
        for one in sets:
            for x in one[:3]:
                x.requires_grad_()

    def call(n: int) -> Any:
        q, k, v, g = sets[n]
        if not case.backward:
            with torch.no_grad():
                return compiled(q, k, v, score_mod=score_mod, block_mask=block_mask)
        out = compiled(q, k, v, score_mod=score_mod, block_mask=block_mask)
        return torch.autograd.grad(out, (q, k, v), g)

    call(0)  # the first call compiles, which is not to be timed
    return Prepared(lambda: call, lambda _: torch.cuda.synchronize(), count)


def _torch_functions(torch: Any, case: Case, arrays: dict[str, Any]) -> tuple[Any, Any]:
    """The score function and the mask function of an ask, None where it has none."""
    causal = lambda b, h, i, j: i >= j
    ids: Any = arrays.get("ids")
    mask = {
        "full": None,
        "causal": causal,
        "window": lambda b, h, i, j: (i >= j) & (i - j < case.window),
        "segments": lambda b, h, i, j: (i >= j) & (ids[b, i] == ids[b, j]),
    }[case.mask]
    cap = lambda s: CAP * torch.tanh(s / CAP)
    score = {
        "alibi": lambda s, b, h, i, j: s - arrays["slopes"][h] * (i - j),
        "softcap": lambda s, b, h, i, j: cap(s),
        "all": lambda s, b, h, i, j: cap(s - arrays["slopes"][h] * (i - j)),
        "bias": lambda s, b, h, i, j: s + arrays["bias"][h, i, j],
        "user": lambda s, b, h, i, j: torch.where(
            i - j < 100, torch.tanh(s) * arrays["scale"][h], s * torch.exp(-torch.abs(arrays["decay"][b, i]))
        ),
    }.get(case.ask)
    return score, mask


def _torch_skips(case: Case) -> str:
    if case.ask == "decode":
        return "its kernel for few queries is not asked here"
    return f"FlexAttention has no {case.ask}" if case.ask in ("dropout", "relative") else ""


RUNNERS = {
    one.name: one
    for one in (
        Runner("jattn", "jattn", _jattn("pallas_gpu")),
        Runner("cudnn", "jax", _jax_nn("cudnn"), _cudnn_skips),
        Runner("tokamax", "tokamax", _tokamax_prepare, _tokamax_skips),
        Runner("torch", "torch", _torch_prepare, _torch_skips),
        Runner("blockwise", "jattn", _jattn("blockwise")),
        Runner("xla", "jax", _jax_nn("xla"), _xla_skips),
    )
}
"""In the order in which they are timed: a run may be cut off at any time."""


def installed() -> list[str]:
    """Those that are here."""
    return [name for name, one in RUNNERS.items() if importlib.util.find_spec(one.package) is not None]
