"""The notebooks: each runs from top to bottom where jattn is installed, and is committed without outputs."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
INSTALL = """\
try:
    import jattn
except ModuleNotFoundError:
    %pip install -q "jattn[zoo]\""""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class _ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs the tests, whatever kernels are installed."""

    kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])  # type: ignore[assignment]


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_five_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_", "5_"]


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


@each_notebook
def test_it_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
        "IPYTHONDIR": str(tmp_path / "ipython"),  # nobody's own settings
    }
    environment.pop("XLA_FLAGS", None)  # the tests' second device
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
