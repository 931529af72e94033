"""Checkpoints: which are refused."""

import shutil

import pytest

from jattn.zoo._errors import UsageError
from jattn.zoo._train import train
from tests.zoo.tasks import line


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"task": "line", "seed": 5}, "seed=0, this run has seed=5"),
        ({"task": "curve", "seed": 0}, "task=line, this run has task=curve"),
        ({"task": "line", "seed": 0, "heads": 2}, "heads=None, this run has heads=2"),
    ],
)
def test_a_checkpoint_made_with_other_settings_is_refused(tmp_path, other, message):
    train(line(), 1, tmp_path)
    with pytest.raises(UsageError, match=message):
        train(line(settings=other), 2, tmp_path)


@pytest.mark.parametrize("part", ["settings", "state"])
def test_a_damaged_checkpoint_is_refused(tmp_path, part):
    train(line(), 1, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / part)
    with pytest.raises(UsageError, match="cannot read the checkpoint of step 1"):
        train(line(), 2, tmp_path)
