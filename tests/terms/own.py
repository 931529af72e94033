"""Gates as a user writes them, which several tests take."""

from jattn import gates


class Kernel(gates.Gate):
    """weight * (1 + scale * (i - center)^2): two operands, one of them with axes."""

    def __init__(self, scale, center):
        self.scale, self.center = scale, center

    def __call__(self, weight, i, j):
        return weight * (1 + self.scale * (j - self.center) ** 2)


class Both(gates.Gate):
    """One gate after the other, of which either may be the library's."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def __call__(self, weight, i, j):
        return self.second(self.first(weight, i, j), i, j)
