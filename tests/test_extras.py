"""What is missing is installed from the checkout, never from an index."""

from jattn._extras import ADDRESS, how_to_install


def test_what_is_missing_is_installed_from_a_checkout(tmp_path):
    assert how_to_install("zoo", tmp_path) == f'git clone {ADDRESS} && pip install "./jattn[zoo]"'
    (tmp_path / "pyproject.toml").touch()
    assert how_to_install("zoo", tmp_path) == f'pip install -e "{tmp_path}[zoo]"'
