"""Transformer blocks one after the other, those of a kind as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from jattn import mods as mods_
from jattn._call import modes
from jattn.nn import _checks, _dropout
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._options import AnyMask, Gates, Mods, StackOptions, several
from jattn.nn.transformer import Residual, TransformerBlock

Positional: TypeAlias = Callable[[], mods_.Mod | Sequence[mods_.Mod]]
LayerKind: TypeAlias = Mapping[str, Any]  # not a TypedDict: it would refuse a dict that was made before the call


class EncoderOptions(StackOptions, total=False):
    """Arguments of `Encoder` that `Decoder` and `EncoderDecoder` hand on."""

    pattern: Sequence[LayerKind]
    positional: Positional | None
    final_norm: bool | None
    remat: bool
    norm: Callable[..., Callable[[Array], Array]]
    residual: Residual
    dtype: DTypeLike | None
    param_dtype: DTypeLike


class Encoder(nnx.Module):
    """Transformer blocks one after the other, and a norm: norm(block(.. block(x))).

    Blocks of one kind are one block whose parameters have an axis of layers, scanned by `nnx.scan`: it compiles once.
    Blocks of several kinds take turns: a `pattern` of p says what is different about each, and layer n is of kind
    n % p.  Layers after the last whole turn are blocks of their own.

    What a call changes in blocks (statistics of a norm, what an MLP sows) is there after it, with the axis of turns.

    Args:
      features: width of x and of the output.
      heads: query heads.
      layers: how many blocks.
      pattern: options of `TransformerBlock` for each kind, in place of those for all: `({"mask": masks.window(511)},
        {"mask": masks.causal()})` for layers with a sliding window and without one in turn.
      positional: a term that all blocks share, held and learned once: `jattn.nn.RelativeBias`, `jattn.nn.Alibi`, or a
        module whose call gives mods.
      final_norm: whether x is normalised at the end; by default, unless the blocks end with a norm of their own.
      remat: computes a turn of blocks again for its gradient, in place of keeping what is inside.
      norm: as in `TransformerBlock`, which the last norm is made of too.
      residual: as in `TransformerBlock`.
      dtype: of the computation.
      param_dtype: of the parameters.
      rngs: streams `params` and, with dropout, `dropout`.
      **options: all other options of `TransformerBlock`.

    Parameters (`nnx.Param`):
      `blocks[k]`, those of `TransformerBlock` for kind k, with an axis of turns before all others: layer n is
      `blocks[n % p]` at n // p; `rest[k]`, those after the last whole turn; `norm`; those of `positional`.

    Raises:
      ValueError, TypeError: as `TransformerBlock` does; layers that are none, or an empty pattern.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> from jattn import masks
    >>> encoder = jattn.nn.Encoder(32, 4, 2, rotary_base=10_000.0, rngs=nnx.Rngs(0))
    >>> encoder(jnp.ones((8, 5, 32)), mask=masks.lengths(jnp.arange(8))).shape
    (8, 5, 32)
    >>> modern_bert = jattn.nn.Encoder(
    ...     32, 4, 7, pattern=({}, *({"mask": masks.window(64, 64)},) * 2), rotary_base=10_000.0, rngs=nnx.Rngs(0)
    ... )
    >>> len(modern_bert.blocks), len(modern_bert.rest)
    (3, 1)

    Source: Vaswani et al. 2017; blocks in turn: Beltagy et al. 2020.
    """

    features: int
    layers: int
    dropout: float
    remat: bool
    positional: Positional | None
    blocks: nnx.List[TransformerBlock]
    rest: nnx.List[TransformerBlock]
    norm: Callable[[Array], Array] | None

    @of_layers
    def __init__(
        self,
        features: int,
        heads: int,
        layers: int,
        *,
        pattern: Sequence[LayerKind] = ({},),
        positional: Positional | None = None,
        final_norm: bool | None = None,
        remat: bool = False,
        norm: Callable[..., Callable[[Array], Array]] = nnx.LayerNorm,
        residual: Residual = Residual(),  # noqa: B008
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options: Unpack[StackOptions],
    ):
        _checks.check_rngs(rngs)
        _checks.check_sizes(layers=layers)
        _checks.check_flags(remat=remat, final_norm=bool(final_norm) if final_norm is None else final_norm)
        if isinstance(pattern, Mapping) or not pattern:
            raise ValueError(f"pattern must have options of blocks for each kind of them, got {pattern!r}")
        if isinstance(positional, mods_.Mod) or not (positional is None or callable(positional)):
            raise TypeError(f"positional must be like jattn.nn.Alibi(heads); a mod goes to mods=, got {positional!r}")
        types = {"dtype": dtype, "param_dtype": param_dtype}
        shared: dict[str, Any] = {"norm": norm, "residual": residual, **types, **options}
        self.features, self.layers, self.remat = features, layers, remat
        self.dropout = max(({**shared, **kind}.get("dropout", 0.0) for kind in pattern), default=0.0)
        turns, over = divmod(layers, len(pattern))

        def block(kind: LayerKind, rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(features, heads, rngs=rngs, **{**shared, **kind})

        def stacked(kind: LayerKind) -> TransformerBlock:
            return nnx.split_rngs(splits=turns)(nnx.vmap(lambda rngs: block(kind, rngs)))(rngs)

        self.blocks = nnx.List([stacked(kind) for kind in pattern] if turns else [])
        self.rest = nnx.List([block(kind, rngs) for kind in pattern[:over]])
        self.positional = nnx.data(None) if positional is None else positional
        ends = residual.norms != "post" if final_norm is None else final_norm
        self.norm = norm(features, rngs=rngs, **types) if ends else nnx.data(None)

    @of_calls
    @modes.ordinary
    def __call__(
        self,
        x: Float[AnyArray, "*b t features"],
        context: Float[AnyArray, "*b s context_features"] | None = None,
        *,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        context_mask: AnyMask = None,
        positions: ArrayLike | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Float[Array, "*b t features"]:
        """All blocks.

        Args:
          x: `[.., t, features]`, with any number of batch axes, or none.
          context: `[.., s, context_features]`, for the blocks with cross-attention.
          mask: of every block, beside its own, as are the others.
          mods: after those of `positional`.
          gates: likewise.
          bias: array broadcastable to `[.., h, t, s]`, added to every scaled score.
          context_mask: of cross-attentions.
          positions: for the blocks with a rotary embedding: numbers broadcastable to `[.., t]`, 0, 1, ... by default.
          deterministic: in the place of the blocks' own.
          rngs: where this call's dropout comes from, in the place of the blocks' own streams.

        Returns:
          `[.., t, features]`.

        Raises:
          ValueError, TypeError: input that does not fit.
        """
        _checks.check_array(x, "x", "t", self.features)
        call: dict[str, Any] = {
            "mask": mask, "mods": self._mods(mods), "gates": gates, "bias": bias, "context_mask": context_mask,
            "positions": positions, "deterministic": deterministic,
        }  # fmt: skip
        if isinstance(rngs, nnx.Rngs) and not _dropout.feeds(rngs):
            call["rngs"] = rngs  # blocks that drop something say what it lacks
        keys, kinds = self._keys(rngs, deterministic), len(self.blocks)
        first, last = (None, None) if keys is None else jnp.split(keys, [self.layers - len(self.rest)])
        out: Array = jnp.asarray(x)
        if kinds:
            turn, state = self._turn(self.blocks, context, call)
            layers = state, None if first is None else first.reshape(-1, kinds)
            through = lambda x, layer: turn(x, *layer)
            out, changed = jax.lax.scan(through, settled(through, out, layers), layers)
            _keep(self.blocks, changed)
        if self.rest:
            turn, state = self._turn(self.rest, context, call)
            out, changed = turn(out, state, last)
            _keep(self.rest, changed)
        return out if self.norm is None else self.norm(out)

    def _turn(self, blocks: nnx.List[TransformerBlock], context: AnyArray | None, call: dict[str, Any]) -> Any:
        """Blocks as a function of x, their arrays and keys, which gives what it has changed too; and those arrays.

        It is pure, so that it can be scanned and rematerialised inside whatever transformation the stack is called in.
        """
        graph, state = nnx.split(blocks)

        def turn(x: Array, state: nnx.State, keys: Array | None) -> tuple[Array, nnx.State]:
            merged = nnx.merge(graph, state)
            before = _variables(merged)
            for n, block in enumerate(merged):
                own = {**call, "positions": self._turned(block, call["positions"])}
                if keys is not None:
                    own["rngs"] = nnx.Rngs(dropout=keys[n])
                x = block(x, self._read(block, context), **own)
            # How far a stream of dropout has come, statistics of a norm, a loss that an MLP sows.
            after = _variables(merged)
            unchanged = {path for path, x in after.items() if path in before and before[path] is x}
            return x, nnx.state(merged, lambda path, _: path not in unchanged)

        return jax.checkpoint(turn) if self.remat else turn, state

    def _read(self, block: TransformerBlock, context: Any) -> Any:
        """The context, for a block that reads one; for all where none does, so that it is they who say so."""
        reads = any(x.cross_attention is not None for x in (*self.blocks, *self.rest))
        return None if reads and block.cross_attention is None else context

    def _turned(self, block: TransformerBlock, positions: ArrayLike | None) -> ArrayLike | None:
        """The positions, likewise, for a block with a rotary embedding."""
        turned = any(x.attention.rotary is not None for x in (*self.blocks, *self.rest))
        return None if turned and block.attention.rotary is None else positions

    def _mods(self, mods: Mods) -> tuple[mods_.Mod, ...]:
        """Those that the blocks share, and those of the call."""
        return (*(() if self.positional is None else several(self.positional())), *several(mods))

    def _keys(self, rngs: nnx.Rngs | nnx.RngStream | None, deterministic: bool | None) -> Array | None:
        """A key of dropout for each layer, of what a call is given."""
        _checks.check_call_rngs(rngs)
        if rngs is None or deterministic or not self.dropout:
            return None
        if isinstance(rngs, nnx.Rngs):
            return jax.random.split(rngs["dropout"](), self.layers) if _dropout.feeds(rngs) else None
        return jax.random.split(rngs(), self.layers)


def settled(turn: Callable[[Array, Any], tuple[Array, Any]], x: Array, layers: Any) -> Array:
    """x in the dtype that a turn of blocks gives: a scan carries but one."""
    first = lambda x, layers: turn(x, jax.tree.map(lambda array: array[0], layers))[0]
    return x.astype(jax.eval_shape(first, x, layers).dtype)


def _variables(blocks: nnx.List[TransformerBlock]) -> dict[Any, Any]:
    """What each variable holds, by its path."""
    return {path: x.get_raw_value() for path, x in nnx.to_flat_state(nnx.state(blocks))}


def _keep(blocks: nnx.List[TransformerBlock], changed: nnx.State) -> None:
    """Writes what blocks have changed; nothing where they have not, as a stack may be called where nobody may write."""
    if jax.tree.leaves(changed):
        nnx.update(blocks, changed)
