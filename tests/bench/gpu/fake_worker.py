"""A worker that answers at once: `python fake_worker.py`, with the protocol of `bench.gpu._worker` and no GPU."""

import json
import os
import sys
import time


def answer(request):
    match request["stage"]:
        case "hang":
            time.sleep(600)
        case "crash":
            os.kill(os.getpid(), 11)
        case "exit":
            print("the last line", file=sys.stderr)
            sys.exit(3)
        case "raise":
            return {"error": "RuntimeError: INTERNAL", "poisoned": True}
        case "device":
            return {"device": "NVIDIA H100 80GB HBM3", "chip": "h100", "count": 1}
        case "check":
            return _check(request["name"])
        case "time":
            return _time(request)
        case "static":
            return _static(request)
    return {"echo": request, "process": os.getpid()}


def _check(name):
    if name == "causal":
        return {"errors": {"out": {"error": 2.0, "tolerance": 1.0}}, "same_bits": True}
    if name == "alibi":
        return {"error": "UnsupportedError: takes no slopes"}
    errors = {"out": {"error": 0.25, "tolerance": 1.0}, "dkey": {"error": 0.5, "tolerance": 1.0}}
    return {"errors": errors, "same_bits": name != "segments"}


def _time(request):
    case, settings = request["case"], request.get("settings")
    if settings is None:
        if request["runner"] == "cudnn":
            os.kill(os.getpid(), 6)
        return {"milliseconds": [1.0, 2.0, 3.0] if request["runner"] == "jattn" else [4.0] * 3, "calls": 5}
    if any(sizes.get("columns") == 32 for sizes in settings.values()):
        return {"error": "ValueError: too small"}
    taken = {"forward": {"steps": 9}, "queries": {"piece": 99}, "keys": {"piece": 16}} | settings
    forward = 1.0 + taken["forward"]["steps"]
    backward = taken["queries"]["piece"] + taken["keys"]["piece"]
    return {"milliseconds": [forward + (backward if case["direction"] == "fwdbwd" else 0)] * 3, "calls": 3}


def _static(request):
    case = request["case"]
    if case["ask"] == "bias":
        return {"error": "RuntimeError: too much shared memory"}
    if case["ask"] == "user" and case["direction"] == "fwdbwd":
        return {"error": "NotImplementedError: no backward"}
    loop = {"start": 10, "pipes": {"tensor": 16, "float": 300, "special": 66}, "loaded": 0, "stored": 0}
    kernel = {"threads": 384, "registers": 168, "spilled": 0, "shared": 100000}
    products = 64 * 128 * 2 * case["d"] // 4
    got = [{"name": "jattn_forward", **kernel, "loops": [{**loop, "products": products}]}]
    if case["direction"] == "fwdbwd":
        spilling = {**loop, "products": 2 * products, "pipes": {**loop["pipes"], "local": 2}}
        got.append({"name": "jattn_backward_keys", **kernel, "spilled": 24, "loops": [spilling]})
    return {"kernels": got}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
