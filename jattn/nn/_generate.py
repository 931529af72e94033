"""Tokens one after the other: the loop around the step of a model that decodes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.experimental import io_callback
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jattn._call import modes
from jattn._terms import plain
from jattn.nn import _checks
from jattn.nn._scaling import DynamicScaling
from jattn.nn.cache import _kinds
from jattn.nn.cache._record import BlockCache, Cache

C = TypeVar("C")  # a pytree of caches, whatever the model makes of it


class Decodes(Protocol[C]):
    """What `generate` asks of a model: a module of Flax with this method, and with `cache(n, batch)` unless it is given
    a cache."""

    def decode(self, tokens: Array, cache: C, /) -> tuple[Array, C]:
        """Logits `[b, t, tokens]` of what follows each of the next t tokens `[b, t]`, and the cache with them.

        One that takes `lengths=` as well is told how many tokens of each prompt are real, as layers' `decode` is.  One
        that does not is given prompts as they are, and reads what padding they have as text: where its caches are those
        of layers, these are made to forget it.
        """
        ...


class Generated(NamedTuple):
    """What `generate` returns.

    Args:
      tokens: int32 `[b, count]`; what comes after a stop token is `fill`.
      length: int32 `[b]`, how many of them each example has, the stop token included.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.nn.Generated(jnp.array([[4, 1, 0]]), jnp.array([2])).length.tolist()
    [2]
    """

    tokens: Int[Array, "b n"]
    length: Int[Array, "b"]


class Sampling(NamedTuple):
    """How a token is drawn: numbers that may be traced, so that others do not compile anew."""

    temperature: ArrayLike
    top_k: ArrayLike
    top_p: ArrayLike
    min_p: ArrayLike


@modes.ordinary
def generate(
    model: Decodes[C],
    prompt: Int[ArrayLike, "b t"],
    count: int,
    *,
    lengths: Int[ArrayLike, "b"] | None = None,
    temperature: ArrayLike = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: int | Iterable[int] | Int[Array, "k"] = (),
    fill: int = 0,
    seed: int | Array = 0,
    cache: C | None = None,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> Generated:
    """Tokens that a model writes after prompts: each is drawn from what it makes of those before.

        z = logits / temperature,  without what is below the top_k-th, outside of top_p or less than min_p of the best
        token ~ softmax(z);  with temperature 0, the first of the greatest logits

    The prompts are read at once, and each token is one step of one compiled loop, which ends when every example has
    stopped.  It is compiled once for prompts of up to 16, 32, 64, .. tokens, and for counts likewise, whatever the
    lengths, the seed and the numbers of the sampling; for every length of prompts where `decode` takes no `lengths`,
    or the cache is given.

    Args:
      model: a module of Flax with `cache(n, batch)` and `decode(tokens, cache, *, lengths=None)`, which returns logits
        and a cache, and hands `lengths` on to its layers; or `decode(tokens, cache)`, see `lengths`.
      prompt: tokens `[b, t]`, padded at the end where they are of unequal length.
      count: the most tokens that are written.
      lengths: how many tokens of each prompt are real, each from 1 to t; None for all t.  A model whose `decode` takes
        none reads padding as text, and its caches are shortened afterwards: that needs caches of layers, none of which
        slides, and embeddings that do not scale by the length of the text.
      temperature: one number, 0 for the most likely token each time.
      top_k: draws from this many of the most likely alone.
      top_p: draws from the most likely alone whose weights together reach this.
      min_p: draws from those alone that have at least this part of the weight of the most likely.
      stop: a token that ends an example, or several.
      fill: what stands after the end of an example.
      seed: an int, or one key of `jax.random`, typed or not.
      cache: in the place of `model.cache(..)`, of as many examples as there are prompts and with room for these and
        `count - 1` tokens more, whatever `stop` says; for a model that also reads something else, the cache that knows
        it.
      callback: called with n = 0, 1, .. and the n-th tokens `[b]` as soon as they are there; not inside of `jax.vmap`.

    Returns:
      The tokens, and how many each example has.

    Raises:
      ValueError: prompts without a token, lengths that are known not to be from 1 to t, a count < 1, or numbers of the
        sampling out of their range; padded prompts, and a model that would read the padding as text and has a cache
        that slides or is none of a layer, or a `DynamicScaling`; a cache of another batch, or one, given or made by the
        model, that is known to have too little room.
      TypeError: prompts, a seed or tokens to stop or fill with that are no integers; a model without these methods.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> class Model(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.embed = nnx.Embed(50, 32, rngs=rngs)
    ...         self.decoder = jattn.nn.Decoder(32, 4, 2, rotary_base=10_000.0, rngs=rngs)
    ...
    ...     def cache(self, n, batch):
    ...         return self.decoder.cache(n, batch)
    ...
    ...     def decode(self, tokens, cache, *, lengths=None):
    ...         x, cache = self.decoder.decode(self.embed(tokens), cache, lengths=lengths)
    ...         return self.embed.attend(x), cache
    >>> prompts = jnp.array([[3, 1, 4, 1], [5, 9, 0, 0]])
    >>> lengths = jnp.array([4, 2])
    >>> written = jattn.nn.generate(Model(nnx.Rngs(0)), prompts, 8, lengths=lengths, temperature=0.8, top_p=0.9)
    >>> written.tokens.shape, written.length.tolist()
    ((2, 8), [8, 8])

    Source: Holtzman et al. 2020 (top_p); Fan et al. 2018 (top_k); Nguyen et al. 2024 (min_p).
    """
    prompt = jnp.asarray(prompt)
    if prompt.ndim != 2 or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise TypeError(f"prompt must be tokens [b, t], integers, got {prompt.dtype}{list(prompt.shape)}")
    b, t = prompt.shape
    if not t:
        raise ValueError(f"prompt must have a token to start from, got {list(prompt.shape)}")
    _checks.check_sizes(count=count)
    sampling = _sampling(temperature, top_k, top_p, min_p)
    given = _checks.as_lengths(np.full(b, t) if lengths is None else lengths, (b,), t, least=1)
    padded = lengths is not None and (isinstance(given, Tracer) or bool((given < t).any()))
    lengths = given.astype(jnp.int32)
    _check_callables(model, cache, callback)
    told = "lengths" in inspect.signature(model.decode).parameters
    width, room = (t, count) if cache is not None else (_bucket(t) if told else t, _bucket(count))
    prompt = jnp.pad(prompt, ((0, 0), (0, width - t)))
    key = _key(seed)
    graph, state = nnx.split(model)
    graph = _as_it_is(graph)
    ends, filling = _tokens(stop, "stop"), _tokens(fill, "fill")
    if filling.shape != (1,):
        raise TypeError(f"fill must be one int, got {fill!r}")
    _check_cache(graph, width + room, state, cache, prompt, lengths, count)
    inputs = (state, cache, prompt, lengths, jnp.int32(count), sampling, ends, filling[0], key)
    inputs = inputs if callback is None else _unmapped(inputs)
    tokens, length = _written(graph, room, _Reading(told, padded and not told), callback, *inputs)
    return Generated(tokens[:, :count], length)


class _Reading(NamedTuple):
    """How prompts are read: whether the model is told their lengths, and if not, whether some may end before others."""

    told: bool
    padded: bool


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _written(
    graph: Any,
    room: int,
    reading: _Reading,
    callback: Callable[[int, np.ndarray], None] | None,
    state: Any,
    cache: Any,
    prompt: Int[Array, "b t"],
    lengths: Int[Array, "b"],
    count: Int[Array, ""],
    sampling: Sampling,
    stop: Int[Array, "k"],
    fill: Int[Array, ""],
    key: Array,
) -> tuple[Int[Array, "b n"], Int[Array, "b"]]:
    """The loop.  What changes from call to call is traced, but for shapes."""
    b, t = prompt.shape

    def decode(tokens: Array, cache: Any) -> tuple[Array, Any]:
        return nnx.merge(graph, state).decode(tokens, cache)

    def put(
        tokens: Array, n: Array, logits: Array, done: Bool[Array, "b"], length: Array
    ) -> tuple[Array, Array, Bool[Array, "b"], Array]:
        token = jnp.where(done, fill, _drawn(logits, jax.random.fold_in(key, n), sampling))
        if callback is not None:
            io_callback(functools.partial(_call_back, callback), None, n, token, ordered=True)
        return tokens.at[:, n].set(token), token, done | (token[:, None] == stop).any(-1), length + ~done

    def step(carry: Any) -> Any:
        n, tokens, token, done, length, cache = carry
        logits, cache = decode(token[:, None], cache)
        return n + 1, *put(tokens, n, logits[:, 0], done, length), cache

    if cache is None:
        cache = nnx.merge(graph, state).cache(t + room, b)
    if reading.told:
        logits, cache = nnx.merge(graph, state).decode(prompt, cache, lengths=lengths)
    else:
        before = cache
        logits, cache = decode(prompt, before)
        if reading.padded:
            _check_shortened(nnx.merge(graph, state), before, cache)
            cache = _kinds.shortened(cache, _kinds.lengths(before), lengths)
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]
    empty = jnp.full((b, room), fill, jnp.int32)
    first = put(empty, jnp.int32(0), last, jnp.zeros(b, bool), jnp.zeros(b, jnp.int32))
    going = lambda carry: (carry[0] < count) & ~carry[3].all()
    _, tokens, _, _, length, _ = jax.lax.while_loop(going, step, (jnp.int32(1), *first, cache))
    return tokens, length


def _call_back(callback: Callable[[int, np.ndarray], None], n: Array, token: Array) -> None:
    callback(int(n), np.asarray(token))


@jax.custom_batching.custom_vmap
def _unmapped(inputs: Any) -> Any:
    """What the loop begins with, none of which `jax.vmap` maps over."""
    return inputs


@_unmapped.def_vmap
def _mapped(size: int, which: Any, inputs: Any) -> tuple[Any, Any]:
    del which, inputs
    raise ValueError(
        f"callback is called with the tokens of one batch of prompts, but jax.vmap maps over {size}: give generate all"
        " prompts as one batch, or no callback"
    )


def _as_it_is(graph: nnx.GraphDef) -> nnx.GraphDef:
    """The graph of a model with copies of the lists, dicts and sets in it: a compiled program is found by comparing
    graphs, and one that held the model's own would change with them."""
    static = lambda x: nnx.graph.Static(_copied(x.value)) if isinstance(x, nnx.graph.Static) else x
    return dataclasses.replace(graph, attributes=[(name, static(x)) for name, x in graph.attributes])


def _copied(x: Any) -> Any:
    """Containers as new ones, and what they contain as it is, since it may be compared by identity."""
    if type(x) is dict:
        return {name: _copied(y) for name, y in x.items()}
    return type(x)(map(_copied, x)) if type(x) in (list, tuple, set) else x


def _check_shortened(model: Any, before: Any, after: Any) -> None:
    """Raises where what a model made of padding cannot be taken back."""
    rest = [[x for x in jax.tree.leaves(y, is_leaf=_kinds.is_cache) if not _kinds.is_cache(x)] for y in (before, after)]
    scaled = (getattr(getattr(x, "rotary", None), "scaling", None) for _, x in nnx.iter_graph(model))
    if _kinds.slides(after):
        why = "a cache that slides"
    elif any(x is not y for x, y in zip(*rest, strict=False)):
        why = "a cache that is none of a layer's"
    elif any(isinstance(x, DynamicScaling) for x in scaled):
        why = "an embedding that scales by the length of the text"
    else:
        return
    raise ValueError(
        f"{why} must know where padded prompts end: let the model's decode(tokens, cache, *, lengths=None) hand lengths"
        " on to its layers"
    )


def _check_callables(model: Any, cache: Any, callback: Any) -> None:
    """Raises where the model has no step, or the callback is none."""
    absent = [x for x in ("decode", "cache") if not callable(getattr(model, x, None))]
    if "decode" in absent or (absent and cache is None):
        raise TypeError(
            f"model must have decode(tokens, cache) and, unless cache= is given, cache(n, batch), got"
            f" {type(model).__name__} without {' and '.join(absent)}"
        )
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of n and tokens [b], got {callback!r}")


def _check_cache(
    graph: Any, room: int, state: Any, cache: Any, prompt: Int[Array, "b t"], lengths: Int[Array, "b"], count: int
) -> None:
    """Raises where a cache has another batch than the prompts, or is known to have too little room.

    The loop cannot raise: there the lengths are traced, and what does not fit gives NaN.  The last token is not read,
    so that it needs no room.
    """
    b = prompt.shape[0]
    held = _held(cache) if cache is not None else _made(graph, room, b, state)
    of = "cache" if cache is not None else f"the cache({room}, {b}) of the model"
    grown = lambda: _grown(graph, room, state, cache, prompt)
    others = {x.length.shape[-1] for x in held if x.length.ndim} - {b}
    if others:
        try:
            grown()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{of} must be of as many examples as prompts, {b}, got {others.pop()}") from error
        return
    needed = lengths + (count - 1)
    if isinstance(needed, Tracer):
        return
    most = int(needed.max(initial=0))
    for n, x in enumerate(held):
        try:
            _kinds.check_room(x, most, jnp.broadcast_to(needed, x.length.shape))
        except ValueError as error:
            if grown()[n] > 0:
                raise ValueError(
                    f"{of} must have room for {most} positions more, for prompts of up to {most - count + 1} tokens"
                    f" and all but the last of count = {count} after them: {error}"
                ) from error


def _held(caches: Any) -> list[Cache]:
    """The caches in a pytree, without those of blocks that are only read."""
    leaves = jax.tree.leaves(caches, is_leaf=lambda x: isinstance(x, (Cache, BlockCache)))
    return [x for x in (x.past if isinstance(x, BlockCache) else x for x in leaves) if isinstance(x, Cache)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _made(graph: Any, room: int, b: int, state: Any) -> list[Cache]:
    """The caches that the model makes, with rows of no width: what is known of their room, without their memory."""
    bare = {"key_scale": None, "value_scale": None}
    held = _held(nnx.merge(graph, state).cache(room, b))
    return [x._replace(key=x.key[..., :0], value=x.value[..., :0], **bare) for x in held]


@functools.partial(jax.jit, static_argnums=1)
def _grown(graph: Any, room: int, state: Any, cache: Any, prompt: Int[Array, "b t"]) -> list[Int[Array, ""]]:
    """By how much a token lengthens each of the caches: one that stays as it is needs no room.

    Only lengths are returned, so that next to nothing of the model is compiled.
    """
    model = nnx.merge(graph, state)
    cache = model.cache(room, prompt.shape[0]) if cache is None else cache
    _, after = model.decode(prompt[:, :1], cache)
    return [jnp.max(y.length - x.length) for x, y in zip(_held(cache), _held(after), strict=True)]


def _drawn(logits: Float[Array, "b v"], key: Array, sampling: Sampling) -> Int[Array, "b"]:
    """One token for each example."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def draw() -> Int[Array, "b"]:
        scaled = logits / sampling.temperature
        order = jnp.argsort(-scaled, axis=-1)
        best = jnp.take_along_axis(scaled, order, axis=-1)
        places = jnp.arange(best.shape[-1])
        weights = jax.nn.softmax(jnp.where(places < sampling.top_k, best, -jnp.inf), axis=-1)
        # A token is kept where those before it do not reach top_p, so that the first always is.
        kept = (places == 0) | (jnp.cumsum(weights, axis=-1) - weights < sampling.top_p) & (places < sampling.top_k)
        kept &= best - best[:, :1] >= jnp.log(jnp.asarray(sampling.min_p, best.dtype))
        place = jax.random.categorical(key, jnp.where(kept, best, -jnp.inf), axis=-1)
        return jnp.take_along_axis(order, place[:, None], axis=-1)[:, 0]

    greedy = lambda: jnp.argmax(logits, axis=-1)
    return jax.lax.cond(jnp.asarray(sampling.temperature) > 0, draw, greedy).astype(jnp.int32)


def _tokens(given: object, name: str) -> Int[Array, "k"]:
    """An int or several as tokens; raises for what is none, which int32 would truncate."""
    try:
        listed = tuple(given) if isinstance(given, Iterable) and not _checks.is_array(given) else given
        array = listed if isinstance(listed, Tracer) else np.asarray(listed)
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is not None and not array.size:
        return jnp.zeros(0, jnp.int32)
    whole = array is not None and array.ndim < 2 and jnp.issubdtype(array.dtype, jnp.integer)
    if array is None or not whole or (not isinstance(array, Tracer) and (array != array.astype(np.int32)).any()):
        raise TypeError(f"{name} must be an int or integers [k], of 32 bits, got {given!r}")
    return jnp.atleast_1d(array).astype(jnp.int32)


def _key(seed: object) -> Array:
    """The key that a seed stands for; raises where it is neither a seed nor one key."""
    seed = plain(seed)
    if _checks.is_array(seed):
        if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            key, whole = not seed.ndim, False
        else:
            key = seed.dtype == jnp.uint32 and seed.shape == jax.random.key_data(jax.random.key(0)).shape
            whole = not seed.ndim and jnp.issubdtype(seed.dtype, jnp.integer)
        if key:
            return jax.random.wrap_key_data(jnp.asarray(seed)) if seed.ndim else jnp.asarray(seed)
    else:
        whole = _checks.is_whole(seed)
    if not whole:
        raise TypeError(f"seed must be an int, or one key of jax.random, got {seed!r}")
    return jax.random.key(seed)  # pyright: ignore[reportArgumentType]


def _sampling(temperature: ArrayLike, top_k: int | None, top_p: float | None, min_p: float | None) -> Sampling:
    """The numbers as arrays; raises where one is out of its range."""
    temperature = plain(temperature)
    if _checks.is_array(temperature) and not isinstance(temperature, Tracer) and not temperature.ndim:
        temperature = temperature.item()  # so that its value is checked as well
    if isinstance(temperature, Tracer):
        if temperature.ndim or not jnp.issubdtype(temperature.dtype, jnp.number):
            got = f"{temperature.dtype}{list(temperature.shape)}"
            raise ValueError(f"temperature must be one number >= 0, for all examples, got {got}")
    elif not (_checks.is_number(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be one number >= 0, for all examples, got {temperature!r}")
    if top_k is not None:
        _checks.check_sizes(top_k=top_k)
    if top_p is not None and not (_checks.is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p must be a number in (0, 1], got {top_p!r}")
    if min_p is not None and not (_checks.is_number(min_p) and 0 <= min_p <= 1):
        raise ValueError(f"min_p must be a number in [0, 1], got {min_p!r}")
    k = min(top_k or np.inf, np.iinfo(np.int32).max)
    p = np.inf if top_p is None or top_p == 1 else top_p  # rounding may reach 1 before the last
    return Sampling(jnp.float32(temperature), jnp.int32(k), jnp.float32(p), jnp.float32(min_p or 0.0))


def _bucket(n: int) -> int:
    """The next power of two, 16 at least."""
    return max(16, 1 << (n - 1).bit_length())
