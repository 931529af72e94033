"""`python -m bench SUBCOMMAND ...`: one module per subcommand, each with `main(arguments) -> exit status`."""

import sys
from collections.abc import Callable, Sequence

SUBCOMMANDS = {
    "cpu": "times jattn, PyTorch and jax.nn on this machine",
    "tpu": "estimates the times of jattn's and splash's TPU kernels, with no TPU attached",
    "gpu": "checks, times and tunes jattn's GPU kernels; without a GPU, compiles and counts them",
    "decode": "steps of decoding against what their bytes take: measured on the CPU, estimated for TPUs",
    "scale": "predicts one sequence over many chips that are not there; compiles training steps for whole pods",
    "tune": "finds the tile sizes of the TPU kernels, by such estimates",
    "zoo": "trains every task of the zoo in every variant",
}
USAGE = f"""\
usage: python -m bench {{{",".join(SUBCOMMANDS)}}} ...

{chr(10).join(f"  {name:6} {what}" for name, what in SUBCOMMANDS.items())}

python -m bench SUBCOMMAND --help lists its options."""


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand that the first argument names; 2 if there is none of that name."""
    name, *rest = arguments or [""]
    if name in SUBCOMMANDS:
        return _subcommand(name)(rest)
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


def _subcommand(name: str) -> Callable[[Sequence[str]], int]:
    """Imported only now, for each needs packages that the others do without."""
    match name:
        case "cpu":
            from bench.cpu.command import main
        case "tpu":
            from bench.tpu.command import main
        case "gpu":
            from bench.gpu.command import main
        case "decode":
            from bench.decode.command import main
        case "scale":
            from bench.scale.command import main
        case "tune":
            from bench.tune import main
        case _:
            from bench.zoo import main
    return main


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
