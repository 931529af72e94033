"""Whose kernels are compiled: jattn's and tokamax's splash attention, in bfloat16, each in its native layout.

A contender makes a program for a case and a setting. Settings are dictionaries that JSON can hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bench._tpu_cases import WINDOW, Case

Setting = dict[str, Any]
Program = tuple[Callable[..., Any], Sequence[jax.ShapeDtypeStruct]]


@dataclass(frozen=True)
class Contender:
    """One library.

    `package` is what has to be installed. `settings(case)` are those of which the best counts; `program(case, setting)`
    is a function and the shapes of its arguments. `split(setting)` is what the forward and the backward kernels of one
    call must share: the best of each is taken on its own within it. `cached` says whether results may be kept.
    """

    name: str
    package: str
    settings: Callable[[Case], list[Setting]]
    program: Callable[[Case, Setting], Program]
    split: Callable[[Setting], str] = str
    cached: bool = False


def differentiated(case: Case, attend: Callable[..., Any], shape: tuple[int, ...]) -> Program:
    """attend(q, k, v), with the backward also the gradients of sum(out * g), of bfloat16 arrays of that shape."""

    def forward_backward(q, k, v, g):
        out, pull_back = jax.vjp(attend, q, k, v)
        return out, *pull_back(g)

    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    return (forward_backward, [array] * 4) if case.backward else (attend, [array] * 3)


def jattn_program(case: Case, setting: Setting) -> Program:
    """jattn.attention on its TPU kernels; `forward` and `backward` in the setting are sizes in the table's place.

    The table stays replaced: what is compiled looks it up later, in a process that does nothing else.
    """
    from jattn_kernels import tables

    import jattn
    from jattn import masks

    mask = {"full": None, "causal": masks.causal(), "window": masks.causal() & masks.window(left=WINDOW - 1)}[case.mask]
    rows = tuple(
        tables.Entry(case.chip, case.d, case.t, case.mask, direction, setting[direction], 1.0, 1)
        for direction in tables.PASSES
        if direction in setting
    )
    tables.entries = (lambda: rows) if rows else tables.read

    def attend(q, k, v):
        return jattn.attention(q, k, v, mask=mask, implementation="pallas_tpu")

    return differentiated(case, attend, (case.b, case.t, case.h, case.d))


_SETTINGS = {  # query block, key block, keys a step; whether k is [d, t]; the experimental scheduler
    "full": (
        (2048, 2048, 256, True, True),
        (2048, 2048, 512, False, True),
        (1024, 2048, 512, True, True),
        (1024, 2048, 1024, True, False),
        (1024, 2048, 1024, False, True),
        (1024, 1024, 512, True, True),
        (1024, 1024, 512, False, True),
        (1024, 1024, 512, False, False),
    ),
    "causal": (
        (2048, 2048, 256, True, True),
        (1024, 2048, 512, True, True),
        (1024, 1024, 512, True, True),
        (1024, 1024, 512, False, False),
        (512, 512, 512, True, True),
        (512, 512, 512, True, False),
        (512, 512, 512, False, False),
        (512, 512, 256, False, False),
    ),
    "window": (
        (1024, 1024, 512, True, True),
        (1024, 512, 512, True, False),
        (512, 1024, 512, True, False),
        (512, 512, 512, True, True),
        (512, 512, 512, True, False),
        (512, 512, 512, False, False),
        (256, 512, 512, True, False),
        (256, 256, 256, True, False),
    ),
}


def splash_settings(case: Case) -> list[Setting]:
    """The eight of some thirty tried that were best somewhere, or near it."""
    return [
        {"tiles": tiles, "k_transposed": k_transposed, "scheduler": scheduler}
        for *tiles, k_transposed, scheduler in _SETTINGS[case.mask]
    ]


def splash_program(case: Case, setting: Setting) -> Program:
    """tokamax's splash kernel on [b * h, t, d], its mask tables made for a static mask."""
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_kernel as splash,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_mask as masks,
    )

    block_q, block_kv, block_kv_compute = (min(size, case.t) for size in setting["tiles"])
    square = (case.t, case.t)
    mask = {
        "full": lambda: masks.FullMask(square),
        "causal": lambda: masks.CausalMask(square),
        "window": lambda: masks.LocalMask(square, window_size=(WINDOW - 1, 0), offset=0),
    }[case.mask]()
    layouts = splash.QKVLayout
    config = splash.SplashConfig(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv_compute,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv_compute,
        k_layout=layouts.SEQ_MINOR if setting["k_transposed"] else layouts.HEAD_DIM_MINOR,
        use_experimental_scheduler=setting["scheduler"],
    )
    attend = splash.make_splash_mha_single_device(mask, config=config)
    return differentiated(case, attend, (case.b * case.h, case.t, case.d))


JATTN = Contender("jattn", "jattn", lambda case: [{}], jattn_program)
PEERS = {
    "splash": Contender(
        "splash", "tokamax", splash_settings, splash_program, lambda setting: str(setting["k_transposed"]), cached=True
    )
}
CONTENDERS = {"jattn": JATTN, **PEERS}
