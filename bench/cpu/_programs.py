"""What a program costs before it runs: seconds to trace masks on a long sequence, and compile time beside jax.nn's."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.cpu._cases import Case
from bench.cpu._contenders import Attend, jattn_attend, jax_attend, jax_program
from bench.cpu._report import Limit

LONG = 32768  # tokens of the sequence on which masks are traced
COMPILED = Case("causal", 2048, 64, "fwdbwd", b=1, h=8)


def _masks(tokens: int) -> dict[str, Any]:
    """One mask of each kind, and the worst of the functions: one that knows no block to be empty or full."""
    from jattn import masks

    layout = np.random.default_rng(0).random((tokens // 64, tokens // 64)) < 0.1
    return {
        "causal": masks.causal(),
        "window": masks.window(1023),
        "dilated": masks.dilated(7) & masks.causal(),
        "blocks": masks.blocks(layout, 64),
        "segments": masks.segments(np.arange(tokens) // 700),
        "function": masks.function(lambda i, j: ((i - j) % 7 == 0) | (abs(i - j) < 100)),
    }


def trace_seconds(tokens: int = LONG) -> dict[str, float]:
    """By mask, seconds to trace and lower forward and backward of so many tokens."""
    import jattn

    x = jax.ShapeDtypeStruct((1, tokens, 1, 64), jnp.float32)
    seconds = {}
    for name, mask in _masks(tokens).items():
        attend = lambda q, k, v, mask=mask: jattn.attention(q, k, v, mask=mask)
        start = time.perf_counter()
        jax.jit(lambda q, k, v, g, attend=attend: jax.vjp(attend, q, k, v)[1](g)).lower(x, x, x, x)
        seconds[name] = time.perf_counter() - start
    return seconds


def compile_seconds(attend_of: Callable[[Case], Attend], case: Case = COMPILED) -> float:
    """The seconds to compile a case."""
    x = jax.ShapeDtypeStruct((case.b, case.t, case.h, case.d), jnp.float32)
    ids = jax.ShapeDtypeStruct((case.b, case.t), jnp.int32)
    jax.clear_caches()
    lowered = jax.jit(jax_program(case, attend_of(case))).lower(x, x, x, x, ids)
    start = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - start


def compile_ratios(case: Case = COMPILED, rounds: int = 15) -> list[float]:
    """jattn's compile time over jax.nn's, compiled in turns so many times, without a cache."""
    cached = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return [compile_seconds(jattn_attend, case) / compile_seconds(jax_attend, case) for _ in range(rounds)]
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def limits() -> list[Limit]:
    """The longest trace, and jattn's compile time over jax.nn's, as they are here."""
    return held(trace_seconds(), compile_ratios())


def held(traced: Mapping[str, float], ratios: Sequence[float]) -> list[Limit]:
    """The limits of seconds to trace, by mask, and of the median of ratios of compile times."""
    slowest = max(traced, key=lambda name: traced[name])
    low, median, high = np.percentile(ratios, (25, 50, 75))
    return [
        Limit(f"longest trace of a mask, t = {LONG}: {slowest}", traced[slowest], 1.0, "s"),
        Limit(f"jattn / jax.nn, compile time, {COMPILED.name}, quartiles {low:.2f} {high:.2f}", float(median), 1.5),
    ]
