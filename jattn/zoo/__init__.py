"""Whole models with their data and training.  `python -m jattn.zoo` lists them, `python -m jattn.zoo TASK` trains one.

A task is a package beside this one with `DATA` and `ABOUT` (one line each), `STEPS` (how long it trains by default),
`ARCHIVES` (those it reads, see `_archives.py`), `VARIANTS` (label -> flags: what `python -m bench zoo` compares, the
defaults first), `add_options(parser)` for its own flags, and `build(options) -> Task`.  The command line, the
training loop, the checkpoints and the archives are shared: a new task touches none of them.
"""

TASKS = ("dates", "boolq", "pairs", "documents", "vowels", "text", "translate")
EXTRAS = ("babel", "matplotlib", "orbax.checkpoint", "sentencepiece", "tqdm")
