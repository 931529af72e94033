"""Flags of XLA that tests have on CPUs: to be set before jax is imported.

The notebooks, the documentation and programs that tests run have none of these, as users' programs do.
"""

import importlib.metadata

# Tests spend their time on compiling: of the machine code alone, so that what XLA makes of a program stays as it is.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FLAGS = f"--xla_force_host_platform_device_count=2 {QUICK}"
if importlib.metadata.version("jax").startswith("0.10."):
    # XLA has two emitters of loops there, of which this one compiles twice as fast; later ones do not know the flag.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
