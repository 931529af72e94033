"""How packages are installed that not everyone needs: with an extra of the checkout."""

from pathlib import Path

_ABOVE = Path(__file__).parents[1]  # the checkout, unless jattn was installed without one
ADDRESS = "https://github.com/jattn/jattn"


def how_to_install(extra: str, above: Path = _ABOVE) -> str:
    """The command that installs jattn with an extra: from the checkout that it runs from, or from a new one."""
    if (above / "pyproject.toml").is_file():
        return f'pip install -e "{above}[{extra}]"'
    return f'git clone {ADDRESS} && pip install "./jattn[{extra}]"'
