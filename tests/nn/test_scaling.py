"""What is done to the frequencies of a rotary embedding where texts are longer, against the formulas as they are published."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jattn.nn import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling


def plain(base, width):
    return np.array([1 / base ** (2 * m / width) for m in range(width // 2)])


def llama3(base, width, factor, original, low=1.0, high=4.0):
    """As in the code of Llama 3.1 (`apply_scaling`)."""
    scaled = []
    for frequency in plain(base, width):
        wavelength = 2 * np.pi / frequency
        if wavelength < original / high:
            scaled.append(frequency)
        elif wavelength > original / low:
            scaled.append(frequency / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return np.array(scaled)


def yarn(base, width, factor, original, fast=32, slow=1, truncate=True):
    """As in the code of YaRN (`YaRNScaledRotaryEmbedding`)."""
    correction = lambda turns: width * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base))
    low, high = correction(fast), correction(slow)
    if truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)
    return plain(base, width) / factor * ramp + plain(base, width) * (1 - ramp)


def ntk(base, width, factor, original, length):
    """As Hugging Face has it."""
    length = max(length, original)
    return plain(base * (factor * length / original - (factor - 1)) ** (width / (width - 2)), width)


def test_published_scalings_change_what_they_should():
    """Each of the formulas above has frequencies that stay, some that are divided, and some between."""
    for scaled in (llama3(5e5, 20, 8.0, 256), yarn(5e5, 20, 8.0, 4096)):
        ratio = scaled / plain(5e5, 20)
        assert ratio[0] == pytest.approx(1)
        assert ratio[-1] == pytest.approx(1 / 8)
        assert ((ratio > 0.13) & (ratio < 0.99)).any()


WIDTH = 20
SCALINGS = {
    "linear": (LinearScaling(4.0), 1e4, lambda: plain(1e4, WIDTH) / 4, 1.0),
    "linear of 1": (LinearScaling(1.0), 1e4, lambda: plain(1e4, WIDTH), 1.0),
    "llama3": (Llama3Scaling(8.0, 256), 5e5, lambda: llama3(5e5, WIDTH, 8.0, 256), 1.0),
    "llama3 of other ends": (Llama3Scaling(8.0, 256, 2.0, 16.0), 5e5, lambda: llama3(5e5, WIDTH, 8.0, 256, 2.0, 16.0), 1.0),
    "yarn": (YarnScaling(4.0, 512), 1e4, lambda: yarn(1e4, WIDTH, 4.0, 512), 0.1 * np.log(4) + 1),
    "yarn, not truncated": (
        YarnScaling(32.0, 4096, truncate=False), 1.5e5, lambda: yarn(1.5e5, WIDTH, 32.0, 4096, truncate=False), 0.1 * np.log(32) + 1,
    ),
    "yarn with a factor": (YarnScaling(40.0, 64, attention_factor=0.5), 1e4, lambda: yarn(1e4, WIDTH, 40.0, 64), 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_and_factor_are_those_published(name):
    scaling, base, wanted, factor = SCALINGS[name]
    for length in (1, 10**6):  # on which none of them depends
        frequencies, got = scaling(base, WIDTH, length)
        np.testing.assert_allclose(frequencies, wanted(), rtol=1e-12)
        assert got == pytest.approx(factor)


@pytest.mark.parametrize("length", [1, 100, 101, 1000])
@pytest.mark.usefixtures("x64")
def test_a_dynamic_base_grows_from_the_length_of_the_training_on(length):
    frequencies, factor = DynamicScaling(2.0, 100)(1e4, WIDTH, length)
    np.testing.assert_allclose(frequencies, ntk(1e4, WIDTH, 2.0, 100, length), rtol=1e-6)
    assert factor == 1.0
    traced = jax.jit(lambda n: DynamicScaling(2.0, 100)(1e4, WIDTH, n)[0])(length)
    np.testing.assert_allclose(traced, frequencies, rtol=1e-6)


def test_bases_that_float32_has_no_room_for_have_frequencies():
    frequencies, _ = DynamicScaling(1e6, 1)(1e30, 4, 2**30)
    assert np.isfinite(frequencies).all() and (np.asarray(frequencies) > 0).any()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: LinearScaling(0.5), ValueError, "factor must be a number >= 1, got 0.5"),
        (lambda: LinearScaling(True), ValueError, "factor must be a number >= 1, got True"),
        (lambda: DynamicScaling(2.0, 1.5), TypeError, "original must be an int, got 1.5"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
        (lambda: Llama3Scaling(2.0, 64, 4.0, 4.0), ValueError, "high must be greater than low"),
        (lambda: YarnScaling(2.0, 64, 1.0), ValueError, "fast must be greater than slow"),
        (lambda: DynamicScaling(2.0, 64)(1e4, 2, 100), ValueError, "more than two turned features, got 2"),
    ],
)
def test_what_is_no_scaling_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
