"""The one exception of the zoo that its user is meant to read, and what it says of packages that are missing."""

from pathlib import Path

_ABOVE = Path(__file__).parents[2]  # the checkout, unless jattn was installed without one
ADDRESS = "https://github.com/jattn/jattn"


class UsageError(ValueError):
    """Something the user can mend, in one line: a bad flag, a checkpoint made with other settings."""


def how_to_install(extra: str, above: Path = _ABOVE) -> str:
    """The command that installs jattn with an extra: from the checkout that it runs from, or from a new one."""
    if (above / "pyproject.toml").is_file():
        return f'pip install -e "{above}[{extra}]"'
    return f'git clone {ADDRESS} && pip install "./jattn[{extra}]"'
