"""Whose kernels are compiled: jattn's and tokamax's splash attention, in bfloat16, each in its native layout.

A contender makes a program for a case and a setting. Settings are dictionaries that JSON can hold.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bench.tpu._cases import WINDOW, Case
from bench.tpu._published import PLAIN, Published, published

Setting = dict[str, Any]
Tiles = Sequence[int]
Program = tuple[Callable[..., Any], Sequence[jax.ShapeDtypeStruct]]


@dataclass(frozen=True)
class Contender:
    """One library.

    `package` is what has to be installed. `settings(case)` are those of which the best counts, `near(case)` those of
    them that are worth a count in any run; `program(case, setting)` is a function and the shapes of its arguments.
    `split(setting)` is what the forward and the backward kernels of one call must share: the best of each is taken on
    its own within it. `cached` says whether results may be kept.
    """

    name: str
    package: str
    settings: Callable[[Case], list[Setting]]
    program: Callable[[Case, Setting], Program]
    near: Callable[[Case], Sequence[Setting]] = lambda case: ()
    split: Callable[[Setting], str] = str
    cached: bool = False


def differentiated(case: Case, attend: Callable[..., Any], shape: tuple[int, ...]) -> Program:
    """attend(q, k, v), with the backward also the gradients of sum(out * g), of bfloat16 arrays of that shape."""

    def forward_backward(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        out, pull_back = jax.vjp(attend, q, k, v)
        return out, *pull_back(g)

    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    return (forward_backward, [array] * 4) if case.backward else (attend, [array] * 3)


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
    backend = dataclasses.replace(PALLAS_TPU, settings=settings)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jattn.attention(q, k, v, mask=mask, implementation=backend)

    return differentiated(case, attend, (case.b, case.t, case.h, case.d))


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


def splash_settings(case: Case) -> list[Setting]:
    """All that count: `near_settings`, then tiles of 4096 and the rest of tokamax's tuning cache, each with both
    schedulers."""
    forwards, backwards = _named(published())
    far = _combined(case, [*_LARGE, *forwards], [*(tiles for tiles, _ in _LARGE), *backwards])
    return _distinct([*near_settings(case), *far])


def near_settings(case: Case) -> list[Setting]:
    """Eight that were best somewhere, or near it, among some thirty tried; and what tokamax's tuning cache names for
    this length, width and mask, with both schedulers. A window takes what is named for a causal mask."""
    tried = [_setting(case, one[:3], one[:3], *one[3:]) for one in _TRIED[case.mask]]
    mask = "full" if case.mask == "full" else "causal"
    near = [one for one in published() if (one.case.t, one.case.d, one.case.mask) == (case.t, case.d, mask)]
    return _distinct([*tried, *_combined(case, *_named(near))])


def _named(entries: Iterable[Published]) -> tuple[list[tuple[Tiles, str]], list[Tiles]]:
    """The tiles and layouts of the forward entries, and the tiles of the backward ones."""
    forwards, backwards = [], []
    for entry in entries:
        suffix = "_dkv" if entry.case.direction == "bwd" else ""
        names = (f"block_q{suffix}", f"block_kv{suffix}", f"block_kv{suffix}_compute")
        tiles = tuple(entry.config[name] for name in names)
        if suffix:
            backwards.append(tiles)
        else:
            forwards.append((tiles, "".join(one for one in "qkv" if entry.config[f"{one}_layout"] == _SEQ_MINOR)))
    return forwards, backwards


def _combined(case: Case, forwards: Sequence[tuple[Tiles, str]], backwards: Sequence[Tiles]) -> list[Setting]:
    """Both schedulers of every layout; in each, forward and backward tiles in turn, until all of both have been."""
    settings = []
    for transposed, scheduler in itertools.product(dict.fromkeys(one for _, one in forwards), (True, False)):
        tiles = [one for one, layout in forwards if layout == transposed]
        turns = max(len(tiles), len(backwards)) if case.backward else len(tiles)
        for n in range(turns):
            backward = backwards[n % len(backwards)] if backwards else tiles[n % len(tiles)]
            settings.append(_setting(case, tiles[n % len(tiles)], backward, transposed, scheduler))
    return settings


def _setting(case: Case, tiles: Tiles, backward: Tiles, transposed: str, scheduler: bool) -> Setting:
    """In a form that JSON keeps; the tiles of the backward only where there is one."""
    fit = lambda sizes: [min(size, case.t) for size in sizes]
    setting = {"tiles": fit(tiles), "transposed": transposed, "scheduler": scheduler}
    return {**setting, "backward": fit(backward)} if case.backward else setting


def _distinct(settings: Iterable[Setting]) -> list[Setting]:
    return list({json.dumps(one, sort_keys=True): one for one in settings}.values())


def splash_program(case: Case, setting: Setting) -> Program:
    """tokamax's splash kernel on [b * h, t, d], its mask tables made for a static mask."""
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_kernel as splash,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_mask as masks,
    )

    block_q, block_kv, block_kv_compute = setting["tiles"]
    block_q_dkv, block_kv_dkv, block_kv_dkv_compute = setting.get("backward", setting["tiles"])
    square = (case.t, case.t)
    mask = {
        "full": lambda: masks.FullMask(square),
        "causal": lambda: masks.CausalMask(square),
        "window": lambda: masks.LocalMask(square, window_size=(WINDOW - 1, 0), offset=0),
    }[case.mask]()
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
    attend = splash.make_splash_mha_single_device(mask, config=config)
    return differentiated(case, attend, (case.b * case.h, case.t, case.d))


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
        "splash",
        "tokamax",
        splash_settings,
        splash_program,
        near_settings,
        lambda setting: setting["transposed"],
        cached=True,
    )
}
TOKAMAX = Contender("tokamax", "tokamax", lambda case: [], tokamax_program, cached=True)
DECODE = Contender("decode", "jattn", lambda case: [], decode_program)
CONTENDERS = {"jattn": JATTN, **PEERS, "tokamax": TOKAMAX, "decode": DECODE}
