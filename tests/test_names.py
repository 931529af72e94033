"""Names of what lies in the files of a package: those of the package, once it has been imported."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys

import pytest

from jattn import _names

FILES = {
    "__init__.py": """
from collections import OrderedDict
from math import pi
from shapes._round import Circle, area, LEFT
from shapes_apart import Apart
""",
    "_round.py": '''
class Circle:
    """A circle."""

    class Centre:
        pass

    def turned(self):
        return self

    def __eq__(self, other):
        return isinstance(other, Circle)


class Unseen:
    pass


def area(radius):
    return 3 * radius**2


LEFT = 4
''',
}


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A package of one file, and another whose name begins as its own does."""
    (tmp_path / "shapes").mkdir()
    for name, text in FILES.items():
        (tmp_path / "shapes" / name).write_text(text)
    (tmp_path / "shapes_apart.py").write_text("class Apart:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module("shapes")
    for name in [x for x in sys.modules if x.startswith("shapes")]:
        del sys.modules[name]


def test_what_the_package_shows_of_its_files_takes_its_name(shapes):
    written = importlib.import_module("shapes._round")
    assert {x.__module__ for x in (shapes.Circle, shapes.area, written.Unseen)} == {"shapes._round"}
    _names.of_package("shapes")
    assert shapes.Circle is written.Circle
    assert {x.__module__ for x in (shapes.Circle, shapes.area)} == {"shapes"}
    assert repr(shapes.Circle) == "<class 'shapes.Circle'>"


def test_what_is_named_takes_it_wherever_it_is_written(shapes):
    _names.of_package("shapes", shapes.Apart)
    assert repr(shapes.Apart) == "<class 'shapes.Apart'>"
    assert pickle.loads(pickle.dumps(shapes.Apart)) is shapes.Apart


def test_all_else_keeps_the_name_of_its_own_module(shapes):
    _names.of_package("shapes")
    assert importlib.import_module("shapes._round").Unseen.__module__ == "shapes._round"
    assert shapes.OrderedDict.__module__ == "collections"
    assert shapes.Apart.__module__ == "shapes_apart"
    assert shapes.LEFT == 4


def test_pickles_of_either_name_are_read(shapes):
    """Those from before know the file, and those that are written now know the package alone."""
    before = pickle.dumps(shapes.Circle(), protocol=0)
    assert b"shapes._round" in before
    _names.of_package("shapes")
    after = pickle.dumps(shapes.Circle(), protocol=0)
    assert b"shapes\nCircle\n" in after and b"_round" not in after
    assert pickle.loads(before) == pickle.loads(after) == shapes.Circle()


def test_sources_of_functions_and_methods_are_found_where_they_are_written(shapes):
    _names.of_package("shapes")
    assert inspect.getsource(shapes.area).startswith("def area(radius):")
    assert inspect.getsource(shapes.Circle.turned).startswith("    def turned(self):")
