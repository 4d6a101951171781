"""Numbers with a bound on their rounding error: what a float computation may give at the most.

Run on `Rounded` numbers a formula gives NumPy's float64 result and, beside it, by how much rounding
may move it: each + - * / adds half a unit in the last place, each exp up to four, and what was
there before is carried along to first order (running error analysis: Wilkinson 1963; Higham 2002,
section 3.3). So the allowed difference is derived, not chosen.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

FUNCTION_ERROR = 8  # exp, log, tanh, erf, power: at most 4 ulp, each at most 2 units of rounding
# The relative error of one rounding, and the smallest normal number.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
erf = np.vectorize(math.erf, otypes=[float])


class Rounded:
    """`value`, computed in float64, and a bound on |what a float computation gives - value|.

    `error` is in units of rounding (2^-24 for float32), to first order. Inputs are exact; Python
    numbers and constant arrays may have been rounded to float32.
    """

    __array_ufunc__ = None

    def __init__(self, value: Any, error: Any = 0.0):
        self.value = np.asarray(value, dtype=np.float64)
        self.error = np.broadcast_to(error, self.value.shape)
        self.shape, self.ndim = self.value.shape, self.value.ndim

    def _rounded(self, value: Any, carried: Any, units: float = 1) -> "Rounded":
        return Rounded(value, carried + units * np.abs(value))

    def __add__(self, other):
        other = constant(other)
        return self._rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other):
        return self + -constant(other)

    def __mul__(self, other):
        other = constant(other)
        carried = abs(self.value) * other.error + self.error * abs(other.value)
        return self._rounded(self.value * other.value, carried)

    def __truediv__(self, other):
        other = constant(other)
        y = self.value / other.value
        return self._rounded(y, (self.error + abs(y) * other.error) / abs(other.value))

    def __pow__(self, other):
        other = constant(other)
        a, b = self.value, other.value
        y = a**b
        log = np.log(np.where(a == 0, 1, abs(a)))
        carried = abs(y * log) * other.error + abs(y * b) / np.where(a == 0, 1, abs(a)) * self.error
        return self._rounded(y, carried, FUNCTION_ERROR)

    def __matmul__(self, other):
        a, b = self.value, other.value
        terms = a.shape[-1] * np.matmul(abs(a), abs(b))  # k roundings for a sum of k products
        return Rounded(np.matmul(a, b), abs(a) @ other.error + self.error @ abs(b) + terms)

    def __neg__(self):
        return Rounded(-self.value, self.error)

    def __getitem__(self, key):
        return select(lambda a: a[key], self)

    def sum(self, axis=None, keepdims=False):
        y = self.value.sum(axis=axis, keepdims=keepdims)
        terms = self.value.size // max(1, y.size)
        both = (self.error + terms * abs(self.value)).sum(axis=axis, keepdims=keepdims)
        return Rounded(y, both)

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis, keepdims)
        count = self.value.size // max(1, total.value.size) if self.value.size else 1
        return self._rounded(total.value / count, total.error / count)

    def max(self, axis=None, keepdims=False):
        return select(lambda a: a.max(axis=axis, keepdims=keepdims), self)

    def reshape(self, *shape):
        return select(lambda a: a.reshape(*shape), self)

    def transpose(self, *order):
        return select(lambda a: a.transpose(*order), self)

    def _function(self, y: Any, slope: Any, units: float = FUNCTION_ERROR) -> "Rounded":
        return self._rounded(y, slope * self.error, units)

    def exp(self):
        y = np.exp(self.value)
        return self._function(y, y)

    def log(self):
        return self._function(np.log(self.value), 1 / abs(self.value))

    def sqrt(self):
        y = np.sqrt(self.value)
        return self._function(y, 1 / (2 * y), units=1)

    def tanh(self):
        y = np.tanh(self.value)
        return self._function(y, 1 - y * y)

    def erf(self):
        y = erf(self.value) if self.value.size else self.value
        return self._function(y, 2 / math.sqrt(math.pi) * np.exp(-(self.value**2)))


for _name in ("add", "sub", "mul", "truediv", "pow"):  # a number or an array on the left
    _swapped = lambda self, other, name=_name: getattr(constant(other), f"__{name}__")(self)  # noqa: E731
    setattr(Rounded, f"__r{_name}__", _swapped)


def constant(value: Any) -> Rounded:
    return value if isinstance(value, Rounded) else Rounded(value, np.abs(value))


def select(function: Callable[..., Any], *numbers: Any) -> Rounded:
    """A function that only moves or picks numbers, on the values and on the bounds."""
    numbers = tuple(constant(n) for n in numbers)
    return Rounded(function(*[n.value for n in numbers]), function(*[n.error for n in numbers]))


def within_rounding(found: np.ndarray, right: Rounded, slack: float = 2.0) -> bool:
    """Whether `found` differs from NumPy's value by rounding alone.

    `slack` 2: the bound is to first order, and a fused function adds in another order.
    """
    dtype = found.dtype.name
    allowed = slack * right.error * UNIT[dtype] + (right.error > 0) * TINY[dtype]
    return bool((abs(found.astype(np.float64) - right.value) <= allowed).all())
