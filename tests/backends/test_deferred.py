"""Functions that are imported when they are first called."""

from __future__ import annotations

import pytest

from jattn.backends.deferred import deferred


def test_nothing_is_loaded_before_a_call():
    loaded = []

    def _product():
        """The product."""
        loaded.append(True)
        return lambda x, *, by: x * by

    product = deferred(_product)
    assert not loaded
    assert product.__name__ == "_product" and product.__doc__ == "The product."
    assert product(3, by=4) == 12 and loaded == [True]
    with pytest.raises(TypeError, match="by"):
        product(3)  # pyright: ignore[reportCallIssue]  # wrong on purpose


def test_what_cannot_be_imported_is_said_at_the_call():
    def _missing():
        from jattn.backends import nothing_of_this_name  # pyright: ignore[reportAttributeAccessIssue]  # wrong on purpose

        return nothing_of_this_name

    call = deferred(_missing)
    with pytest.raises(ImportError, match="nothing_of_this_name"):
        call()
