"""What came of one step of one contender, and where the figure is from."""

from dataclasses import asdict, dataclass
from typing import Any

from bench.decode._cases import Case


@dataclass(frozen=True)
class Row:
    """A step's time beside the time that its bytes take.

    Attributes:
        case: which step.
        machine: a chip's name, or `cpu`.
        contender: whose program.
        milliseconds: of the step, None where there is no figure.
        limit: milliseconds that reading the keys and values takes that are seen.
        around: of the milliseconds, what the program does besides its kernels, where that is counted.
        starts: kernels that the program starts on a GPU, which takes time of its own.
        error: why there is no figure.
    """

    case: Case
    machine: str
    contender: str
    milliseconds: float | None
    limit: float
    around: float | None = None
    starts: int | None = None
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as long as its bytes a step takes."""
        return None if self.milliseconds is None else self.milliseconds / self.limit

    @property
    def tokens(self) -> float | None:
        """Tokens a second, over the batch."""
        return None if self.milliseconds is None else 1e3 * self.case.b / self.milliseconds

    def as_json(self) -> dict[str, Any]:
        """Everything, with the figures that are made of it."""
        return {"name": self.case.name, **asdict(self), "ratio": self.ratio, "tokens_per_second": self.tokens}
