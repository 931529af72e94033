"""Whose kernels are compiled: jattn's and tokamax's splash attention, in bfloat16, each in its native layout.

A contender makes a program for a case and a setting. Settings are dictionaries that JSON can hold.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from bench.tpu._bounds import Known, hopeless
from bench.tpu._cases import WINDOW, Case, Setting
from bench.tpu._published import PLAIN, Published, published

Tiles = Sequence[int]
Program = tuple[Callable[..., Any], Sequence[jax.ShapeDtypeStruct]]


@dataclass(frozen=True)
class Contender:
    """One library.

    `package` is what has to be installed. `parts(case)` are what is counted for a case, each with settings of its own,
    and the program of the last is the whole call: XLA's part is taken from it. `settings(part)` are those of which the
    best counts, first `near(part)`, those of them that are worth a count in any run; `program(part, setting)` is a
    function and the shapes of its arguments. `hopeless(part, setting, settings, known)` says whether by the answers
    that are `known` a setting cannot be the best of the settings. `cached` says whether results may be kept.
    """

    name: str
    package: str
    settings: Callable[[Case], list[Setting]]
    program: Callable[[Case, Setting], Program]
    parts: Callable[[Case], Sequence[Case]] = lambda case: (case,)
    near: Callable[[Case], Sequence[Setting]] = lambda case: ()
    hopeless: Callable[[Case, Setting, Sequence[Setting], Known], bool] = lambda part, setting, settings, known: False
    cached: bool = False


def differentiated(attend: Callable[..., Any], shape: tuple[int, ...], backward: bool) -> Program:
    """attend(q, k, v), with `backward` also the gradients of sum(out * g), of bfloat16 arrays of that shape."""

    def forward_backward(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        out, pull_back = jax.vjp(attend, q, k, v)
        return out, *pull_back(g)

    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    return (forward_backward, [array] * 4) if backward else (attend, [array] * 3)


def jattn_program(case: Case, setting: Setting) -> Program:
    """jattn.attention on its TPU kernels; `forward` and `backward` in the setting are sizes in the table's place."""
    from jattn_kernels import tables
    from jattn_kernels.tpu.sizes import TileSizes

    import jattn
    from jattn import masks
    from jattn.backends.pallas_tpu import PALLAS_TPU
    from jattn.backends.pallas_tpu.settings import Settings

    mask = {"full": None, "causal": masks.causal(), "window": masks.causal() & masks.window(left=WINDOW - 1)}[case.mask]
    forward, backward = (TileSizes(**setting[x]) if x in setting else None for x in tables.PASSES)
    settings = Settings(forward, backward)
    backend = replace(PALLAS_TPU, settings=settings)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jattn.attention(q, k, v, mask=mask, implementation=backend)

    return differentiated(attend, (case.b, case.t, case.h, case.d), case.backward)


_TRIED = {  # query block, key block, keys a step; which of q, k, v are [d, t]; the experimental scheduler
    "full": (
        (2048, 2048, 256, "k", True),
        (2048, 2048, 512, "", True),
        (1024, 2048, 512, "k", True),
        (1024, 2048, 1024, "k", False),
        (1024, 2048, 1024, "", True),
        (1024, 1024, 512, "k", True),
        (1024, 1024, 512, "", True),
        (1024, 1024, 512, "", False),
    ),
    "causal": (
        (2048, 2048, 256, "k", True),
        (1024, 2048, 512, "k", True),
        (1024, 1024, 512, "k", True),
        (1024, 1024, 512, "", False),
        (512, 512, 512, "k", True),
        (512, 512, 512, "k", False),
        (512, 512, 512, "", False),
        (512, 512, 256, "", False),
    ),
    "window": (
        (1024, 1024, 512, "k", True),
        (1024, 512, 512, "k", False),
        (512, 1024, 512, "k", False),
        (512, 512, 512, "k", True),
        (512, 512, 512, "k", False),
        (512, 512, 512, "", False),
        (256, 512, 512, "k", False),
        (256, 256, 256, "k", False),
    ),
}
_SEQ_MINOR = 2  # how the cache writes that an operand is [d, t]
_LARGE = [((4096, 4096, 256), ""), ((4096, 4096, 256), "k"), ((4096, 4096, 512), ""), ((4096, 2048, 512), "")]
_SMALL = (512, 512, 512)  # forward tiles that compile in little time


def splash_parts(case: Case) -> Sequence[Case]:
    """Of a call with gradients the forward, which keeps the logsumexp, and the backward: tokamax's attention gives each
    a setting of its own."""
    return [replace(case, direction=one) for one in (("lse", "bwd") if case.backward else (case.direction,))]


def splash_settings(part: Case) -> list[Setting]:
    """All that count: `near_settings`, then tiles of 4096 and the rest of tokamax's tuning cache, each with both
    schedulers."""
    return _distinct([*near_settings(part), *_scheduled(part, [*_LARGE, *_named(part, published())])])


def near_settings(part: Case) -> list[Setting]:
    """Eight that were best somewhere, or near it, among some thirty tried; and what tokamax's tuning cache names for
    this length, width and mask, with both schedulers. A window takes what is named for a causal mask."""
    tried = [_setting(part, one[:3], *one[3:]) for one in _TRIED[part.mask]]
    mask = "full" if part.mask == "full" else "causal"
    near = [one for one in published() if (one.case.t, one.case.d, one.case.mask) == (part.t, part.d, mask)]
    return _distinct([*tried, *_scheduled(part, _named(part, near))])


def _named(part: Case, entries: Iterable[Published]) -> list[tuple[Tiles, str]]:
    """The tiles of the entries for the part's direction, and which operands are [d, t]: none in a backward, for which
    the cache names no layouts."""
    backward = part.direction == "bwd"
    suffix = "_dkv" if backward else ""
    names = (f"block_q{suffix}", f"block_kv{suffix}", f"block_kv{suffix}_compute")
    return [
        (
            tuple(entry.config[name] for name in names),
            "".join(one for one in "qkv" if not backward and entry.config[f"{one}_layout"] == _SEQ_MINOR),
        )
        for entry in entries
        if (entry.case.direction == "bwd") == backward
    ]


def _scheduled(part: Case, choices: Iterable[tuple[Tiles, str]]) -> list[Setting]:
    return [_setting(part, *one, scheduler) for one in choices for scheduler in (True, False)]


def _setting(part: Case, tiles: Tiles, transposed: str, scheduler: bool) -> Setting:
    """In a form that JSON keeps. A backward of splash is compiled by the same scheduler whatever it is told."""
    scheduler = scheduler or part.direction == "bwd"
    return {"tiles": [min(size, part.t) for size in tiles], "transposed": transposed, "scheduler": scheduler}


def _distinct(settings: Iterable[Setting]) -> list[Setting]:
    return list({json.dumps(one, sort_keys=True): one for one in settings}.values())


def splash_program(part: Case, setting: Setting) -> Program:
    """tokamax's splash kernel on [b * h, t, d], its mask tables made for a static mask.

    A backward's program is the whole call, with small tiles forward.
    """
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_kernel as splash,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_mask as masks,
    )

    backward = part.direction == "bwd"
    block_q, block_kv, block_kv_compute = _SMALL if backward else setting["tiles"]
    block_q_dkv, block_kv_dkv, block_kv_dkv_compute = setting["tiles"]
    square = (part.t, part.t)
    mask = {
        "full": lambda: masks.FullMask(square),
        "causal": lambda: masks.CausalMask(square),
        "window": lambda: masks.LocalMask(square, window_size=(WINDOW - 1, 0), offset=0),
    }[part.mask]()
    layouts = splash.QKVLayout
    layout = {n: layouts.SEQ_MINOR if n in setting["transposed"] else layouts.HEAD_DIM_MINOR for n in "qkv"}
    config = splash.SplashConfig(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv_compute,
        block_q_dkv=block_q_dkv,
        block_kv_dkv=block_kv_dkv,
        block_kv_dkv_compute=block_kv_dkv_compute,
        use_experimental_scheduler=setting["scheduler"],
        q_layout=layout["q"],
        k_layout=layout["k"],
        v_layout=layout["v"],
    )
    attend = splash.make_splash_mha_single_device(mask, config=config, save_residuals=part.direction == "lse")
    return differentiated(attend, (part.b * part.h, part.t, part.d), backward)


def tokamax_program(case: Case, setting: Setting) -> Program:
    """A call of tokamax's attention on [b, t, h, d], as its tuning cache times it: `fwd`, `lse` or `bwd`.

    What the call is made of is entered below its check that there is a TPU.
    """
    from tokamax._src.ops.attention import (  # pyright: ignore[reportMissingImports]
        base,
        pallas_mosaic_tpu,
        pallas_mosaic_tpu_vjp,
    )

    backward = case.direction == "bwd"
    module: Any = pallas_mosaic_tpu_vjp if backward else pallas_mosaic_tpu  # each has an operation and its Config
    operation = module.PallasMosaicTpuFlashAttentionVjp() if backward else module.PallasMosaicTpuFlashAttention()
    options = dict.fromkeys(PLAIN)
    options |= {
        "precision": (jax.lax.DotAlgorithmPreset.BF16_BF16_F32,) * 2,
        "logits_dtype": jnp.dtype(jnp.float32),
        "logits_scale": case.d**-0.5,
        "mask": base.Mask(is_causal=case.mask == "causal"),
        "dropout_rate": 0.0,
        "normalize_output": True,
        "return_residuals": case.direction == "lse",
        "config": module.Config(**setting["config"]),
    }
    query = jax.ShapeDtypeStruct((case.b, case.t, case.h, case.d), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((case.b, case.t, case.h // setting["group"], case.d), jnp.bfloat16)
    lse = jax.ShapeDtypeStruct((case.b, case.h, case.t), jnp.float32)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array) -> Any:
        first = ((rest[0], rest[1]), *rest[2:]) if backward else ()
        return operation._fwd(*first, q, k, v, **options)

    return call, [query, key, key, *([lse, lse, query, query] if backward else [])]


def decode_program(case: Case, setting: Setting) -> Program:
    """A step of `python -m bench decode`, of which the setting says all but the chip."""
    from bench.decode import _cases, _programs

    return _programs.tpu_program(_cases.Case(**setting["step"]), setting["contender"])


JATTN = Contender("jattn", "jattn", lambda case: [{}], jattn_program)
PEERS = {
    "splash": Contender(
        "splash", "tokamax", splash_settings, splash_program, splash_parts, near_settings, hopeless, cached=True
    )
}
TOKAMAX = Contender("tokamax", "tokamax", lambda case: [], tokamax_program, cached=True)
DECODE = Contender("decode", "jattn", lambda case: [], decode_program)
CONTENDERS = {"jattn": JATTN, **PEERS, "tokamax": TOKAMAX, "decode": DECODE}
