"""Whole models with their data and training.  `python -m jattn.zoo` lists them, `python -m jattn.zoo TASK` trains one.

A task is a package beside this one with `DATA` and `ABOUT` (one line each), `STEPS` (how long it trains by default),
`add_options(parser)` for its own flags, and `build(options) -> Task`.  The command line, the training loop and the
checkpoints are shared: a new task touches none of them.
"""

TASKS = ("dates",)
EXTRAS = ("babel", "matplotlib", "orbax.checkpoint", "tqdm")
