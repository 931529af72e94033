"""What type checkers and completion see of the public modules."""

import importlib.resources
import inspect
import typing

import pytest

import jattn
from jattn import gates, masks, mods, nn, normalizers, parallel, scores, viz
from jattn._call import options
from jattn.parallel._attention import StrategyOptions

MODULES = (jattn, gates, masks, mods, nn, nn.cache, normalizers, parallel, scores, viz)
BEHIND_FUNCTIONS = (gates, masks, mods, normalizers, scores)  # whose classes are made by functions, and may change


@pytest.mark.parametrize("package", ["jattn", "jattn_kernels"])
def test_packages_say_that_they_are_typed(package):
    assert importlib.resources.files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize("module", MODULES, ids=lambda x: x.__name__)
def test_a_module_lists_what_users_call(module):
    listed = set(dir(module)) - {"nn", "parallel", "viz", "zoo", "__version__"}
    assert listed == set(module.__all__)
    assert all(hasattr(module, x) for x in listed)


@pytest.mark.parametrize("module", MODULES, ids=lambda x: x.__name__)
def test_every_name_without_an_underscore_is_listed(module):
    """Of what is defined in the module, or in a file of the package that it is."""
    kinds = (inspect.isfunction,) if module in BEHIND_FUNCTIONS else (inspect.isfunction, inspect.isclass)
    inside = lambda x: f"{x.__module__}.".startswith(f"{module.__name__}.")
    own = [n for n, x in vars(module).items() if any(kind(x) for kind in kinds) and inside(x)]
    assert set(own) & set(module.__all__), "none are found"
    assert [n for n in own if not n.startswith("_") and n not in module.__all__] == []


def _public():
    for module in MODULES:
        for name in module.__all__:
            if inspect.isclass(x := getattr(module, name)) or inspect.isfunction(x):
                yield f"{module.__name__}.{name}", x


PUBLIC = dict(_public())


@pytest.mark.parametrize("name", [x for x in PUBLIC if not x.startswith("jattn.viz.")])
def test_type_hints_can_be_looked_up(name):
    """Those of a class in what its `__module__` names, which need not be the file that it is written in.

    Not those of `jattn.viz`, which name what matplotlib has: it is imported where something is drawn.
    """
    x = PUBLIC[name]
    written = [x, *(f for f in vars(x).values() if inspect.isfunction(f))] if inspect.isclass(x) else [x]
    for one in written:
        typing.get_type_hints(one)


def test_public_classes_print_as_users_write_them():
    shown = {
        name
        for name, x in PUBLIC.items()
        if name.startswith(("jattn.masks.", "jattn.parallel.")) and inspect.isclass(x)
    }
    assert {"jattn.masks.Range", "jattn.masks.Answer", "jattn.parallel.ParallelPlan"} < shown
    assert {repr(PUBLIC[name]) for name in shown} == {f"<class '{name}'>" for name in shown}


def test_options_that_are_handed_on_are_those_of_attention():
    all_of_them = set(inspect.signature(jattn.attention).parameters) - {"query", "key", "value"}
    own = {"implementation", "blocks"}
    assert set(options.PlanOptions.__annotations__) == all_of_them - own
    assert set(options.WeightOptions.__annotations__) == all_of_them - own - {"return_lse"}
    refused = {"normalizer", "gates", "sinks", "dropout", "return_lse"}
    assert set(options.ScoreOptions.__annotations__) == all_of_them - own - refused
    in_pages = {"pages", "scales"}
    assert set(options.ShardedPlanOptions.__annotations__) == all_of_them - own - in_pages
    assert set(options.ShardedOptions.__annotations__) == all_of_them - own - in_pages - {"return_lse"}


def test_options_of_a_strategy_are_those_of_attention_over_devices():
    named = set(inspect.signature(parallel.attention).parameters) - {"query", "key", "value", "strategy", "options"}
    handed_on = set(StrategyOptions.__annotations__) - set(options.ShardedOptions.__annotations__)
    assert handed_on == named - {"return_lse"}
    assert typing.get_type_hints(StrategyOptions, include_extras=True)["sequence_axis"] == typing.Required[str]
