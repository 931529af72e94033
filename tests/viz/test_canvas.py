"""What the pictures share."""

import sys

import numpy as np
import pytest

from jattn import masks, viz
from jattn._extras import how_to_install

PICTURES = {
    "weights": lambda: viz.show_weights(np.eye(3)),
    "positions": lambda: viz.show_positions([0.5, 0.5]),
    "blocks": lambda: viz.show_blocks(masks.causal(), (4, 4), (2, 2)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_without_matplotlib_the_error_says_how_to_install_it(name, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.patches"):
        monkeypatch.setitem(sys.modules, module, None)  # which Python takes for a module that is not there
    with pytest.raises(ModuleNotFoundError) as error:
        PICTURES[name]()
    assert str(error.value) == f"jattn.viz draws with matplotlib, which is not installed: {how_to_install('zoo')}"
    assert error.value.name == "matplotlib"
