"""The error function: how a special function is computed, from + - * / and one exp.

    erf(x) = 2/sqrt(pi) integral_0^x e^(-t^2) dt

is the probability that a normal variable of variance 1/2 lies within x of 0, and the heart of
GELU. It has no closed form. A library cuts the line into intervals, and in each takes a ratio of
two polynomials that fits to the last bit. With a = |x|, two intervals do (erf is odd: the sign
of x comes back at the end):

    a < 0.84375   erf = a * (1 + P(a^2)/Q(a^2))     erf(a)/a is even and near 1: the ratio is a
                                                    correction, so its rounding hardly counts
    otherwise     erf = 1 - exp(-a^2) * P(a)/Q(a)   1 - erf falls like exp(-a^2), which no
                                                    ratio of polynomials can follow

For large a, 1 - something is the accurate way: the something is below 1/4, and its error shrinks
with it. Near 0 it would be the worst, the difference of two nearly equal numbers.

>>> import numpy as np
>>> from minimixer.engine.erf import erf
>>> print(erf(np.array([-np.inf, -0.0, 1e-300, 0.5, 2.0])))
[-1.00000000e+000 -0.00000000e+000  1.12837917e-300  5.20499878e-001
  9.95322265e-001]

float32 has 29 bits fewer, and about half the terms would do. It takes the same table all the
same: one table is checked more easily than two, and rounding, not the fit, then sets the error.
"""

from types import ModuleType

import numpy as np

from .arrays import Array, blocks, describe, namespace, native
from .precision import FLOAT_DTYPES

# Coefficients, highest power first. Below the border: fdlibm's s_erf.c (Sun Microsystems, 1993).
BORDER = 0.84375
SMALL_P = (
    -2.37630166566501626084e-05, -5.77027029648944159157e-03, -2.84817495755985104766e-02,
    -3.25042107247001499370e-01, 1.28379167095512558561e-01,
)  # fmt: skip
SMALL_Q = (
    -3.96022827877536812320e-06, 1.32494738004321644526e-04, 5.08130628187576562776e-03,
    6.50222499887672944485e-02, 3.97917223959155352819e-01, 1.0,
)  # fmt: skip
# Above: Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23
# (1969). It is his fit up to 4; beyond, 1 - erf is so small (1.5e-8) that it is still good enough.
LARGE_P = (
    2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0,
    6.61191906371416295e1, 2.98635138197400131e2, 8.81952221241769090e2,
    1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3,
)  # fmt: skip
LARGE_Q = (
    1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
    1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3,
    3.43936767414372164e3, 1.23033935480374942e3,
)  # fmt: skip
ONE_FROM = 6.0  # from 5.93 on erf rounds to 1; going no further, nothing overflows


def erf(x: Array) -> Array:
    """erf of every element of a float32 or float64 array, within a few ulp (steps to the next
    floating-point number); NaN stays NaN. TypeError for another dtype."""
    x = native(x)
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"erf: float32 or float64 expected, got {describe(x)}; use .astype first")
    xp = namespace(x)
    result = xp.empty(x.shape, dtype=x.dtype)
    x_flat, result_flat = x.reshape(-1), result.reshape(-1)
    parts = blocks(x)
    scratch = xp.empty((5, parts[0].stop if parts else 0), dtype=x.dtype)
    # Tiny inputs underflow to the right result, and a signalling NaN is no reason to warn either.
    with np.errstate(under="ignore", invalid="ignore"):
        for part in parts:
            _erf_block(xp, x_flat[part], result_flat[part], *scratch[:, : x_flat[part].size])
    return result


def _erf_block(
    xp: ModuleType, x: Array, out: Array, a: Array, is_small: Array, small: Array, large: Array,
    denominator: Array,
) -> None:  # fmt: skip
    xp.minimum(xp.abs(x, out=a), ONE_FROM, out=a)
    # 1.0 or 0.0. Products with it select exactly, and 2 to 4 times faster than xp.where, which
    # takes a branch for every element, and a CPU can't predict these.
    xp.less(a, BORDER, out=is_small)
    # A GPU always does both intervals: Python would have to wait for it to learn which it needs.
    if xp is not np or is_small.any():
        square = xp.multiply(a, a, out=out)
        _horner(xp, SMALL_P, square, small)
        small /= _horner(xp, SMALL_Q, square, denominator)
        small += 1  # not a + a * small: that product may be too small for a number
        small *= a
        small *= is_small
    else:
        small.fill(0)
    if xp is not np or not is_small.all():
        _horner(xp, LARGE_P, a, large)
        large /= _horner(xp, LARGE_Q, a, denominator)
        xp.multiply(a, a, out=a)
        large /= xp.exp(a, out=a)
        xp.subtract(1, large, out=large)
        large *= xp.subtract(1, is_small, out=is_small)
        small += large
    xp.copysign(small, x, out=out)


def _horner(xp: ModuleType, coefficients: tuple, x: Array, out: Array) -> Array:
    """c0 x^n + ... + c_n as (c0 x + c1) x + ...: one product and one sum a coefficient."""
    xp.multiply(x, coefficients[0], out=out)
    for c in coefficients[1:-1]:
        out += c
        out *= x
    out += coefficients[-1]
    return out
