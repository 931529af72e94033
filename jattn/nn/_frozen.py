"""Terms whose arrays a layer keeps and does not learn."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jattn._terms import Term


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What `frozen` makes; the layers take it apart.

    Attributes:
      term: what `jattn.attention` takes.
    """

    term: Term


def frozen(term: Term) -> Frozen:
    """Marks a score, normaliser, mod or gate whose arrays a layer shall keep as they are.

    Arrays in the options of a layer become parameters, which optimisers move and weight decay shrinks.  Those of a
    frozen term become plain `nnx.Variable`s: saved with the layer, and no `nnx.Param`.  (Arrays of masks always are.)
    In a call of a layer, the arrays of a frozen term get no gradient.

    Args:
      term: from `jattn.scores`, `jattn.normalizers`, `jattn.mods` or `jattn.gates`, or of a class of your own.

    Returns:
      What layers and `jattn.nn.attention_fn` take in the term's place.  `jattn.attention` takes the term itself.

    Raises:
      TypeError: it is no such term.

    >>> import jattn
    >>> from flax import nnx
    >>> from jattn import mods
    >>> alibi = jattn.nn.frozen(mods.alibi(mods.alibi_slopes(4)))
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, mods=(alibi, mods.softcap(30.0)), rngs=nnx.Rngs(0))
    >>> "arrays" in nnx.state(layer, nnx.Param)
    False

    No source: weights that are not trained are told apart in this way by every framework.
    """
    if not isinstance(term, Term):
        raise TypeError(f"frozen takes a score, normaliser, mod or gate, like jattn.mods.alibi(slopes), got {term!r}")
    return Frozen(term)


def thawed(value: Any) -> Any:
    """The term for `jattn.attention`, without a gradient to its arrays; or the value itself."""
    return jax.tree.map(jax.lax.stop_gradient, value.term) if isinstance(value, Frozen) else value
