"""Flags of XLA that tests have on CPUs: to be set before jax is imported."""

import importlib.metadata

FLAGS = "--xla_force_host_platform_device_count=2"
if importlib.metadata.version("jax").startswith("0.10."):
    # XLA has two emitters of loops there, of which this one compiles twice as fast; later ones do not know the flag.
    # The notebooks, the documentation and programs that tests run have the other, as users' programs do.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
