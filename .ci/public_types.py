"""Fails unless pyright knows the type of every public name; run where jattn is installed or on PYTHONPATH.

A layer's class is taken as known where all that pyright lacks is the type of `flax.nnx.Module`, which it cannot follow.
"""

import json
import subprocess
import sys

OF_FLAX = ("Type of base class unknown", "Type of metaclass unknown")


def reasons(symbol: dict) -> list[str]:
    messages = [x["message"].split("\n")[0] for x in symbol["diagnostics"] if x["severity"] == "error"]
    return [x for x in messages if not x.startswith(OF_FLAX)]


command = ["pyright", "--pythonpath", sys.executable, "--verifytypes", "jattn", "--ignoreexternal", "--outputjson"]
report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)["typeCompleteness"]
public = [x for x in report["symbols"] if x["isExported"]]
unknown = [f"{x['name']}: {reason}" for x in public for reason in reasons(x)]
print(f"{len(public)} public names, {len(unknown)} of unknown type", *unknown, sep="\n  ")
sys.exit(bool(unknown) or len(public) < 500)
