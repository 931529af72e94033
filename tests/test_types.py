"""What type checkers and completion see of the public modules."""

import importlib.resources
import inspect

import pytest

import jattn
from jattn import gates, masks, mods, normalizers, parallel, scores, viz

MODULES = (jattn, gates, masks, mods, normalizers, parallel, scores, viz)


@pytest.mark.parametrize("package", ["jattn", "jattn_kernels"])
def test_packages_say_that_they_are_typed(package):
    assert importlib.resources.files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize("module", MODULES, ids=lambda x: x.__name__)
def test_a_module_lists_what_users_call(module):
    listed = set(dir(module)) - {"nn", "parallel", "viz", "zoo", "__version__"}
    assert listed == set(module.__all__)
    assert all(hasattr(module, x) for x in listed)


@pytest.mark.parametrize("module", MODULES[1:], ids=lambda x: x.__name__)
def test_every_function_without_an_underscore_is_listed(module):
    own = [n for n, x in vars(module).items() if inspect.isfunction(x) and x.__module__ == module.__name__]
    assert [n for n in own if not n.startswith("_") and n not in module.__all__] == []
