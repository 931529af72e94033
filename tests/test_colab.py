"""The notebooks: each runs from top to bottom where jattn is installed, and is committed without outputs."""

import ast
import importlib.util
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from traitlets.config import Config

from jattn._extras import ADDRESS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
INSTALL = """\
from importlib.util import find_spec
from pathlib import Path

if find_spec("jattn_kernels") is None:  # installed with jattn, and found nowhere else
    around = (Path.cwd(), *Path.cwd().parents)
    checkout = next((folder for folder in around if (folder / "kernels/jattn_kernels").is_dir()), None)
    if checkout is None:
        get = 'git clone https://github.com/jattn/jattn && pip install "./jattn[zoo]"'
        raise ModuleNotFoundError(f"jattn is not installed, and this notebook stands in no checkout of it: {get}")
    %pip install -q "{checkout}[zoo]\""""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class _ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs the tests, whatever kernels are installed."""

    kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])  # pyright: ignore[reportAssignmentType]  # a property there, fixed here


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_eight_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_", "5_", "6_", "7_", "8_"]


@each_notebook
def test_nothing_stale_is_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata == METADATA
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in _code(notebook))


@each_notebook
def test_its_title_installation_and_links(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith(f"# {path.name[0]}. ")
    assert _code(notebook)[0].source == INSTALL
    for link in re.findall(r"\]\((?!https:)(.*?)\)", "\n".join(cell.source for cell in notebook.cells)):
        assert (path.parent / link).exists(), link


def _commands(monkeypatch, folder, spec):
    """What the first cell would run, opened in a folder, where a package has been found or not."""
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    commands = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    shell.magics_manager.register_function(commands.append, "line", "pip")
    shell.run_cell(INSTALL).raise_error()
    return commands


def test_nothing_is_installed_where_jattn_is(monkeypatch, tmp_path):
    assert _commands(monkeypatch, tmp_path, spec=object()) == []


@pytest.mark.parametrize("folder", [ROOT, ROOT / "colab"], ids=["root", "colab"])
def test_the_checkout_around_is_installed(monkeypatch, folder):
    assert _commands(monkeypatch, folder, spec=None) == [f'install -q "{ROOT}[zoo]"']


def test_elsewhere_one_line_says_how_to_get_a_checkout(monkeypatch, tmp_path):
    with pytest.raises(ModuleNotFoundError, match=f"git clone {ADDRESS} && pip install") as error:
        _commands(monkeypatch, tmp_path, spec=None)
    assert "\n" not in str(error.value)


def _source(number):
    """The code of a notebook, without what is for notebooks alone."""
    return "\n".join(
        cell.source.replace("%matplotlib inline", "")
        for cell in _code(nbformat.read(NOTEBOOKS[number - 1], as_version=4))[1:]
    )


def _pictures(number):
    """The calls of `viz`, each as its function's name and those of its keyword arguments that are constants."""
    calls = (node for node in ast.walk(ast.parse(_source(number))) if isinstance(node, ast.Call))
    return [
        (call.func.attr, {x.arg: x.value.value for x in call.keywords if isinstance(x.value, ast.Constant)})
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr.startswith("show_")
    ]


def test_the_library_has_books():
    pictures = _pictures(1)
    assert len(pictures) == 6
    assert all(options["xlabel"] == "book" for _, options in pictures)


def test_texts_are_made_of_words_and_the_rows_of_the_lstm_have_each_its_own_scale():
    positions = [options for name, options in _pictures(2) if name == "show_positions"]
    assert len(positions) == 3
    assert all(options["xlabel"] == "word" for options in positions)
    assert [options.get("sharey", True) for options in positions].count(False) == 1


def test_the_training_loop_asserts_that_it_learns_and_asks_the_layer_for_its_weights():
    source = _source(4)
    assert re.search(r"^assert last < .*losses\[0\]$", source, re.MULTILINE)
    assert "first.attention.weights(x)" in source and "jattn.weights(" not in source


@each_notebook
def test_it_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
        "IPYTHONDIR": str(tmp_path / "ipython"),  # nobody's own settings
    }
    client = NotebookClient(
        notebook,
        timeout=600,  # seconds for a cell; both are for machines with much else to do
        startup_timeout=600,
        kernel_manager_class=_ThisPython,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=environment)
    assert _code(notebook)[0].outputs == []  # nothing was installed
    for output in (output for cell in _code(notebook) for output in cell.outputs):
        assert output.get("name") != "stderr", output.text
        shown = output.get("data", {})
        assert "Figure" not in shown.get("text/plain", "") or "image/png" in shown
