"""A tile function inside a Mosaic GPU kernel, whose lowering lacks many of JAX's primitives.

`lowered(fn, shape, machine)` traces fn as every backend does, with tiles `[rows, columns]` and positions `[rows,
1]` and `[1, columns]`, and replays what was traced. While it does,

- what depends on a row or a column alone stays a vector, which a thread holds few numbers of: only the first
  operation that mixes rows and columns makes a whole tile (`arrays.py`);
- primitives that Mosaic lacks are rewritten (`numbers.py`, `rewrites.py`), calls inlined, short loops unrolled
  (`jaxprs.py`);
- a `Table` is never loaded as an array: it is a function of indices, as is all that is computed of it, until the
  indices are known and one number for each place is looked up (`moving.py`, `look_ups.py`, `reductions.py`).

The trace has stand-ins for rows and columns, two primes, so that a dimension's size says which of the two it is,
however large the tile is: a tile may have as many rows as columns, or one of either.
"""

from jattn_kernels.gpu.lowering.entry import lowered as lowered
from jattn_kernels.gpu.lowering.entry import why_not as why_not
from jattn_kernels.gpu.lowering.tagged import Column as Column
from jattn_kernels.gpu.lowering.tagged import Kind as Kind
from jattn_kernels.gpu.lowering.tagged import Machine as Machine
from jattn_kernels.gpu.lowering.tagged import NotLowered as NotLowered
from jattn_kernels.gpu.lowering.tagged import Plain as Plain
from jattn_kernels.gpu.lowering.tagged import Row as Row
from jattn_kernels.gpu.lowering.tagged import Table as Table
