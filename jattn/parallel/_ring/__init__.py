"""Ring attention as a backend: keys and values go round the devices, and each attends to what it holds just then.

It binds the primitives of an inner backend, whose kernels compute what one device's queries see of another's keys.  So
every derivative is inherited: gradients need the lse over all keys alone, and nothing is saved for each step.

Device r of n has a chunk of the queries and one of the keys; or, in zig-zag order, the chunks r and 2n - 1 - r of 2n,
so that under a causal mask all have as much to do.  At step i it holds the keys of device r - i.  Those are sent on
before the kernels run that need them, so that the network works while they do.  A piece of queries and keys of which no
pair attends is not computed, and where all do the mask is not looked at.

What has an axis s and no axis t goes round with the keys, and so do its gradients; what has both holds all of s.  Sums
over steps are float32 or wider.
"""

from jattn.backends.contract import Fused
from jattn.parallel._ring.backward import backward
from jattn.parallel._ring.forward import forward
from jattn.parallel._ring.ring import RingSettings as RingSettings
from jattn.parallel._ring.tangent import tangent
from jattn.parallel._ring.twin import twin


def backend(settings: RingSettings) -> Fused:
    """The ring with such settings."""
    refuses = lambda problem, target: None  # who makes it has looked
    return Fused("ring", refuses, forward, tangent, backward, settings=settings, twin=twin)
