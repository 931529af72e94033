"""Who runs a case: jattn and its peers, each at its best for the case, in its native layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.cpu._cases import Case, Inputs, dense_mask

if TYPE_CHECKING:
    from torch import Tensor  # pyright: ignore[reportMissingImports]  (the bench extra)

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
CHUNK = 256  # queries of a chunk of torch's window loop: it is at its fastest there
JAX_LIMIT = 2 * 2**30  # bytes of scores above which jax.nn sits a case out


@dataclass(frozen=True)
class Contender:
    """One library.

    `prepare(case, inputs)` compiles, places the inputs and returns a function that does the work and waits for it; its
    result is (out,) or (out, dq, dk, dv). `arrays` makes that NumPy arrays [b, t, h, d]. `skips(case)` says why a case
    is not for it, "" if it is. `floor` is the least number of rounds.
    """

    name: str
    prepare: Callable[[Case, Inputs], Callable[[], Any]]
    arrays: Callable[[Any], list[np.ndarray]]
    skips: Callable[[Case], str] = lambda case: ""
    floor: int = 5


def jax_program(case: Case, attend: Attend) -> Callable[..., tuple[jax.Array, ...]]:
    """The function of (q, k, v, g, ids) to jit: out, and with the backward the gradient of sum(out * g) as well."""

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, ids: jax.Array) -> tuple[jax.Array, ...]:
        return (attend(q, k, v, ids),)

    def forward_backward(
        q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, ids: jax.Array
    ) -> tuple[jax.Array, ...]:
        out, pull_back = jax.vjp(lambda q, k, v: attend(q, k, v, ids), q, k, v)
        return out, *pull_back(g)

    return forward_backward if case.backward else forward


def jattn_attend(case: Case) -> Attend:
    """jattn.attention with the case's mask; the document ids are an operand, as they are in training."""
    import jattn
    from jattn import masks, normalizers, scores

    make_mask = {
        "causal": lambda ids: masks.causal(),
        "full": lambda ids: None,
        "window": lambda ids: masks.window(left=case.window - 1),
        "segments": masks.segments,
    }[case.mask]
    options: dict[str, Any] = {"normalizer": getattr(normalizers, case.normalizer)()}
    if case.score == "additive":
        options["score"] = scores.additive(*additive_weights(case.d))
    return lambda q, k, v, ids: jattn.attention(q, k, v, mask=make_mask(ids), **options)


def additive_weights(d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """w_q and w_k [d, d] and v [d] of an additive score."""
    rng = np.random.default_rng(d)
    w_q, w_k = rng.standard_normal((2, d, d), np.float32) / np.float32(np.sqrt(d))
    return w_q, w_k, rng.standard_normal(d, np.float32)


def _map_rows(case: Case) -> Attend:
    """The additive score as one writes it: `jax.lax.map` over the query rows, of one batch element and head."""
    w_q, w_k, v = additive_weights(case.d)

    def attend(q: jax.Array, k: jax.Array, value: jax.Array, ids: jax.Array) -> jax.Array:
        keys = k[0, :, 0] @ w_k
        row = lambda query: jax.nn.softmax(jnp.tanh(query + keys) @ v) @ value[0, :, 0]
        return jax.lax.map(row, q[0, :, 0] @ w_q)[None, :, None]

    return attend


def jax_attend(case: Case) -> Attend:
    """jax.nn.dot_product_attention with its own causal and window arguments; a mask of the documents inside the jit.

    It has no additive score: there a loop over the rows stands for it.
    """
    if case.score == "additive":
        return _map_rows(case)
    attend = jax.nn.dot_product_attention
    return {
        "causal": lambda q, k, v, ids: attend(q, k, v, is_causal=True),
        "full": lambda q, k, v, ids: attend(q, k, v),
        "window": lambda q, k, v, ids: attend(q, k, v, local_window_size=(case.window - 1, 0)),
        "segments": lambda q, k, v, ids: attend(q, k, v, mask=(ids[:, None, :, None] == ids[:, None, None, :])),
    }[case.mask]


def _prepare_jax(attend_of: Callable[[Case], Attend]) -> Callable[[Case, Inputs], Callable[[], Any]]:
    def prepare(case: Case, inputs: Inputs) -> Callable[[], Any]:
        arguments = [jnp.asarray(x) for x in inputs]
        program = jax.jit(jax_program(case, attend_of(case))).lower(*arguments).compile()
        return lambda: jax.block_until_ready(program(*arguments))

    return prepare


def _jax_arrays(result: tuple[jax.Array, ...]) -> list[np.ndarray]:
    return [np.asarray(x) for x in result]


def _jax_skips(case: Case) -> str:
    """XLA holds two float32 [b, h, t, s] arrays at once for jax.nn, four with the backward."""
    if case.normalizer != "softmax":
        return f"it has no {case.normalizer}"
    if case.score != "dot":
        return ""
    needed = 4 * case.b * case.h * case.t * case.keys * (4 if case.backward else 2)
    return f"its scores would take {needed / 2**30:.1f} GiB" if needed > JAX_LIMIT else ""


def _prepare_torch(case: Case, inputs: Inputs) -> Callable[[], Any]:
    """[b, h, t, d] contiguous. The additive mask is made here, untimed: it is faster than a boolean one."""
    import torch  # pyright: ignore[reportMissingImports]  (the bench extra)

    torch.set_num_threads(os.cpu_count() or 1)
    q, k, v, g = (torch.from_numpy(x.transpose(0, 2, 1, 3).copy()) for x in inputs[:4])
    attend = torch.nn.functional.scaled_dot_product_attention
    options: dict[str, Any] = {"is_causal": case.mask == "causal", "enable_gqa": case.key_heads != case.h}
    if case.window < CHUNK:
        attend, options = _torch_chunks(case), {}
    elif case.mask in ("window", "segments"):
        seen = torch.from_numpy(dense_mask(case, inputs.ids))
        options["attn_mask"] = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))

    def forward():
        with torch.no_grad():
            return (attend(q, k, v, **options),)

    def forward_backward():
        out = attend(q, k, v, **options)
        return out, *torch.autograd.grad(out, (q, k, v), g)

    if not case.backward:
        return forward
    for x in (q, k, v):
        x.requires_grad_()
    return forward_backward


def _torch_chunks(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A narrow window in torch: a loop over chunks of queries, each with the keys that its windows reach."""
    import torch  # pyright: ignore[reportMissingImports]  (the bench extra)

    def mask(start: int, first: int) -> Tensor:
        i, j = torch.arange(start, start + CHUNK)[:, None], torch.arange(first, start + CHUNK)[None]
        return torch.zeros(i.numel(), j.numel()).masked_fill_((j > i) | (j <= i - case.window), float("-inf"))

    firsts = [max(0, start - case.window + 1) for start in range(0, case.t, CHUNK)]
    masks = [mask(n * CHUNK, first) for n, first in enumerate(firsts)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = []
        for n, first in enumerate(firsts):
            start = n * CHUNK
            parts = q[:, :, start : start + CHUNK], *(x[:, :, first : start + CHUNK] for x in (k, v))
            outs.append(torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=masks[n]))
        return torch.cat(outs, dim=2)

    return attend


def _torch_skips(case: Case) -> str:
    others = [x for x in (case.score, case.normalizer) if x not in ("dot", "softmax")]
    return f"it has no {others[0]}" if others else ""


def _torch_arrays(result: tuple[Any, ...]) -> list[np.ndarray]:
    return [x.detach().numpy().transpose(0, 2, 1, 3) for x in result]


JATTN = Contender("jattn", _prepare_jax(jattn_attend), _jax_arrays)
PEERS = {
    "torch": Contender("torch", _prepare_torch, _torch_arrays, _torch_skips),
    "jax": Contender("jax", _prepare_jax(jax_attend), _jax_arrays, _jax_skips, floor=2),
}
