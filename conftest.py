"""What every test and every doctest runs under; set before jax is imported."""

import gc
import os
import sys

from tests.flags import FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # shared by the workers of one run, and kept between runs of CI
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

if sys.version_info >= (3, 12):  # where there may be a simulator of GPUs, whose threads wait for one another
    os.environ.setdefault("NPROC", "16")

import jax

from tests import signatures

jax.devices()  # has read the flags
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(FLAGS, "").strip()  # for programs that tests run

signatures.install()  # imports jattn, without which collecting doctests would import its modules once more, as others

# Tracing makes many objects, few of them garbage: looking for it as often as by default took an eighth of the time.
gc.set_threshold(50_000, 10, 10)
