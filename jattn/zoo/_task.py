"""What a task is: the interface between its data and model, and the loop that every task shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import optax
from flax import nnx

from jattn.zoo._mesh import Devices

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Task(NamedTuple):
    """A model, what it learns from and how well it does.  Every function is pure.

    settings: JSON values that decide the result; a checkpoint made with others is refused.
    model: freshly initialised; all of its state is `nnx.Param`.
    batch: step -> arrays.  Depends on nothing but the step, so a run that was stopped goes on as if it had not been.
    loss: (model, batch) -> scalar.
    evaluate: model -> a figure on held-out examples; `metric` is its name, `show` how it is printed.
    pictures: model -> figures by file name, drawn at the end.
    baseline: name and value of what the figure is to be compared with, such as the share of the majority class.
    written: model -> text that it writes, printed at the end; None where it writes none.
    devices: on which it learns; evaluations, pictures and what is written are of one of them.
    """

    settings: dict[str, Any]
    model: nnx.Module
    optimizer: optax.GradientTransformation
    batch: Callable[[int], Any]
    loss: Callable[[Any, Any], jax.Array]
    evaluate: Callable[[Any], float]
    metric: str
    pictures: Callable[[Any], dict[str, Figure]]
    show: Callable[[float], str] = "{:.1%}".format
    baseline: tuple[str, float] | None = None
    written: Callable[[Any], str] | None = None
    devices: Devices = Devices()
