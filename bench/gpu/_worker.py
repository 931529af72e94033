"""`python -m bench.gpu._worker`: answers requests of `bench.gpu._children`, a line of JSON each.

A request names its stage.  An answer is what the stage found, or `error`; `poisoned` says that this process had better
not be asked again, since after some errors CUDA answers every call with the same; the end of the `trace` comes along.
"""

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

_REFUSED = ("UnsupportedError", "NotImplementedError", "ValueError", "TypeError", "ImportError", "ModuleNotFoundError")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What a stage says, or how it failed."""
    try:
        match request["stage"]:
            case "static":
                from bench.gpu._static import compile_case as run
            case "decode":
                from bench.decode._gpu import compile_step as run
            case "compile":
                from bench.gpu._compile import compile_check as run
            case "check":
                from bench.gpu._check import check_case as run
            case "time":
                from bench.gpu._time import time_case as run
            case "device":
                from bench.gpu._device import device_facts as run
            case _:
                run = _rehearsed
        return run(request)
    except Exception as error:  # whatever a compiler or a device may raise: it is the answer
        name = type(error).__name__
        first = str(error).strip().partition("\n")[0]
        traceback.print_exc()
        unexpected = name not in _REFUSED
        trace = {"trace": traceback.format_exc()[-4000:]} if unexpected else {}  # a device may be here only now
        return {"error": f"{name}: {first[:400]}", "poisoned": unexpected, **trace}


def _rehearsed(request: dict[str, Any]) -> dict[str, Any]:
    """What kernels do at their worst, for a rehearsal of the run itself."""
    match request["stage"]:
        case "hang":
            time.sleep(3600)
        case "crash":
            os.kill(os.getpid(), 11)
        case "raise":
            raise RuntimeError("INTERNAL: a rehearsed error")
    return {"echo": request}


def main() -> None:
    """Answer until the input ends.  What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    importlib.import_module("bench")  # a wrong path is an error now, and not in the first answer
    main()
