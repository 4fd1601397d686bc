"""log, exp, sin and cos that give the same bits on every platform.

The mathematical library behind numpy differs between machines in the last bit, and a last bit can move a crop by a
pixel. These use only additions, multiplications, divisions and rounding, which IEEE 754 fixes; each is one numpy call,
so that no compiler fuses two of them. Errors are below 1e-14, relative (log, exp) or absolute (sin, cos).
"""

from __future__ import annotations

from math import factorial, pi

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# ln 2 in two parts: k * _LN2_HIGH is exact for |k| < 2^20.
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10


def _polynomial(x: Array, coefficients: list[float]) -> Array:
    """Return sum_k coefficients[k] x^k, by Horner's rule."""
    total: Array = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def log(x: ArrayLike) -> Array:
    """Return the natural logarithm of x > 0: with x = m 2^e and s = (m-1)/(m+1), 2 artanh(s) + e ln 2."""
    m, e = np.frexp(np.asarray(x, dtype=np.float64))
    small = m < 0.7071067811865476
    m, e = np.where(small, m * 2, m), e - small
    s = (m - 1) / (m + 1)
    series = _polynomial(s * s, [2 / (2 * k + 1) for k in range(12)])
    result: Array = e * _LN2_HIGH + (s * series + e * _LN2_LOW)
    return result


def exp(x: ArrayLike) -> Array:
    """Return e^x, for x clipped to [-700, 700]: a Taylor series in x - k ln 2, times 2^k."""
    x = np.clip(np.asarray(x, dtype=np.float64), -700.0, 700.0)
    k = np.rint(x / 0.6931471805599453)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    scaled: Array = np.ldexp(_polynomial(r, [1 / factorial(n) for n in range(15)]), k.astype(np.int32))
    return scaled


def sin_cos(x: ArrayLike) -> tuple[Array, Array]:
    """Return (sin x, cos x) for |x| <= pi: Taylor series at x/4, doubled twice."""
    x = np.asarray(x, dtype=np.float64)
    assert np.all(np.abs(x) <= pi), "angles are taken in [-pi, pi]"
    quarter = x / 4
    square = quarter * quarter
    sin = quarter * _polynomial(square, [(-1) ** n / factorial(2 * n + 1) for n in range(10)])
    cos = _polynomial(square, [(-1) ** n / factorial(2 * n) for n in range(10)])
    for _ in range(2):
        sin, cos = 2 * sin * cos, (cos - sin) * (cos + sin)
    return sin, cos
