"""What is differentiated: three primitives, from which every derivative and vmap of a fused backend is made."""

from jattn._derivatives import batching, rules  # registers their rules
from jattn._derivatives import in_pages as in_pages
from jattn._derivatives.narrow import attend as attend
from jattn._derivatives.rules import RESIDUAL_NAMES as RESIDUAL_NAMES

del batching, rules
