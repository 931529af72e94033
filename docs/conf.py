"""How the site is built: `python -m sphinx -W docs docs/_build/html`.

Every cell of every page is executed and must neither raise nor write to stderr, and every reference must be found.
The notebooks of `colab/` are executed by `tests/test_colab.py`; here they are too where JATTN_DOCS_NOTEBOOKS=1, which
takes some minutes and gives them their pictures.  Names of other sites are looked up in `elsewhere.toml`, so that a
build needs no network and is the same everywhere; JATTN_DOCS_ONLINE=1 looks them up in the sites' own inventories.
"""

import os
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]
# the kernels that execute the pages
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[1:3], *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["JAX_PLATFORMS"] = "cpu"

import _site  # noqa: E402

import jattn  # noqa: E402

project, author, copyright = "jattn", "the authors of jattn", "the authors of jattn"
release = version = jattn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
]
exclude_patterns = ["_build"]
nitpicky = True

_site.copy_pages()

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_excludepatterns = [] if os.environ.get("JATTN_DOCS_NOTEBOOKS") else ["notebooks/*"]
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_output_stderr = "error"
nb_merge_streams = True
nb_execution_show_tb = True

highlight_language = "text"  # of what does not say
default_role = "quoted"  # of docstrings; pages are Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # `_site` writes them
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
add_module_names = False

elsewhere = tomllib.loads((HERE / "elsewhere.toml").read_text())
online = bool(os.environ.get("JATTN_DOCS_ONLINE"))
intersphinx_mapping = {
    name: (one["site"], None if online else _site.inventory(name)) for name, one in elsewhere.items()
}

html_theme = "sphinx_book_theme"
html_title = "jattn"
html_show_copyright = False
html_show_sourcelink = False
html_theme_options = {
    "repository_url": _site.ADDRESS,
    "use_repository_button": True,
    "use_download_button": False,
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],  # the sidebar has the search
}


setup = _site.setup
