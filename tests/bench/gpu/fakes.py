"""How tests start the worker that answers at once."""

import sys
from pathlib import Path

COMMAND = (sys.executable, str(Path(__file__).parent / "fake_worker.py"))
