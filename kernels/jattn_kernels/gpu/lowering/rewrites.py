"""Functions that Mosaic GPU lacks, in those that it has: of float32 and integers of 32 bits, element by element.

And those whose instruction is too coarse: kernels are compiled with `approx_math`, for the softmax's `exp2`.
That of `log` has an absolute error, which is all of a logarithm near 0; those of `sin` and `cos` are for small angles.
`exp` (2 + |x| ulp), `sqrt`, `rsqrt` and `tanh` (a relative error of 2^-11, an eighth of bfloat16's; twice as fast as
anything finer) stay the machine's.

Errors are in units in the last place of the result, with a machine's `exp` and division taken as exact; the tests
compare each with NumPy in float64. No formula relies on a product being rounded before it is added to
something, since compilers fuse the two: where a product's error counts, factors are cut in halves whose products
are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # the high part has nine bits: its products with exponents are exact
_PI_LOW = -8.742278e-8  # what rounding took from float32's pi
_SQRT_HALF_BITS, _ONE_BITS = 0x3F3504F3, 0x3F800000


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _floats(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.float32)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """2^exponent, of an integer from -126 to 127."""
    return _floats((exponent + 127) << 23)


def _with_sign_of(x: jax.Array, of: jax.Array) -> jax.Array:
    """|x| with another number's sign, which a zero has too."""
    return _floats((_bits(x) & 0x7FFFFFFF) | (_bits(of) & -0x80000000))


def _polynomial(x: jax.Array, coefficients: Sequence[float]) -> jax.Array:
    """By Horner's rule, the highest power first."""
    value = jnp.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = value * x + c
    return value


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x as a sum of two numbers of twelve bits."""
    high = _floats(_bits(x) & -0x1000)
    return high, x - high


def _product(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x * y as a rounded sum and what rounding took, to 35 bits."""
    (a, b), (c, d) = _halves(x), _halves(y)
    return _sum(a * c, a * d + b * c + b * d)


def _sum(high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """high + low, of |high| >= |low|, as a rounded sum and what rounding took."""
    total = high + low
    return total, low - (total - high)


def _log_parts(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """k, f and rest of log x = k ln 2 + f + rest, with 1 + f in sqrt(1/2) .. sqrt(2) (Cephes), of a positive number."""
    tiny = x < 1.1754944e-38
    bits = _bits(jnp.where(tiny, x * 2.0**24, x)) + (_ONE_BITS - _SQRT_HALF_BITS)
    k = ((bits >> 23) - 127).astype(jnp.float32) - jnp.where(tiny, 24.0, 0.0)
    f = _floats((bits & 0x7FFFFF) + _SQRT_HALF_BITS) - 1
    z = f * f
    above = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1)
    cubic = _polynomial(f, (*above, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1))
    return k, f, f * z * cubic - 0.5 * z


def _log_at_the_ends(x: jax.Array, value: jax.Array) -> jax.Array:
    value = jnp.where(x > 0, value, jnp.where(x == 0, -jnp.inf, jnp.nan))
    return jnp.where(x == jnp.inf, x, value)


def log(x: jax.Array) -> jax.Array:
    """Within 2 ulp."""
    k, f, rest = _log_parts(x)
    return _log_at_the_ends(x, (rest + k * _LN2_LOW) + f + k * _LN2_HIGH)


def log2(x: jax.Array) -> jax.Array:
    """Within 3 ulp."""
    k, f, rest = _log_parts(x)
    return _log_at_the_ends(x, k + (f + rest) * math.log2(math.e))


def log1p(x: jax.Array) -> jax.Array:
    """Within 2.5 ulp: the logarithm's argument is reduced to sqrt(1/2) .. sqrt(2), and what 1 + x lost is added."""
    u = 1 + x
    bits = _bits(u) + (_ONE_BITS - _SQRT_HALF_BITS)
    k = (bits >> 23) - 127
    near = (x > -0.2928932) & (x < 0.4142135)
    lost = jnp.where(k >= 2, 1 - (u - x), x - (u - 1)) / u
    lost = jnp.where(near | (k >= 25), 0.0, lost)
    f = jnp.where(near, x, _floats((bits & 0x7FFFFF) + _SQRT_HALF_BITS) - 1)
    k = jnp.where(near, 0, k).astype(jnp.float32)
    s = f / (2 + f)
    half = 0.5 * f * f
    z = s * s
    tail = z * _polynomial(z, (0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693))
    value = s * (half + tail) + (k * _LN2_LOW + lost) - half + f + k * _LN2_HIGH
    value = jnp.where(x > -1, value, jnp.where(x == -1, -jnp.inf, jnp.nan))
    return jnp.where((x == jnp.inf) | (x == 0), x, value)


def expm1(x: jax.Array) -> jax.Array:
    """Within 2 ulp: 2^k (e^r - 1) + 2^k - 1, with r = x - k ln 2 and a polynomial for e^r - 1."""
    inside = jnp.minimum(jnp.maximum(x, -40.0), 89.0)
    k = lax.round(inside * math.log2(math.e), lax.RoundingMethod.TO_NEAREST_EVEN)
    r = (inside - k * _LN2_HIGH) - k * _LN2_LOW
    rest = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
    small = r * r * _polynomial(r, rest) + r
    half = _power_of_two(k.astype(jnp.int32) - 1)  # of 2^k, which at the upper end is more than a float32 holds
    value = 2 * (half * small + (half - 0.5))
    return jnp.where(x == 0, x, value)


def floor(x: jax.Array) -> jax.Array:
    """It is exact: numbers that are not integers lie below 2^23, where float32 has every integer."""
    nearest = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
    return jnp.where(nearest > x, nearest - 1, nearest)


def ceil(x: jax.Array) -> jax.Array:
    """It is exact, since `floor` is and a sign takes nothing from a number."""
    return -floor(-x)


def round_away(x: jax.Array) -> jax.Array:
    """To the nearest integer, halves away from zero; exact."""
    size = jnp.abs(x)
    nearest = lax.round(size, lax.RoundingMethod.TO_NEAREST_EVEN)
    return _with_sign_of(jnp.where(size - nearest == 0.5, nearest + 1, nearest), x)


def _log2_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log2 of a positive number as a sum of two, to 30 bits of the part that is no integer."""
    tiny = x < 1.1754944e-38
    bits = _bits(jnp.where(tiny, x * 2.0**24, x)) + (_ONE_BITS - _SQRT_HALF_BITS)
    exponent = ((bits >> 23) - 127).astype(jnp.float32) - jnp.where(tiny, 24.0, 0.0)
    bits_of_m = (bits & 0x7FFFFF) + _SQRT_HALF_BITS
    m = _floats(bits_of_m)
    f, s = m - 1, (m - 1) / (m + 1)
    (a, b), top = _halves(s), _floats(bits_of_m & -0x2000)
    c, e = top + 1, m - top  # m + 1 exactly, as a sum
    left = (((f - a * c) - a * e) - b * c) - b * e
    z = s * s
    low = left / c + s * z * _polynomial(z, (1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3))
    s, low = _sum(s, low)
    high, rest = _product(s, jnp.full_like(s, 2 / math.log(2)))
    rest = rest + low * (2 / math.log(2)) + s * (2 / math.log(2) - float(np.float32(2 / math.log(2))))
    total, lost = _sum(exponent, high)
    return jnp.where(exponent == 0, high, total), jnp.where(exponent == 0, rest, lost + rest)


def power(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^y within 2.5 ulp, infinities and signs as NumPy has them; an integer y is taken as a float."""
    y = y.astype(jnp.float32)
    size = jnp.abs(x)
    high, low = _log2_parts(size)
    p, rest = _product(high, y)
    rest = rest + low * y
    inside = jnp.abs(p) < 300
    p = jnp.minimum(jnp.maximum(p, -300.0), 300.0)
    whole = lax.round(p, lax.RoundingMethod.TO_NEAREST_EVEN)
    part = jnp.exp2((p - whole) + jnp.where(inside, rest, 0.0))
    n = whole.astype(jnp.int32)
    first = jnp.minimum(jnp.maximum(n, -126), 127)
    second = jnp.minimum(jnp.maximum(n - first, -126), 127)  # 2^n in two factors: subnormals and the largest numbers
    value = part * _power_of_two(first) * _power_of_two(second)
    extreme = (size == 0) | (size == jnp.inf)
    value = jnp.where(extreme, jnp.where((size == 0) == (y > 0), 0.0, jnp.inf), value)
    fraction = floor(y) != y
    odd = (floor(y) == y) & (jnp.abs(y) < 2.0**24) & (floor(y * 0.5) * 2 != y)
    negative = _bits(x) < 0
    value = jnp.where(negative & odd, -value, value)
    endless = jnp.abs(y) == jnp.inf
    value = jnp.where(endless & (size != 1), jnp.where((size > 1) == (y > 0), jnp.inf, 0.0), value)
    value = jnp.where((x < 0) & (size != jnp.inf) & fraction, jnp.nan, value)
    value = jnp.where((x != x) | (y != y), jnp.nan, value)
    return jnp.where((y == 0) | (x == 1) | (endless & (size == 1)), 1.0, value)


def integer_power(x: jax.Array, y: int) -> jax.Array:
    """x^y by squaring: an error of half an ulp a product."""
    if y < 0:
        return 1 / integer_power(x, -y)
    value = None
    while y:
        if y & 1:
            value = x if value is None else value * x
        y >>= 1
        x = x * x if y else x
    return jnp.ones_like(x) if value is None else value


def is_finite(x: jax.Array) -> jax.Array:
    """Exact: a NaN is not less than anything."""
    return jnp.abs(x) < jnp.inf


def erf(x: jax.Array) -> jax.Array:
    """Within 5 ulp: the rational approximation that XLA has too."""
    x = jnp.minimum(jnp.maximum(x, -3.7439211627767994), 3.7439211627767994)
    z = x * x
    above = (2.2905065861e-4, 3.4082910107e-3, 5.0955695062e-2, 1.8520832240e-1, 1.1283791435)
    below = (-1.1791602954e-7, 2.3547966471e-5, 1.0179625279e-3, 1.4070470171e-2, 1.1098505178e-1, 4.9746925110e-1, 1.0)
    return x * _polynomial(z, above) / _polynomial(z, below)


def erfc(x: jax.Array) -> jax.Array:
    """1 - erf(x) within 12 ulp, where it is nearly 0 as well (Cephes): e^(-x x) times a polynomial of 1 / (x x)."""
    size = jnp.abs(x)
    far = jnp.minimum(jnp.maximum(size, 0.5), 12.0)
    square, lost = _product(far, far)
    q = 1 / square
    near = (
        2.326819970068386e-2,
        -1.387039388740657e-1,
        3.687424674597105e-1,
        -5.824733027278666e-1,
        6.210004621745983e-1,
    )
    near = (*near, -4.944515323274145e-1, 3.404879937665872e-1, -2.741127028184656e-1, 5.638259427386472e-1)
    away = (-1.047766399936249e1, 1.297719955372516e1, -7.495518717768503, 2.921019019210786, -1.015265279202700)
    away = (*away, 4.218463358204948e-1, -2.820767439740514e-1, 5.641895067754075e-1)
    value = jnp.exp(-square) * (1 - lost) * jnp.where(far < 2, _polynomial(q, near), _polynomial(q, away)) / far
    value = jnp.where(square > 110, 0.0, value)
    value = jnp.where(x < 0, 2 - value, value)
    value = jnp.where(size < 1, 1 - erf(x), value)
    return jnp.where(x != x, x, value)


def erf_inv(x: jax.Array) -> jax.Array:
    """Within 8 ulp (Giles, 2010): two polynomials of -log(1 - x x)."""
    w = -(log1p(-jnp.abs(x)) + log1p(jnp.abs(x)))
    near = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503)
    near = (*near, -0.00417768164, 0.246640727, 1.50140941)
    far = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613)
    far = (*far, 0.00943887047, 1.00167406, 2.83297682)
    value = jnp.where(w < 5, _polynomial(w - 2.5, near), _polynomial(jnp.sqrt(jnp.maximum(w, 5.0)) - 3, far))
    return jnp.where(jnp.abs(x) == 1, x * jnp.inf, x * value)


def cbrt(x: jax.Array) -> jax.Array:
    """Within 2 ulp: a step of Halley's iteration from a third of the exponent and of the fraction's bits."""
    size = jnp.abs(x)
    tiny = size < 1.1754944e-38
    size = jnp.where(tiny, size * 2.0**24, size)
    root = _floats((_bits(size).astype(jnp.float32) * (1 / 3)).astype(jnp.int32) + 0x2A5137A0)
    for _ in range(2):
        cube = root * root * root
        root = root - root * ((cube - size) / (2 * cube + size))
    root = jnp.where(tiny, root * 2.0**-8, root)
    return jnp.where((size == 0) | (jnp.abs(x) == jnp.inf) | (x != x), x, _with_sign_of(root, x))


_HALF_PI = (1.57080078125, -4.453584551811218e-06, -8.706138032721356e-10, 6.223371969669989e-14)
"""pi / 2: three parts of twelve bits each, and the rest."""


def _quadrant(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """n and r of x = n pi / 2 + r, |r| about pi / 4 at most, of |x| < 2^23."""
    nearest = lambda x: lax.round(x * (2 / math.pi), lax.RoundingMethod.TO_NEAREST_EVEN)
    n = nearest(x)
    n = n + nearest(_without_quarters(x, n))  # of a large x rounding x * 2 / pi may have missed the nearest
    return n.astype(jnp.int32), _without_quarters(x, n)


def _without_quarters(x: jax.Array, n: jax.Array) -> jax.Array:
    """x - n pi / 2: the products of halves of n and of parts of pi / 2 are exact."""
    high = lax.round(n * 2.0**-12, lax.RoundingMethod.TO_NEAREST_EVEN) * 2.0**12
    for part in _HALF_PI[:3]:
        x = (x - high * part) - (n - high) * part
    return x - n * _HALF_PI[3]


def _sine(n: jax.Array, r: jax.Array) -> jax.Array:
    """sin(n pi / 2 + r) (Cephes)."""
    z = r * r
    sine = r + r * z * _polynomial(z, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))
    cosine = (1 - 0.5 * z) + z * z * _polynomial(z, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2))
    value = jnp.where((n & 1) == 0, sine, cosine)
    return jnp.where((n & 2) == 0, value, -value)


def sin(x: jax.Array) -> jax.Array:
    """Within 4 ulp of |x| < 2^23, and NaN of infinities; beyond, neighbours in float32 are a radian apart and more."""
    n, r = _quadrant(x)
    return jnp.where(x == 0, x, _sine(n, r))


def cos(x: jax.Array) -> jax.Array:
    """Within 4 ulp, as `sin`."""
    n, r = _quadrant(x)
    return _sine(n + 1, r)


def tan(x: jax.Array) -> jax.Array:
    """Within 5 ulp, as `sin`."""
    n, r = _quadrant(x)
    return jnp.where(x == 0, x, _sine(n, r) / _sine(n + 1, r))


def _exp_half(x: jax.Array) -> jax.Array:
    """e^x / 2, which is finite where it should be although e^x is not."""
    root = jnp.exp(0.5 * x)
    return jnp.where(x < 88, 0.5 * jnp.exp(x), 0.5 * root * root)


def sinh(x: jax.Array) -> jax.Array:
    """Within 3 ulp, by expm1 where e^x and e^-x are near each other; within 50 above 88, where it squares e^(x / 2)."""
    size = jnp.abs(x)
    e = expm1(jnp.minimum(size, 1.0))
    value = jnp.where(size < 1, 0.5 * (e + e / (e + 1)), _exp_half(size) - 0.5 * jnp.exp(-size))
    return _with_sign_of(jnp.where(x == 0, x, value), x)


def cosh(x: jax.Array) -> jax.Array:
    """Within 2 ulp; within 50 above 88, where it squares e^(x / 2)."""
    size = jnp.abs(x)
    return _exp_half(size) + 0.5 * jnp.exp(-size)


def _arc(t: jax.Array) -> jax.Array:
    """The arc of a tangent from 0 to 1 (Cephes)."""
    large = t > 0.41421356
    t = jnp.where(large, (t - 1) / (t + 1), t)
    z = t * t
    value = z * t * _polynomial(z, (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)) + t
    return jnp.where(large, value + math.pi / 4, value)


def atan(x: jax.Array) -> jax.Array:
    """Within 3 ulp."""
    return _with_sign_of(atan2(jnp.abs(x), jnp.ones_like(x)), x)


def atan2(y: jax.Array, x: jax.Array) -> jax.Array:
    """Within 4 ulp, in all four quadrants, on the axes and at infinity."""
    a, b = jnp.abs(y), jnp.abs(x)
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    ratio = low / jnp.where(high == 0, 1.0, high)
    value = _arc(jnp.where((low == high) & (high > 0), 1.0, ratio))
    value = jnp.where(a > b, math.pi / 2 - value, value)
    value = jnp.where(_bits(x) < 0, math.pi - (value - _PI_LOW), value)
    return jnp.where((x != x) | (y != y), jnp.nan, _with_sign_of(value, y))


def _arc_of_sine(x: jax.Array) -> jax.Array:
    """The arc of a sine from -1/2 to 1/2 (Cephes)."""
    z = x * x
    near = (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2, 1.6666752422e-1)
    return z * x * _polynomial(z, near) + x


def asin(x: jax.Array) -> jax.Array:
    """Within 3 ulp; NaN outside -1 .. 1, since a negative number has no root."""
    size = jnp.abs(x)
    large = size > 0.5
    value = _arc_of_sine(jnp.where(large, jnp.sqrt(0.5 * (1 - size)), size))
    return _with_sign_of(jnp.where(large, math.pi / 2 - 2 * value, value), x)


def acos(x: jax.Array) -> jax.Array:
    """Within 3 ulp; NaN outside -1 .. 1."""
    large = jnp.abs(x) > 0.5
    value = _arc_of_sine(jnp.where(large, jnp.sqrt(0.5 * (1 - jnp.abs(x))), x))
    obtuse = math.pi - (2 * value - _PI_LOW)
    return jnp.where(large, jnp.where(x > 0, 2 * value, obtuse), math.pi / 2 - (value - _PI_LOW / 2))


def asinh(x: jax.Array) -> jax.Array:
    """Within 4 ulp."""
    size = jnp.abs(x)
    near = jnp.minimum(size, 1e9)
    value = log1p(near + near * near / (1 + jnp.sqrt(near * near + 1)))
    return _with_sign_of(jnp.where(size < 1e9, value, log(size) + math.log(2)), x)


def acosh(x: jax.Array) -> jax.Array:
    """Within 4 ulp; NaN below 1."""
    t = jnp.minimum(x, 1e9) - 1
    value = jnp.where(x < 1e9, log1p(t + jnp.sqrt(2 * t + t * t)), log(x) + math.log(2))
    return jnp.where(x < 1, jnp.nan, value)


def atanh(x: jax.Array) -> jax.Array:
    """Within 4 ulp; NaN outside -1 .. 1, where log1p has it."""
    size = jnp.abs(x)
    return _with_sign_of(0.5 * log1p(2 * size / (1 - size)), x)


def logistic(x: jax.Array) -> jax.Array:
    """1 / (1 + e^-x), within 3 ulp."""
    return 1 / (1 + jnp.exp(-x))


def sign(x: jax.Array) -> jax.Array:
    """Exact; a zero and a NaN are their own."""
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return jnp.where(x != 0, jnp.ones_like(x), jnp.zeros_like(x))
    one = jnp.ones_like(x)
    return jnp.where(x > 0, one, jnp.where(x < 0, -one, x))


def remainder(x: jax.Array, y: jax.Array) -> jax.Array:
    """x - y trunc(x / y) with the sign of x, within an ulp of y while |x / y| < 2^22."""
    a, b = jnp.abs(x), jnp.abs(y)
    quotient = floor(a / b)
    (c, d), (e, f) = _halves(quotient), _halves(b)
    rest = (((a - c * e) - c * f) - d * e) - d * f
    rest = jnp.where(rest < 0, rest + b, rest)
    rest = jnp.where(rest >= b, rest - b, rest)
    rest = jnp.where(b == jnp.inf, jnp.where(a < jnp.inf, a, jnp.nan), rest)
    return _with_sign_of(rest, x)


def next_after(x: jax.Array, y: jax.Array) -> jax.Array:
    """The number after x on the way to y; exact."""
    bits = _bits(x)
    away = (x > 0) == (y > x)
    moved = _floats(jnp.where(away, bits + 1, bits - 1))
    least = _with_sign_of(_floats(jnp.ones_like(bits)), y)
    value = jnp.where(x == y, y, jnp.where(x == 0, least, moved))
    return jnp.where((x != x) | (y != y), jnp.nan, value)


def population_count(x: jax.Array) -> jax.Array:
    """How many of 32 bits are 1, in pairs, fours and bytes."""
    n = x.astype(jnp.uint32)
    n = n - ((n >> 1) & 0x55555555)
    n = (n & 0x33333333) + ((n >> 2) & 0x33333333)
    n = (n + (n >> 4)) & 0x0F0F0F0F
    return ((n * np.uint32(0x01010101)) >> 24).astype(x.dtype)


def leading_zeros(x: jax.Array) -> jax.Array:
    """How many of 32 bits stand before the first 1."""
    n = x.astype(jnp.uint32)
    for step in (1, 2, 4, 8, 16):
        n = n | (n >> step)
    return (32 - population_count(n).astype(jnp.int32)).astype(x.dtype)


def reduce_precision(x: jax.Array, exponent_bits: int, mantissa_bits: int) -> jax.Array:
    """Rounded to fewer bits, halves to even; exact.  With a smaller exponent it is float16's format, or none."""
    if (exponent_bits, mantissa_bits) == (5, 10):
        return x.astype(jnp.float16).astype(jnp.float32)
    bits, shift = _bits(x), 23 - mantissa_bits
    if shift <= 0:
        return x
    rounded = (bits + ((1 << (shift - 1)) - 1) + ((bits >> shift) & 1)) & -(1 << shift)
    return jnp.where(x != x, x, _floats(rounded))


REWRITES: dict[str, Callable[..., Any]] = {
    "log": log, "log2": log2, "sin": sin, "cos": cos, "log1p": log1p, "expm1": expm1, "floor": floor, "ceil": ceil,
    "pow": power, "is_finite": is_finite, "erf": erf, "erfc": erfc, "erf_inv": erf_inv, "cbrt": cbrt, "tan": tan,
    "sinh": sinh, "cosh": cosh, "atan": atan, "atan2": atan2, "asin": asin, "acos": acos, "asinh": asinh,
    "acosh": acosh, "atanh": atanh, "logistic": logistic, "nextafter": next_after,
}  # fmt: skip
"""By the name of the primitive: functions of float32 alone."""
