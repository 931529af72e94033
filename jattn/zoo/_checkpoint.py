"""Checkpoints: the state of a run and the settings it was made with, written atomically by Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import orbax.checkpoint as ocp

from jattn.zoo._errors import UsageError

State = TypeVar("State")


def open_checkpoints(out: Path) -> ocp.CheckpointManager:
    """The checkpoints under `out`, of which the newest is kept.  Use as a context manager.

    Raises:
        UsageError: `out` is not a directory and cannot become one.
    """
    folder = out.resolve() / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
        made_with = manager.restore(step, args=ocp.args.Composite(settings=ocp.args.JsonRestore()))["settings"]
        _compare(made_with, settings, manager.directory)
        state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(fresh)))["state"]
    except UsageError:
        raise
    except Exception as error:  # Orbax says in many ways that a file is missing or damaged
        raise UsageError(f"cannot read the checkpoint of step {step} in {manager.directory}: remove it") from error
    return step, state


def _compare(made_with: dict[str, Any], settings: dict[str, Any], folder: Any) -> None:
    differing = [name for name in sorted({*made_with, *settings}) if made_with.get(name) != settings.get(name)]
    if differing:
        theirs, ours = (", ".join(f"{name}={of.get(name)}" for name in differing) for of in (made_with, settings))
        raise UsageError(f"{folder} was made with {theirs}, this run has {ours}: use those settings, or another --out")
