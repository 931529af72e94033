"""The public functions: attention and what goes with it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from jattn import normalizers, scores
from jattn._call import checks, dispatch, hints, layouts, modes, targets
from jattn._call import pages as pages_
from jattn._call import scales as scales_
from jattn._call.options import PlanOptions, ScoreOptions, WeightOptions
from jattn._call.plan import Plan, plan
from jattn._call.problem import Problem
from jattn._terms import rows
from jattn.backends import sampling
from jattn.backends.contract import Backend
from jattn.backends.reference import forward as reference
from jattn.gates import Gate
from jattn.masks import Mask
from jattn.mods import Mod

_DOT, _SOFTMAX = scores.dot(), normalizers.softmax()


def _along_sequence(attend: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or `jattn.parallel.attention` where `jattn.parallel.layout` says along which axis sequences lie."""

    @functools.wraps(attend)
    def call(*arrays: Any, **options: Any) -> Any:
        said = layouts.current()
        if said is None or said.attend is None:
            return attend(*arrays, **options)
        batch, head = (x[0] if x else None for x in (said.batch, said.heads))
        axes = {"batch_axis": batch, "head_axis": head, "sequence_axis": said.sequence}
        return said.attend(*arrays, mesh=said.mesh, order=said.order, **axes, **options)

    return call


@overload
def attention(
    query: Float[ArrayLike, "*b t h d"],
    key: Num[ArrayLike, "*b s g d"],
    value: Num[ArrayLike, "*b s g e"],
    *,
    score: scores.Score = ...,
    normalizer: normalizers.Normalizer = ...,
    mask: Mask | ArrayLike | None = ...,
    mods: Mod | Sequence[Mod] = ...,
    gates: Gate | Sequence[Gate] = ...,
    bias: ArrayLike | None = ...,
    sinks: Float[ArrayLike, " h"] | None = ...,
    dropout: Gate | None = ...,
    return_lse: Literal[False] = ...,
    implementation: str | Backend | None = ...,
    blocks: tuple[int, int] | None = ...,
    precision: jax.lax.Precision | str | None = ...,
    positions: Mapping[str, ArrayLike] | ArrayLike | None = ...,
    pages: Int[ArrayLike, "*b m"] | None = ...,
    scales: tuple[Float[ArrayLike, "*b s g"], Float[ArrayLike, "*b s g"]] | None = ...,
) -> Float[Array, "*b t h e"]: ...
@overload
def attention(
    query: Float[ArrayLike, "*b t h d"],
    key: Num[ArrayLike, "*b s g d"],
    value: Num[ArrayLike, "*b s g e"],
    *,
    score: scores.Score = ...,
    normalizer: normalizers.Normalizer = ...,
    mask: Mask | ArrayLike | None = ...,
    mods: Mod | Sequence[Mod] = ...,
    gates: Gate | Sequence[Gate] = ...,
    bias: ArrayLike | None = ...,
    sinks: Float[ArrayLike, " h"] | None = ...,
    dropout: Gate | None = ...,
    return_lse: Literal[True],
    implementation: str | Backend | None = ...,
    blocks: tuple[int, int] | None = ...,
    precision: jax.lax.Precision | str | None = ...,
    positions: Mapping[str, ArrayLike] | ArrayLike | None = ...,
    pages: Int[ArrayLike, "*b m"] | None = ...,
    scales: tuple[Float[ArrayLike, "*b s g"], Float[ArrayLike, "*b s g"]] | None = ...,
) -> tuple[Float[Array, "*b t h e"], Float[Array, "*b t h"]]: ...
@overload
def attention(
    query: Float[ArrayLike, "*b t h d"],
    key: Num[ArrayLike, "*b s g d"],
    value: Num[ArrayLike, "*b s g e"],
    *,
    score: scores.Score = ...,
    normalizer: normalizers.Normalizer = ...,
    mask: Mask | ArrayLike | None = ...,
    mods: Mod | Sequence[Mod] = ...,
    gates: Gate | Sequence[Gate] = ...,
    bias: ArrayLike | None = ...,
    sinks: Float[ArrayLike, " h"] | None = ...,
    dropout: Gate | None = ...,
    return_lse: bool,
    implementation: str | Backend | None = ...,
    blocks: tuple[int, int] | None = ...,
    precision: jax.lax.Precision | str | None = ...,
    positions: Mapping[str, ArrayLike] | ArrayLike | None = ...,
    pages: Int[ArrayLike, "*b m"] | None = ...,
    scales: tuple[Float[ArrayLike, "*b s g"], Float[ArrayLike, "*b s g"]] | None = ...,
) -> Float[Array, "*b t h e"] | tuple[Float[Array, "*b t h e"], Float[Array, "*b t h"]]: ...
@hints.hinted
@modes.ordinary
@_along_sequence
def attention(
    query: Float[ArrayLike, "*b t h d"],
    key: Num[ArrayLike, "*b s g d"],
    value: Num[ArrayLike, "*b s g e"],
    *,
    score: scores.Score = _DOT,
    normalizer: normalizers.Normalizer = _SOFTMAX,
    mask: Mask | ArrayLike | None = None,
    mods: Mod | Sequence[Mod] = (),
    gates: Gate | Sequence[Gate] = (),
    bias: ArrayLike | None = None,
    sinks: Float[ArrayLike, " h"] | None = None,
    dropout: Gate | None = None,
    return_lse: bool = False,
    implementation: str | Backend | None = None,
    blocks: tuple[int, int] | None = None,
    precision: jax.lax.Precision | str | None = None,
    positions: Mapping[str, ArrayLike] | ArrayLike | None = None,
    pages: Int[ArrayLike, "*b m"] | None = None,
    scales: tuple[Float[ArrayLike, "*b s g"], Float[ArrayLike, "*b s g"]] | None = None,
) -> Float[Array, "*b t h e"] | tuple[Float[Array, "*b t h e"], Float[Array, "*b t h"]]:
    """Attention: out[b, i, h] = sum over j of weight[b, h, i, j] value[b, j, h // (h/g)], with

        weight = gates(normalizer(mask(mods(score(query, key) + bias))))

    Args:
      query: `[b, t, h, d]`, float32, bfloat16, float16, or float64 where x64 is on.  The batch axis may be absent.
      key: `[b, s, g, d]`; h is a multiple of g, and each key head serves h/g query heads in a row.
      value: `[b, s, g, e]`.
      score: how a query and a key are compared, from `jattn.scores`.
      normalizer: how a row of scores becomes weights, from `jattn.normalizers`.
      mask: from `jattn.masks`, or a boolean array broadcastable to `[b, h, t, s]`, True = attend.
      mods: functions score -> score, before normalising, in order, from `jattn.mods`.
      gates: multipliers of the weights after normalising, from `jattn.gates`.
      bias: array broadcastable to `[b, h, t, s]`, added to the scaled score before the mods.
      sinks: `[h]` logits that take part in the softmax's denominator only (Xiao et al. 2024; gpt-oss).
      dropout: `jattn.gates.dropout(rate, seed)`, applied after the gates.
      return_lse: also return the log of the softmax's denominator, `[b, t, h]`, float32 or wider, differentiable.
      implementation: None chooses; "reference", "blockwise", "pallas_tpu", "pallas_gpu", "cudnn" insists;
        so does a `jattn.backends.contract.Backend`.
      blocks: (query rows, key rows) of a tile, in the place of the tuned sizes.
      precision: a `jax.lax.Precision` for the two products.  On TPU a bfloat16 query takes up the score's scale,
        rounded to bfloat16, unless this is "highest"; float32 is computed at "highest" unless this says otherwise.
      positions: where the first query stands in a longer sequence, an int, an integer scalar or integers `[b]`: masks,
        mods and gates see i counted from there.  Or of several axes, `{"t": first query, "s": first key, "h": first
        head, "b": first batch element}`: j counts from the first key, a layout of each head and the bits of dropout
        from the first head, those bits from the first batch element.  Arrays have the call's own queries, keys, heads
        and batch elements.  An int is part of the compiled program, an array is not; blocks are skipped by either.
        Positions are at most 2^30.
      pages: integers `[b, m]`, where keys and values lie in pages that examples may share: key is then a pool
        `[p, page, g, d]`, value one `[p, page, g, e]`, and key j of example b is row j % page of page
        `pages[b, j // page]`, so that s = m page (Kwon et al. 2023).  Entries that are not in use may be any page, and
        one out of range is the nearest: hide them with `masks.lengths`.
      scales: of keys and of values, each `[b, s, g]` (`[p, page, g]` with pages): the key is key * scale, the value
        value * scale.  Key and value may then be int8, float8_e4m3fn or float8_e5m2 too, and get no gradients.

    Returns:
      out `[b, t, h, e]` in the query's dtype, or (out, lse).  A query that may attend to nothing gives 0, lse -inf
      (with `sinks`: the sink) and zero gradients.  Products, softmax and lse are computed in float32 or wider.  Every
      derivative exists, in forward and reverse mode; memory is linear in t + s but for `implementation="reference"`.
      Of `jax.export`, b may be a symbol: batch elements are then computed one after the other.

    Raises:
      ValueError, TypeError: input that does not fit, before anything runs.
      UnsupportedError: `implementation` cannot do what was asked.

    >>> import jax, jattn
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
    >>> jattn.attention(q, k, v, mask=jattn.masks.causal() & jattn.masks.window(left=7)).shape
    (2, 16, 4, 8)

    The last eight queries as a chunk of their own; and one query of each example, at the position that it has reached:

    >>> options = {"mask": jattn.masks.causal(), "mods": jattn.mods.alibi(jattn.mods.alibi_slopes(4))}
    >>> whole = jattn.attention(q, k, v, **options)
    >>> chunk = jattn.attention(q[:, 8:], k, v, **options, positions=8)
    >>> reached = jax.numpy.array([3, 12])
    >>> step = jattn.attention(q[[0, 1], reached][:, None], k, v, **options, positions=reached)
    >>> bool(abs(chunk - whole[:, 8:]).max() < 1e-5), bool(abs(step[:, 0] - whole[[0, 1], reached]).max() < 1e-5)
    (True, True)

    Source: Bahdanau et al. 2015, Luong et al. 2015, Vaswani et al. 2017; in tiles: Rabe & Staats 2021, Dao et al. 2022.
    """
    problem = checks.problem(
        query, key, value, score=score, normalizer=normalizer, mask=mask, mods_=mods, gates=gates, bias=bias,
        sinks=sinks, dropout=dropout, return_lse=return_lse, precision=precision, positions=positions, pages=pages,
        scales=scales,
    )  # fmt: skip
    target = targets.current()
    chosen = dispatch.choose(problem, implementation, target).backend
    if implementation is not None:
        target = target._replace(platform=targets.ANY)
    out, lse = _run(problem, chosen, checks.blocks(blocks), return_lse, target)
    if jnp.ndim(query) == 3:
        out, lse = jax.tree.map(lambda x: x[0], (out, lse))
    return (out, lse) if return_lse else out


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _run(
    problem: Problem, backend: Backend, blocks: tuple[int, int] | None, return_lse: bool, target: targets.Target
) -> tuple[jax.Array, jax.Array | None]:
    out, lse = dispatch.run(problem, backend, blocks, target)
    return out, lse if return_lse else None


@modes.ordinary
def explain(
    query: ArrayLike | jax.ShapeDtypeStruct,
    key: ArrayLike | jax.ShapeDtypeStruct,
    value: ArrayLike | jax.ShapeDtypeStruct,
    *,
    implementation: str | Backend | None = None,
    blocks: tuple[int, int] | None = None,
    device: str | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """The plan of `attention` with the same arguments: backend and reasons, tiles, blocks skipped, flops, bytes,
    memory.  Nothing is run, only compiled.

    Args:
      query: `[b, t, h, d]`, an array or a `jax.ShapeDtypeStruct`, as `attention` takes it.
      key: `[b, s, g, d]`, likewise.
      value: `[b, s, g, e]`, likewise.
      implementation: as in `attention`.
      blocks: as in `attention`.
      device: a chip that need not be here ("v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "l4", "h100", "h200", "b200"):
        where its kernels would run the plan then has an estimate of the time.
      **options: all else that `attention` takes.

    Returns:
      The plan, which prints as a table.  Inside jit, a mask made of traced arrays has blocks "known at run time".

    Raises:
      ValueError, TypeError: what `attention` would not take; there is no such device.
      UnsupportedError: `implementation` cannot do what was asked.

    >>> import jax, jattn
    >>> x = jax.ShapeDtypeStruct((1, 4096, 8, 64), "float32")
    >>> plan = jattn.explain(x, x, x, mask=jattn.masks.causal())
    >>> plan.backend
    'blockwise'
    >>> empty, partial, full = plan.blocks
    """
    problem = checks.problem(query, key, value, **_named("explain", options))
    return plan(problem, implementation, checks.blocks(blocks), device)


@modes.ordinary
def weights(
    query: Float[ArrayLike, "*b t h d"],
    key: Num[ArrayLike, "*b s g d"],
    value: Num[ArrayLike, "*b s g e"],
    **options: Unpack[WeightOptions],
) -> Float[Array, "*b h t s"]:
    """The weights of `attention` with the same arguments: for looking at, O(t * s) memory.

    They are what multiplies the values, weight[b, h, i, j] of `attention`'s formula: after masks, normaliser, sinks,
    gates and dropout.  All pairs are computed at once, by the definition.

    Args:
      query: `[b, t, h, d]`, as in `attention`.
      key: `[b, s, g, d]`, likewise.
      value: `[b, s, g, e]`, likewise; its numbers do not matter.
      **options: all else that `attention` takes, but for `implementation`, `blocks` and `return_lse`.

    Returns:
      `[b, h, t, s]`, float32 or wider.

    Raises:
      ValueError, TypeError: what `attention` would not take.

    >>> import jax.numpy as jnp, jattn
    >>> q = jnp.ones((1, 3, 1, 4))
    >>> print(jattn.weights(q, q, q, mask=jattn.masks.window(1))[0, 0])
    [[1.  0.  0. ]
     [0.5 0.5 0. ]
     [0.  0.5 0.5]]
    """
    problem = checks.problem(
        query, key, value, **_named("weights", options, ("implementation", "blocks", "return_lse"))
    )
    weight = _weights(problem)
    return weight[0] if jnp.ndim(query) == 3 else weight


@jax.jit
def _weights(problem: Problem) -> jax.Array:
    sizes = problem.sizes
    if problem.empty:
        return jnp.zeros([sizes[a] for a in "bhts"], jnp.promote_types(problem.query.dtype, jnp.float32))
    return reference.attention(scales_.cast(scales_.applied(pages_.gathered(problem), to_values=False)))[2]


def _named(where: str, options: Mapping[str, Any], refused: tuple[str, ...] = ()) -> dict[str, Any]:
    """Options of `attention` as `checks.problem` names them; raises for those that `where` does not take."""
    known = [x for x in inspect.signature(attention).parameters if x not in ("query", "key", "value", *refused)]
    left_alone = [name for name in refused if options.get(name) is None or options[name] is False]
    unknown = [name for name in options if name not in (*known, *left_alone)]
    if unknown:
        raise TypeError(hints.unexpected(where, unknown, known))
    options = {name: given for name, given in options.items() if name in known}
    options = {"score": _DOT, "normalizer": _SOFTMAX, **options}
    options["mods_"] = options.pop("mods", ())
    return options


@modes.ordinary
def sample(
    random_key: jax.Array,
    query: Float[ArrayLike, "*b t h d"],
    key: Num[ArrayLike, "*b s g d"],
    value: Num[ArrayLike, "*b s g e"],
    **options: Unpack[ScoreOptions],
) -> tuple[Float[Array, "*b t h e"], Int[Array, "*b t h"], Float[Array, "*b t h"]]:
    """Draws one key for each query and head from the softmax, and attends to it alone: stochastic hard attention,

        index[b, i, h] ~ softmax(score[b, h, i, :]),  out[b, i, h] = value[b, index[b, i, h], h // (h/g)]

    Args:
      random_key: one `jax.random` key; the same key draws the same.
      query: `[b, t, h, d]`, as in `attention`.
      key: `[b, s, g, d]`, likewise.
      value: `[b, s, g, e]`, likewise.
      **options: what shapes the scores of `attention`: score, mask, mods, bias, precision.

    Returns:
      out `[b, t, h, e]`: the value of the key drawn; index `[b, t, h]` int32: which; log_prob `[b, t, h]`: the log of
      its probability, float32 or wider, differentiable, for REINFORCE.  A query that may attend to nothing gives 0, -1,
      -inf.

    Raises:
      ValueError: an option that would make it another distribution (normalizer, gates, dropout, sinks, return_lse).
      ValueError, TypeError: what `attention` would not take.

    >>> import jax, jattn
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
    >>> out, index, log_prob = jattn.sample(jax.random.key(1), q, k, v)
    >>> index.shape
    (2, 16, 4)

    Source: Xu et al. 2015, section 4.1; REINFORCE: Williams 1992; the draw: Gumbel 1954.
    """
    rest: dict[str, Any] = {**options}
    others = "normalizer", "gates", "dropout", "sinks", "return_lse"
    for name in others:
        given = rest.pop(name, None)
        if bool(given) if isinstance(given, (tuple, list, bool)) else given is not None:
            raise ValueError(f"sample draws from a plain softmax of the scores: it takes no {name}")
    named = _named("sample", rest, (*others, "implementation", "blocks"))
    problem = checks.problem(query, key, value, **{**named, "normalizer": normalizers.gumbel(random_key)})
    drawn = sampling.sample(scales_.whole(pages_.gathered(problem)))
    return jax.tree.map(lambda x: x[0], drawn) if jnp.ndim(query) == 3 else drawn


@modes.ordinary
def merge(
    *parts: tuple[Float[ArrayLike, "... h e"], Float[ArrayLike, "... h"]],
) -> tuple[Float[Array, "... h e"], Float[Array, "... h"]]:
    """Joins (out, lse) of the same queries over disjoint sets of keys into (out, lse) over all of them.

        lse = log(sum over n of exp(lse_n)),  out = sum over n of exp(lse_n - lse) out_n

    Ring and split-key attention are made of this.  It is differentiable, and in any order and grouping the same but for
    rounding.

    Args:
      *parts: pairs of out `[.., h, e]` and lse `[.., h]`, as `attention(..., return_lse=True)` returns them; one whose
        lse is -inf counts for nothing.

    Returns:
      out in the dtype of the first part, and lse.

    Raises:
      TypeError: there is no part, or one that is no pair of arrays of floating-point numbers.
      ValueError: their shapes do not go together.

    >>> import jax, jattn
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 4))
    >>> halves = [jattn.attention(q, k[:, x], v[:, x], return_lse=True) for x in (slice(0, 4), slice(4, 8))]
    >>> out, lse = jattn.merge(*halves)
    >>> bool(abs(out - jattn.attention(q, k, v)).max() < 1e-5)
    True

    Source: Milakov & Gimelshein 2018, section 3.1; Liu et al. 2023 (ring attention).
    """
    if not parts or any(not isinstance(x, (tuple, list)) or len(x) != 2 for x in parts):
        raise TypeError("merge takes one or more pairs (out, lse), as attention(..., return_lse=True) returns them")
    pairs = [(checks.array(out, "out"), checks.array(lse, "lse")) for out, lse in parts]
    for out, lse in pairs:
        if out.shape[:-1] != lse.shape or out.shape != pairs[0][0].shape:
            raise ValueError(
                "merge needs out [.., h, e] and lse [.., h], all of the same shapes, got "
                + ", ".join(f"({list(o.shape)}, {list(x.shape)})" for o, x in pairs)
            )
    return rows.merged(pairs)
