"""The kernels of each generation: what they take and return is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jattn_kernels.gpu.ampere import backward_keys as ampere_keys
from jattn_kernels.gpu.ampere import backward_pairs as ampere_pairs
from jattn_kernels.gpu.ampere import backward_queries as ampere_queries
from jattn_kernels.gpu.ampere import forward as ampere_forward
from jattn_kernels.gpu.blackwell import backward_keys as blackwell_keys
from jattn_kernels.gpu.blackwell import backward_pairs as blackwell_pairs
from jattn_kernels.gpu.blackwell import backward_queries as blackwell_queries
from jattn_kernels.gpu.blackwell import forward as blackwell_forward
from jattn_kernels.gpu.hopper import backward_keys as hopper_keys
from jattn_kernels.gpu.hopper import backward_pairs as hopper_pairs
from jattn_kernels.gpu.hopper import backward_queries as hopper_queries
from jattn_kernels.gpu.hopper import forward as hopper_forward

from jattn._call.targets import Target
from jattn.backends.pallas_gpu.sizes import Generation, generation


class Kernels(NamedTuple):
    """The kernels of one generation; the `run` of each in `jattn_kernels.gpu` says what it computes."""

    forward: Callable
    queries: Callable
    keys: Callable
    pairs: Callable


_KERNELS: dict[Generation, Kernels] = {
    "ampere": Kernels(
        ampere_forward.forward,
        ampere_queries.backward_queries,
        ampere_keys.backward_keys,
        ampere_pairs.backward_pairs,
    ),
    "hopper": Kernels(
        hopper_forward.forward,
        hopper_queries.backward_queries,
        hopper_keys.backward_keys,
        hopper_pairs.backward_pairs,
    ),
    "blackwell": Kernels(
        blackwell_forward.forward,
        blackwell_queries.backward_queries,
        blackwell_keys.backward_keys,
        blackwell_pairs.backward_pairs,
    ),
}


def kernels(target: Target) -> Kernels:
    """The kernels of the generation of GPUs that the target is of."""
    return _KERNELS[generation(target)]
