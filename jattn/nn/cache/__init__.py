"""What decoding remembers: caches of layers, of whatever kind, and what is done with the examples in them.

Layers make caches (`layer.cache(n, batch, ..)`, `layer.read(context)`), and what makes one says its kind: contiguous,
sliding with a window, in pages, of few bits.  `layer.decode` and the functions here take them all, alone or as the
pytree that a stack of layers has.
"""

from jattn.nn.cache._examples import accept as accept
from jattn.nn.cache._examples import fork as fork
from jattn.nn.cache._examples import free as free
from jattn.nn.cache._examples import put as put
from jattn.nn.cache._examples import shorten as shorten
from jattn.nn.cache._examples import take as take
from jattn.nn.cache._record import BlockCache as BlockCache
from jattn.nn.cache._record import Cache as Cache
from jattn.nn.cache._record import StackCache as StackCache

__all__ = ["BlockCache", "Cache", "StackCache", "accept", "fork", "free", "put", "shorten", "take"]


def __dir__() -> list[str]:
    return __all__
