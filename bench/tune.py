"""`python -m bench tune PLATFORM ...`: the best tile sizes of a platform's kernels, kept in the table that they read.

`python -m bench tune PLATFORM --help` lists a platform's options.
"""

from collections.abc import Sequence

from bench._cli import Parser

PLATFORMS = ("tpu",)


def main(arguments: Sequence[str]) -> int:
    """Tune the kernels of the platform that the first argument names; 2 if the command line is wrong."""
    parser = Parser(prog="bench tune", description=__doc__)
    parser.add_argument("platform", choices=PLATFORMS)
    parser.parse_args(arguments[:1])
    from bench.tpu import tune

    return tune.main(arguments[1:])
