"""`python -m bench SUBCOMMAND ...`: one module per subcommand, each with `main(arguments) -> exit status`."""

import importlib
import sys
from collections.abc import Sequence

SUBCOMMANDS = {"cpu": "bench.cpu", "tpu": "bench.tpu", "tune": "bench.tune", "zoo": "bench.zoo"}


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand that the first argument names; 2 if there is none of that name."""
    name, *rest = arguments or [""]
    if name in SUBCOMMANDS:
        return importlib.import_module(SUBCOMMANDS[name]).main(rest)
    problem = f"unknown subcommand {name!r}" if name else "which subcommand?"
    print(f"bench: {problem} (there is: {', '.join(SUBCOMMANDS)}; each has --help)", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
