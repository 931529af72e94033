"""The names by which classes and functions are known that lie in the files of a package."""

import sys


def of_package(package: str, *others: type) -> None:
    """Gives what a package shows of its own files the package's name, in the place of the files'; `others` too, which
    are written elsewhere.

    Who prints one of its classes, or pickles one of its terms, meets the name that it is used by, so that files may be
    renamed while pickles are kept.  The price is that `inspect.getsource`, which looks for a class in the file of its
    module, finds none of these, as it finds none of `jax.Array`; of methods and functions it finds the source where it
    is written.
    """
    for subject in vars(sys.modules[package]).values():
        if getattr(subject, "__module__", "").startswith(f"{package}."):
            subject.__module__ = package
    for subject in others:
        subject.__module__ = package
