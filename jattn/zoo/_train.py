"""The training loop that every task shares: progress, evaluation, checkpoints, pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from tqdm import tqdm

from jattn.zoo import _checkpoint as checkpoint
from jattn.zoo import _figure, _mesh
from jattn.zoo._task import Task


class TrainState(NamedTuple):
    """All that changes from step to step."""

    params: Any
    optimizer: Any


@partial(jax.jit, static_argnums=(0, 1, 2))
def update(
    loss: Callable[[Any, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    graph: Any,
    state: TrainState,
    batch: Any,
) -> tuple[TrainState, jax.Array]:
    """One step: the state after it, and the loss before it."""
    value, gradient = jax.value_and_grad(lambda params: loss(nnx.merge(graph, params), batch))(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    return TrainState(optax.apply_updates(state.params, updates), optimizer_state), value


def train(task: Task, steps: int, out: Path, every: int = 250) -> float:
    """Trains `task` up to `steps`, from the checkpoint under `out` if there is one.

    Every `every` steps, and at the end, evaluates and saves.  Whether a run was stopped or not makes no difference to
    its result.

    Returns:
        The final evaluation.

    Raises:
        UsageError: `out` cannot be used, or holds a checkpoint made with other settings.
    """
    devices, first_process = task.devices, _mesh.is_first()
    graph, params = nnx.split(task.model, nnx.Param)
    whole = lambda state: nnx.merge(graph, devices.whole(state.params))
    with checkpoint.open_checkpoints(out) as manager:
        fresh = devices.place(TrainState(params, task.optimizer.init(params)))
        first, state = checkpoint.restore(manager, fresh, task.settings)
        step_of = devices.step(partial(update, task.loss, task.optimizer, graph), state)
        if first:
            say(f"{out}: {'going on from' if first < steps else 'finished already, at'} step {first}")
        if first < steps:
            say("compiling")
            with devices.at_work():  # what no backend can do is said before a bar is drawn
                jax.eval_shape(step_of, state, task.batch(first))
        begun = time.monotonic() - _seconds(out, first)
        figure = None
        silent = first >= steps or not first_process
        with tqdm(range(first, steps), initial=first, total=steps, unit="step", disable=silent) as bar:
            for step in bar:
                with devices.at_work():
                    state, loss = step_of(state, devices.batch(task.batch(step)))
                done = step + 1
                if done % 10 == 0:
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                if done % every == 0 or done == steps:
                    figure = _evaluate(task, whole(state), done, time.monotonic() - begun)
                    say(f"step {done}: loss {loss:.4f}, {task.metric} {figure.shown}")
                    checkpoint.save(manager, done, state, task.settings)
                    if first_process:
                        _figure.save(out, figure)
    model = whole(state)
    if figure is None:
        figure = _evaluate(task, model, first, _seconds(out, first))
        say(f"step {first}: {task.metric} {figure.shown}")
    if figure.baseline is not None:
        say(f"for comparison: {figure.baseline[0]} {figure.baseline[1]}")
    if task.written is not None:
        say(task.written(model))
    for name, picture in (task.pictures(model) if first_process else {}).items():
        picture.savefig(out / name)
        say(f"picture: {out / name}")
    return figure.value


def say(text: str) -> None:
    """Prints above the bar, at once even where the output is no terminal; once, where there are several processes."""
    if _mesh.is_first():
        tqdm.write(text)
        sys.stdout.flush()


def _evaluate(task: Task, model: nnx.Module, step: int, seconds: float) -> _figure.Figure:
    value = task.evaluate(model)
    baseline = None if task.baseline is None else (task.baseline[0], task.show(task.baseline[1]))
    return _figure.Figure(task.metric, value, task.show(value), baseline, step, seconds)


def _seconds(out: Path, step: int) -> float:
    """How long the run under `out` took to get to a step."""
    before = _figure.load(out)
    return before.seconds if before is not None and before.step == step else 0.0
