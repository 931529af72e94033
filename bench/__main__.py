"""`python -m bench SUBCOMMAND ...`: one module per subcommand, each with `main(arguments) -> exit status`."""

import importlib
import sys
from collections.abc import Sequence

SUBCOMMANDS = {
    "cpu": "times jattn, PyTorch and jax.nn on this machine",
    "tpu": "estimates the times of jattn's and splash's TPU kernels, with no TPU attached",
    "tune": "finds the tile sizes of the TPU kernels, by such estimates",
    "zoo": "trains every task of the zoo in every variant",
}
USAGE = f"""\
usage: python -m bench {{{",".join(SUBCOMMANDS)}}} ...

{chr(10).join(f"  {name:5} {what}" for name, what in SUBCOMMANDS.items())}

python -m bench SUBCOMMAND --help lists its options."""


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand that the first argument names; 2 if there is none of that name."""
    name, *rest = arguments or [""]
    if name in SUBCOMMANDS:
        return importlib.import_module(f"bench.{name}").main(rest)
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name:
        print(
            f"bench: unknown subcommand {name!r} (there is: {', '.join(SUBCOMMANDS)}; each has --help)", file=sys.stderr
        )
    else:
        print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
