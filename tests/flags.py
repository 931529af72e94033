"""Flags of XLA that tests have on CPUs: to be set before jax is imported."""

import importlib.metadata


def flags(devices: int) -> str:
    """For so many simulated devices.

    XLA of JAX 0.10 has two emitters of loops, of which this one compiles twice as fast; later ones do not know the flag.
    The notebooks, the documentation and programs that tests run have the other, as users' programs do.
    """
    quick = " --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jax").startswith("0.10.") else ""
    return f"--xla_force_host_platform_device_count={devices}{quick}"
