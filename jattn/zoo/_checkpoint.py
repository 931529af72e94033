"""Checkpoints: the state of a run and the settings it was made with, written atomically by Orbax."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import orbax.checkpoint as ocp

from jattn.zoo._errors import UsageError

State = TypeVar("State")


def check(out: Path, known: Mapping[str, Any]) -> None:
    """Makes `out`, and finds out whether a run can be kept there, before anything is made that takes long.

    Args:
        out: where the run is to be kept.
        known: of the run's settings those known by now; what is none of a checkpoint's settings is passed over.

    Raises:
        UsageError: `out` cannot be written to, or holds a checkpoint made with other settings, or one that cannot be
            read.
    """
    with open_checkpoints(out) as manager:
        step = manager.latest_step()
        if step is not None:
            made_with = _made_with(manager, step)
            theirs, ours = ({x: of[x] for x in made_with.keys() & known.keys()} for of in (made_with, known))
            _compare(theirs, ours, manager.directory)


def open_checkpoints(out: Path) -> ocp.CheckpointManager:
    """The checkpoints under `out`, of which the newest is kept.  Use as a context manager.

    Raises:
        UsageError: `out` is not a directory that can be written to, and cannot become one.
    """
    folder = out.resolve() / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in (folder.parent, folder):
            tempfile.TemporaryFile(dir=each).close()
    except OSError as error:
        raise UsageError(f"--out must be a directory, or a path where one can be made, got {out} ({error})") from error
    # synchronous: when save returns, the checkpoint is whole, so a Ctrl-C costs the steps since then and nothing else
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder, options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any, settings: dict[str, Any]) -> None:
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), settings=ocp.args.JsonSave(settings))
    manager.save(step, args=items)


def restore(manager: ocp.CheckpointManager, fresh: State, settings: dict[str, Any]) -> tuple[int, State]:
    """The newest step and its state, or 0 and `fresh` where there is none.

    Raises:
        UsageError: the checkpoint was made with other settings, or cannot be read.
    """
    step = manager.latest_step()
    if step is None:
        return 0, fresh
    try:
        _compare(_made_with(manager, step), settings, manager.directory)
        state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(fresh)))["state"]
    except UsageError:
        raise
    except Exception as error:
        raise _unreadable(manager, step) from error
    return step, state


def _made_with(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The settings of a checkpoint."""
    try:
        return manager.restore(step, args=ocp.args.Composite(settings=ocp.args.JsonRestore()))["settings"]
    except Exception as error:
        raise _unreadable(manager, step) from error


def _unreadable(manager: ocp.CheckpointManager, step: int) -> UsageError:
    """What any exception of Orbax becomes: it says in many ways that a file is missing or damaged."""
    return UsageError(f"cannot read the checkpoint of step {step} in {manager.directory}: remove it")


def _compare(made_with: Mapping[str, Any], settings: Mapping[str, Any], folder: Any) -> None:
    differing = [name for name in sorted({*made_with, *settings}) if made_with.get(name) != settings.get(name)]
    if differing:
        theirs, ours = (", ".join(f"{name}={of.get(name)}" for name in differing) for of in (made_with, settings))
        raise UsageError(f"{folder} was made with {theirs}, this run has {ours}: use those settings, or another --out")
