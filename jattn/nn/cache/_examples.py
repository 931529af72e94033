"""What a serving loop does with the examples in caches: they come, split, are cut short, and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from jattn._call import modes
from jattn.nn._checks import check_range, check_sizes, is_known
from jattn.nn.cache import _kinds, _paged, _rows
from jattn.nn.cache._record import Cache, Rows, each, rows_of, with_rows

C = TypeVar("C")


def _integers(given: Any, expected: str) -> Array:
    """An array of integers.

    Raises:
      TypeError: it is none.
    """
    try:
        array: Any = jnp.asarray(given) if isinstance(given, jax.Array) or not is_known(given) else np.asarray(given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{expected}, got {given!r}") from error
    if not array.size and isinstance(given, (list, tuple)):
        array = array.astype(np.int32)  # NumPy takes a list of nothing for floats
    if not jnp.issubdtype(array.dtype, jnp.integer):
        found = repr(given) if array.dtype.kind in "OSU" else f"{array.dtype}{list(array.shape)}"
        raise TypeError(f"{expected}, got {found}")
    return array


def _examples(given: ArrayLike | Sequence[int], name: str) -> Int[Array, "k"]:
    expected = f"{name} must be an int or integers [k], which examples of the batch"
    array = _integers(given, expected)
    if array.ndim > 1:
        raise TypeError(f"{expected}, got {array.dtype}{list(array.shape)}")
    return _paged.everywhere(jnp.atleast_1d(jnp.asarray(given)).astype(jnp.int32))


def _counts(given: ArrayLike | Sequence[int], name: str, most: int | None = None) -> Int[Array, "*b"]:
    """Integers from 0 to `most`, as far as they are known: arguments of a function that is traced are not."""
    array = _integers(given, f"{name} must be an int or integers [..]")
    check_range(given, name, 0, most)
    return _paged.everywhere(jnp.asarray(array, jnp.int32))


def _check_lead(array: Int[Array, "*b"], cache: Cache, name: str) -> None:
    """Raises unless it has the cache's last batch axes: those before them are the turns of a stack."""
    lead = cache.length.shape
    if array.shape != lead[len(lead) - array.ndim :]:
        raise ValueError(
            f"{name} must be one int or integers with the batch axes {list(lead)} of the cache, got {list(array.shape)}"
        )


def _check_batch(cache: Cache) -> None:
    if not cache.length.ndim:
        raise ValueError("the cache has one example and no batch axis: make it with layer.cache(n, batch)")


def _check_apart(examples: ArrayLike | Sequence[int], name: str, cache: Cache) -> None:
    """Raises where two of the examples in the cache are known to be the same."""
    if not is_known(examples):
        return
    given = np.ravel(examples)
    inside = given[(given >= 0) & (given < cache.length.shape[-1])]
    if len(np.unique(inside)) < len(inside):
        raise ValueError(f"{name} must be examples of which no two are the same, got {given.tolist()}")


def _check_part(cache: Cache, part: object, k: int) -> None:
    """Raises unless the part is as `take` gives k examples of the cache."""
    if not isinstance(part, Cache):
        raise ValueError(f"part must be a Cache where caches have one, as take gives it, got {type(part).__name__}")
    lead = [*cache.length.shape[:-1], k]
    if [*part.length.shape] != lead:
        raise ValueError(f"part must have the batch axes {lead}, as examples say, got {list(part.length.shape)}")
    few = lambda x, axis: jax.ShapeDtypeStruct((*x.shape[:axis], k, *x.shape[axis + 1 :]), x.dtype)
    kind = lambda name, x: x.dtype if name in Rows._fields else ""
    said = lambda x: ", ".join(f"{n} {kind(n, y)}{list(y.shape)}" for n, y in x._asdict().items() if y is not None)
    expected, found = said(_along(cache, few)), said(part)
    if found != expected:
        raise ValueError(f"part must be what take gave of the same caches, with {expected}, got {found}")


@modes.ordinary
def fork(caches: C, source: Int[ArrayLike, "k"] | Sequence[int], target: Int[ArrayLike, "k"] | Sequence[int]) -> C:
    """Examples that go on from where others are: a common prefix, several answers to a prompt, beams.

    In pages they share what there is, and a page is copied once one of them writes into it; other kinds copy rows.
    All sources are read before any target is written.

    Args:
      caches: a cache, or a pytree of them, that of a stack of layers say; examples lie along the last batch axis.
      source: an int or integers `[k]`, which examples.  Inside `jax.jit`, where they are not known, the nearest is
        taken for one that is out of range.
      target: likewise, no two the same, those that become like them; what they had is freed.  One that is out of range
        is left out.

    Returns:
      The caches after it.

    Raises:
      TypeError: no integers; no cache.
      ValueError: as many sources as targets there are not; a cache without a batch axis; a source that is known not to
        be in it, of a target that is; targets that are known to be the same.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, mask=jattn.masks.causal(), rngs=nnx.Rngs(0))
    >>> prompt = jnp.ones((3, 20, 32))
    >>> _, cache = layer.decode(prompt, layer.cache(100, 3, page=8), lengths=jnp.array([20, 0, 0]))
    >>> cache = jattn.nn.cache.fork(cache, [0, 0], [1, 2])  # one prompt was read, and three answers begin
    >>> cache.length.tolist(), int((cache.holders > 0).sum())
    ([20, 20, 20], 3)

    Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention".
    """
    at, to = _examples(source, "source"), _examples(target, "target")
    if at.shape != to.shape:
        raise ValueError(f"source and target must be as many, got {at.shape[0]} and {to.shape[0]}")

    def one(cache: Cache) -> Cache:
        _check_batch(cache)
        _check_apart(target, "target", cache)
        if is_known((source, target)):
            b, into = cache.length.shape[-1], np.ravel(target)
            check_range(np.ravel(source)[(into >= 0) & (into < b)], "source", 0, b - 1)
        if cache.pages is not None:
            return _paged.held_by(cache, at, to)
        return _along(cache, lambda x, axis: _put(x, _take(x, at, axis), to, axis))

    return each(_in_place(one), caches)


@modes.ordinary
def free(caches: C, examples: Int[ArrayLike, "k"] | Sequence[int]) -> C:
    """Forgets examples: their length is 0, and pages that nobody else holds are free.

    Args:
      caches: as in `fork`; what cross-attention reads stays.
      examples: an int or integers `[k]`; those out of range are left out, so that inside `jax.jit`
        `jnp.where(done, jnp.arange(b), b)` frees those that are done.

    Returns:
      The caches after it.

    Raises:
      TypeError: no integers; no cache.
      ValueError: a cache without a batch axis.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, mask=jattn.masks.causal(), rngs=nnx.Rngs(0))
    >>> _, cache = layer.decode(jnp.ones((2, 20, 32)), layer.cache(100, 2, page=8))
    >>> jattn.nn.cache.free(cache, 1).length.tolist()
    [20, 0]
    """
    gone = _examples(examples, "examples")

    def one(cache: Cache) -> Cache:
        _check_batch(cache)
        b = cache.length.shape[-1]
        kept = ~jnp.zeros(b, bool).at[jnp.where(gone < 0, b, gone)].set(True, mode="drop")
        return _cut(cache, jnp.where(kept, cache.length, 0))

    return each(_in_place(one), caches, contexts=False)


@modes.ordinary
def shorten(caches: C, length: Int[ArrayLike, "*b"] | Sequence[int]) -> C:
    """Forgets the last positions of examples: those from `length` on.  Pages after them are freed.

    Args:
      caches: as in `fork`; what cross-attention reads stays.
      length: an int or integers `[b]`, 0 or more, for all examples or for each; one that is shorter already stays as it
        is.  Inside `jax.jit`, where they are not known, a negative one is not seen.

    Returns:
      The caches after it.

    Raises:
      TypeError: no integers; no cache.
      ValueError: one of them is known to be negative; not as many as examples.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, mask=jattn.masks.causal(), rngs=nnx.Rngs(0))
    >>> _, cache = layer.decode(jnp.ones((2, 20, 32)), layer.cache(100, 2))
    >>> jattn.nn.cache.shorten(cache, jnp.array([7, 100])).length.tolist()
    [7, 20]
    """
    kept = _counts(length, "length")

    def one(cache: Cache) -> Cache:
        _check_lead(kept, cache, "length")
        return _cut(cache, jnp.minimum(cache.length, kept))

    return each(_in_place(one), caches, contexts=False)


@modes.ordinary
def take(caches: C, examples: Int[ArrayLike, "k"] | Sequence[int]) -> C:
    """Caches of some examples alone: to read a prompt while the others wait, say.

    Pools of pages come with them whole.  `put` puts them back.

    Args:
      caches: as in `fork`.
      examples: an int or integers `[k]`, no two the same.  Inside `jax.jit`, where they are not known, the nearest is
        taken for one that is out of range.

    Returns:
      Caches of a batch of k.

    Raises:
      TypeError: no integers; no cache.
      ValueError: a cache without a batch axis; an example that is known not to be in it, or to be there twice.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, mask=jattn.masks.causal(), rngs=nnx.Rngs(0))
    >>> cache = layer.cache(100, 3, page=8)
    >>> _, one = layer.decode(jnp.ones((1, 20, 32)), jattn.nn.cache.take(cache, 1))
    >>> jattn.nn.cache.put(cache, 1, one).length.tolist()
    [0, 20, 0]
    """
    at = _examples(examples, "examples")

    def one(cache: Cache) -> Cache:
        _check_batch(cache)
        _counts(examples, "examples", cache.length.shape[-1] - 1)
        _check_apart(examples, "examples", cache)
        return _along(_paged.gathered(cache), lambda x, axis: _take(x, at, axis))

    return each(one, caches)


@modes.ordinary
def put(caches: C, examples: Int[ArrayLike, "k"] | Sequence[int], part: C) -> C:
    """Caches with examples that `take` took of them, once these have been decoded.

    Between `take` and `put` of caches in pages nothing else may be done with them, whose pages the part has.

    Args:
      caches: as in `fork`.
      examples: as `take` had them.
      part: what became of what `take` gave.

    Returns:
      The caches after it.

    Raises:
      TypeError: no integers; no cache.
      ValueError: a cache without a batch axis; a part of not as many examples, or of other caches; examples that are
        known to be the same.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, mask=jattn.masks.causal(), rngs=nnx.Rngs(0))
    >>> cache = layer.cache(100, 3)
    >>> _, two = layer.decode(jnp.ones((2, 20, 32)), jattn.nn.cache.take(cache, [2, 0]))
    >>> jattn.nn.cache.put(cache, [2, 0], two).length.tolist()
    [20, 0, 20]
    """
    at = _examples(examples, "examples")

    def one(cache: Cache, of: Cache) -> Cache:
        _check_batch(cache)
        _check_apart(examples, "examples", cache)
        _check_part(cache, of, len(at))
        of = _paged.gathered(of)
        whole = cache if cache.pages is None else with_rows(cache, rows_of(of))._replace(holders=of.holders)
        return _along(whole, lambda x, axis, y: _put(x, y, at, axis), of)

    places, found = (jax.tree.structure(x, is_leaf=_kinds.is_cache) for x in (caches, part))
    if found != places:
        raise ValueError(f"part must have caches where those it was taken from have them, {places}, got {found}")
    return each(_in_place(one), caches, part)


@modes.ordinary
def accept(caches: C, drafts: int, path: Int[ArrayLike, "*b k"], count: Int[ArrayLike, "*b"] | None = None) -> C:
    """Keeps of the last positions those that a draft turned out right in: one path through a tree (Cai et al. 2024).

    After `decode(x, cache, parents=parents)` of t drafts, the cache holds all of them.  Those on the path move up to
    where the drafts began, and the others are forgotten.  A cache that slides needs a slack of t, or has lost what is
    seen from there; then `decode` says so.

    Args:
      caches: as in `fork`; what cross-attention reads stays.
      drafts: t, how many positions were decoded as a tree; no example may have fewer.
      path: integers `[.., k]`, which of the drafts, each the parent of the next; the same for all layers.  What comes
        after the first `count` is not looked at.
      count: an int or integers `[..]` from 0 to k, and to t, how many of the k each example keeps; None for all.
        Inside `jax.jit`, where they are not known, one that is out of range is not seen, nor is a path.

    Returns:
      The caches after it.

    Raises:
      TypeError: no integers; no cache.
      ValueError: drafts below 1; a count or what a path has up to it that is known to be out of range, or drafts that
        are known to be more than an example has positions; a path or count with other batch axes; no free page for what
        has to move in a page that others hold, as in `decode`.  Where that is not known, the rows that are decoded
        after it are NaN.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, mask=jattn.masks.causal(), rngs=nnx.Rngs(0))
    >>> _, cache = layer.decode(jnp.ones((1, 7, 32)), layer.cache(100, 1))
    >>> drafts = jnp.ones((1, 4, 32))  # 0, two guesses after it, and one after the second of these
    >>> _, cache = layer.decode(drafts, cache, parents=[-1, 0, 0, 2])
    >>> jattn.nn.cache.accept(cache, 4, jnp.array([[0, 2, 3]])).length.tolist()
    [10]

    Source: Miao et al. 2024, "SpecInfer"; Cai et al. 2024, "Medusa".
    """
    check_sizes(drafts=drafts)
    given, path = path, _integers(path, "path must be integers [.., k]")
    if not path.ndim:
        raise TypeError(f"path must be integers [.., k], got {path.dtype}{list(path.shape)}")
    k = path.shape[-1]
    if count is None and k > drafts:
        raise ValueError(f"path must have no more than drafts = {drafts} of each example, got {list(path.shape)}")
    count = k if count is None else count
    counts = _counts(count, "count", min(k, drafts))

    def one(cache: Cache) -> Cache:
        _check_lead(counts, cache, "count")
        paths = _paged.everywhere(_spread(path, (*cache.length.shape, k)).astype(jnp.int32))
        if is_known((given, count)):
            looked = np.arange(k) < np.broadcast_to(count, cache.length.shape)[..., None]
            check_range(np.broadcast_to(given, paths.shape)[looked], "path", 0, drafts - 1)
        if is_known(cache.length) and (np.asarray(cache.length) < drafts).any():
            raise ValueError(f"drafts must be no more than an example has positions, {cache.length}, got {drafts}")
        start = jnp.maximum(cache.length - drafts, 0)
        kept = counts + jnp.zeros_like(start)  # along an Explicit axis it lies where the lengths do
        base = start if cache.first is None else start - cache.first
        rows = base[..., None] + paths
        to = base[..., None] + jnp.arange(k, dtype=jnp.int32)
        rows = jnp.where(jnp.arange(k) < kept[..., None], rows, to)
        if cache.pages is None:
            at = jnp.where(to < 0, cache.room, to)  # what a window has left behind is no row, and none from the end
            return _cut(_rows.put(cache, rows_of(_rows.moved(cache, rows)), at), start + kept)
        new, moves = _paged.at_positions(cache, rows), (rows != to).any(-1)
        return _again(_cut(cache, start + kept), start, new, jnp.where(moves, kept, 0))

    return each(_in_place(one), caches, contexts=False)


def _again(cache: Cache, start: Int[Array, "*b"], new: Rows, taken: Int[Array, "*b"]) -> Cache:
    """The cache in pages with the rows from `start` on written anew, of which there are `taken`.

    They are appended, so that what other examples hold is copied and not written into.
    """
    length, cache = cache.length, cache._replace(length=start)
    _kinds.check_room(cache, new.key.shape[-3], taken)
    return _paged.append(cache, new, taken)._replace(length=length)


def _spread(path: Int[Array, "*c k"], shape: tuple[int, ...]) -> Int[Array, "*b k"]:
    try:
        return jnp.broadcast_to(path, shape)
    except ValueError as error:
        raise ValueError(f"path must be [k] or {list(shape)}, one of each example, got {list(path.shape)}") from error


def _cut(cache: Cache, length: Int[Array, "*b"]) -> Cache:
    length = jnp.broadcast_to(length, cache.length.shape)
    return cache._replace(length=length) if cache.pages is None else _paged.released(cache, length)


def _take(x: Array, at: Array, axis: int) -> Array:
    """What it has there along an axis, the nearest for what is out of range.

    It is on every device along an Explicit axis, since as few examples as it may have can lie along none.
    """
    x = jnp.moveaxis(x, axis, 0)
    placed = jax.typeof(x).sharding
    lies = NamedSharding(placed.mesh, PartitionSpec(None, *placed.spec[1:])) if any(placed.spec) else None
    return jnp.moveaxis(x.at[jnp.clip(at, 0, x.shape[0] - 1)].get(mode="clip", out_sharding=lies), 0, axis)


def _put(x: Array, new: Array, at: Array, axis: int) -> Array:
    at = jnp.where(at < 0, x.shape[axis], at)
    x, new = (jnp.moveaxis(y, axis, 0) for y in (x, new))
    placed = jax.typeof(x).sharding
    lies = placed if any(placed.spec) else None
    return jnp.moveaxis(x.at[at].set(new, mode="drop", out_sharding=lies), 0, axis)


def _in_place(change: Callable[..., Cache]) -> Callable[..., Cache]:
    """The change, made where the tables of pages are on every device, and the cache where it lay."""
    return lambda cache, *others: _paged.back(change(_paged.gathered(cache), *others), cache)


def _along(cache: Cache, change: Callable[..., Any], *others: Cache) -> Cache:
    """The cache with `change(array, axis, ..)` of all that examples have of their own along their axis."""
    axis = cache.length.ndim - 1
    pools = dict.fromkeys(("key", "value", "key_scale", "value_scale", "holders"))
    own = lambda x: x if x.pages is None else x._replace(**pools)
    changed = jax.tree.map(lambda x, *rest: change(x, axis, *rest), own(cache), *map(own, others))
    return changed if cache.pages is None else with_rows(changed, rows_of(cache))._replace(holders=cache.holders)
