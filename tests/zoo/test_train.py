"""The training loop: runs that are stopped, go on and are repeated, and what they report."""

import jax
import numpy as np
import pytest
from flax import nnx

from jattn.zoo._train import train
from tests.zoo.tasks import line, tiny


def final(out, task):
    """The parameters that a finished run left."""
    kept = []
    train(task._replace(pictures=lambda model: kept.append(nnx.state(model)) or {}), 1, out)
    return jax.tree.leaves(kept[0])


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["line", "dates"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, capsys, name):
    task = line() if name == "line" else tiny("dot")._replace(evaluate=lambda model: 0.0, pictures=lambda model: {})

    def interrupted(step):
        if step == 7:
            raise KeyboardInterrupt
        return task.batch(step)

    train(task, 9, tmp_path / "whole", every=3)
    with pytest.raises(KeyboardInterrupt):
        train(task._replace(batch=interrupted), 9, tmp_path / "stopped", every=3)
    capsys.readouterr()
    train(task, 9, tmp_path / "stopped", every=3)
    assert "going on from step 6" in capsys.readouterr().out
    assert_same(final(tmp_path / "whole", task), final(tmp_path / "stopped", task))


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    task = line()
    train(task, 4, tmp_path / "longer")
    shorter = final(tmp_path / "longer", task)
    train(task, 8, tmp_path / "longer")
    train(task, 8, tmp_path / "whole")
    assert_same(final(tmp_path / "whole", task), final(tmp_path / "longer", task))
    assert not np.array_equal(shorter[0], final(tmp_path / "longer", task)[0])


def test_a_finished_run_is_evaluated_again_and_not_changed(tmp_path, capsys):
    first = train(line(), 3, tmp_path)
    before = final(tmp_path, line())

    def forbidden(step):
        raise AssertionError(f"step {step} was taken")

    capsys.readouterr()
    again = train(line(batch=forbidden), 3, tmp_path)
    out, err = capsys.readouterr()
    assert "finished already, at step 3" in out
    assert f"step 3: fit {first:.1%}" in out
    assert err == ""
    assert again == first
    assert_same(before, final(tmp_path, line()))


def test_progress_evaluations_and_pictures_are_reported(tmp_path, capsys):
    accuracy = train(tiny("dot"), 2, tmp_path, every=1)
    out, err = capsys.readouterr()
    first, *lines = out.splitlines()
    assert first == "compiling"
    assert lines[0].startswith("step 1: loss ")
    assert lines[1].endswith(f"held-out exact match {accuracy:.1%}")
    assert lines[2] == f"picture: {tmp_path / 'alignments.png'}"
    assert (tmp_path / "alignments.png").read_bytes().startswith(b"\x89PNG")
    assert "2/2" in err


def test_what_a_model_writes_is_printed_at_the_end(tmp_path, capsys):
    for _ in range(2):  # as it is when the run is repeated
        train(line(written=lambda model: f"weights of\n{model.kernel.shape}"), 2, tmp_path)
        assert capsys.readouterr().out.endswith("weights of\n(3, 1)\n")
