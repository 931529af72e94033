"""cuDNN's fused attention, as JAX binds it, where it keeps jattn's contracts.

`refuses` says where that is, `binding` calls it; `call`, `forward` and `backward` do around it what the contracts want:
NaN in what nobody sees stays there, rows that see nothing give 0 and -inf, and the gradient of lse exists.

One contract it keeps only where XLA is asked to: gradients have the same bits each time with
`--xla_gpu_deterministic_ops=true` in `XLA_FLAGS`.  So whoever confirms its backward pass looks at the bits without.
"""

from __future__ import annotations

from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Fused
from jattn.backends.cudnn.backward import backward
from jattn.backends.cudnn.forward import forward
from jattn.backends.cudnn.refuses import unfit
from jattn.backends.cudnn.settings import Settings
from jattn.backends.deferred import deferred


@deferred
def _cut():
    from jattn.backends.cudnn.cut import cut  # which estimates as for Pallas, whose kernels it imports

    return cut


CUDNN = Fused(
    "cudnn", unfit, forward, BLOCKWISE.tangent, backward, _cut, Settings(),
    untried="bound and lowered, not yet shown to keep the contracts on this chip", out_as_query=True,
)  # fmt: skip
