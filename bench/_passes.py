"""The passes that every machine measures: forward alone, and forward with the gradients."""

DIRECTIONS = ("fwd", "fwdbwd")
TITLES = {"fwd": "forward", "fwdbwd": "forward + backward"}
BACKWARD = 3.5  # forward and backward flops over forward's: the backward has five products, the forward two


def flops(heads: int, d: int, pairs: int, backward: bool) -> float:
    """4 d for each head and attended pair, `BACKWARD` times that with the gradients: the same count for everybody."""
    return 4.0 * heads * d * pairs * (BACKWARD if backward else 1.0)
