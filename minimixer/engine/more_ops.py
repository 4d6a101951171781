"""More operations: powers, elementwise functions, the larger of two, choices.

>>> from minimixer import Tensor
>>> from minimixer.engine.more_ops import exp, log, relu
>>> x = Tensor([-1.0, 0.5, 2.0], requires_grad=True)
>>> relu(x).sum().backward()
>>> print(x.grad, exp(log(x * x)).data)
[0. 1. 1.] [1.   0.25 4.  ]
"""

import math
from typing import Any

from .arrays import Array, device_of, is_array, namespace, to_device
from .autograd import Function, Gradients, constant
from .erf import erf as erf_of_array
from .inputs import Operation, Result
from .ops import _Binary


class Power(_Binary):
    """y = a^b: da = dy b a^(b-1), 0 where b = 0: a^0 is 1 everywhere, though a^-1 be infinite.
    db = dy y ln a, 0 where a = 0 and b >= 0: 0^b is 0 around there, but at b = 0 itself."""

    integers = "kept"
    quiet = True

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        y = _power(a, b)
        self.a = a
        self.b = b
        self.y: Array = y if self.needs[1] else None
        return y

    def backward(self, dy: Array) -> Gradients:
        a, b = self.a, self.b
        xp = namespace(dy)
        da = db = None
        if self.needs[0]:
            if is_array(b):
                da = xp.where(b == 0, 0, dy * (b * a ** (b - 1)))
            else:
                da = dy * (b * _power(a, b - 1)) if b else xp.zeros_like(dy)
        if self.needs[1]:  # here b is an array; a may be a number
            log_a = xp.log(a) if is_array(a) else _log(a)
            db = xp.where((a == 0) & (b >= 0), 0, dy * (self.y * log_a))
        return self.undo(da, db)


def _log(a: float) -> float:
    return math.log(a) if a > 0 else -math.inf if a == 0 else math.nan


def _power(a: Any, b: Any) -> Any:
    """a^b; small whole powers as products, ten times faster than NumPy's general power."""
    if isinstance(b, (int, float)) and is_array(a):
        if b == 1:
            return a.copy()
        if b == 2:
            return a * a
        if b == 3:
            return a * a * a
    return a**b


class Exp(Function):
    """y = e^x is its own slope: dx = dy y."""

    quiet = True

    def forward(self, x: Array) -> Array:
        self.y: Array = namespace(x).exp(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * self.y


class Log(Function):
    """dx = dy / x."""

    quiet = True

    def forward(self, x: Array) -> Array:
        self.x = x
        return namespace(x).log(x)

    def backward(self, dy: Array) -> Array:
        return dy / self.x


class Sqrt(Function):
    """dx = dy / (2 y): infinite at 0."""

    quiet = True

    def forward(self, x: Array) -> Array:
        self.y: Array = namespace(x).sqrt(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy / (2 * self.y)


class Tanh(Function):
    """dx = dy (1 - y^2)."""

    quiet = True

    def forward(self, x: Array) -> Array:
        self.y: Array = namespace(x).tanh(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * (1 - self.y * self.y)


class Erf(Function):
    """y = 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x; its slope is the integrand."""

    quiet = True

    def forward(self, x: Array) -> Array:
        self.x = x
        return erf_of_array(x)

    def backward(self, dy: Array) -> Array:
        return dy * (2 / math.sqrt(math.pi) * namespace(dy).exp(-self.x * self.x))


class Abs(Function):
    """The slope at the kink, x = 0, is taken as 0."""

    integers = "kept"

    def forward(self, x: Array) -> Array:
        self.x = x
        return abs(x)

    def backward(self, dy: Array) -> Array:
        return dy * namespace(dy).sign(self.x)


class Relu(Function):
    """The larger of x and 0; the slope at the kink, x = 0, is taken as 0. NaN stays NaN."""

    integers = "kept"

    def forward(self, x: Array) -> Array:
        self.y: Array = namespace(x).maximum(x, 0)
        return self.y

    def backward(self, dy: Array) -> Array:
        return namespace(dy).where(self.y <= 0, 0, dy)


class Clip(Function):
    """x limited to [low, high]; the slope is 1 inside and on the limits, 0 outside."""

    def forward(self, x: Array, low: float | None, high: float | None) -> Array:
        y = namespace(x).clip(x, low, high)
        self.inside: Array = y == x
        return y

    def backward(self, dy: Array) -> Array:
        return namespace(dy).where(self.inside, dy, 0)


class Maximum(_Binary):
    """The larger of two; equal, each gets half of the gradient. With a NaN each gets all of it."""

    integers = "kept"

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        self.a = a
        self.b = b
        return namespace(a if is_array(a) else b).maximum(a, b)

    def backward(self, dy: Array) -> Gradients:
        where = namespace(dy).where
        shared = where(self.a == self.b, 0.5 * dy, dy)
        da = where(self.a < self.b, 0, shared) if self.needs[0] else None
        return self.undo(da, where(self.b < self.a, 0, shared) if self.needs[1] else None)


class Where(_Binary):
    """`a` where the condition (a boolean array, not differentiated) holds, else `b`."""

    integers = "kept"

    def forward(self, a: Array, b: Array, condition: Array) -> Array:
        self.keep_shapes(a, b)
        self.condition: Array = to_device(condition, device_of(a if is_array(a) else b))
        return namespace(self.condition).where(self.condition, a, b)

    def backward(self, dy: Array) -> Gradients:
        where = namespace(dy).where
        da = where(self.condition, dy, 0) if self.needs[0] else None
        return self.undo(da, where(self.condition, 0, dy) if self.needs[1] else None)


power: Operation = Power.apply
exp: Operation = Exp.apply
log: Operation = Log.apply
sqrt: Operation = Sqrt.apply
tanh: Operation = Tanh.apply
erf: Operation = Erf.apply
absolute: Operation = Abs.apply
maximum: Operation = Maximum.apply
relu: Operation = Relu.apply


def clip(x: Any, low: float | None = None, high: float | None = None) -> Result:
    """Every element limited to [low, high]; None: no limit on that side. TypeError if one is no
    number, or wants a gradient."""
    limits = [constant("clip: a limit", limit) for limit in (low, high)]
    try:  # as Python numbers: NumPy's would promote float32 arrays
        low, high = (None if limit is None else float(limit) for limit in limits)
    except (TypeError, ValueError):
        raise TypeError(f"clip takes numbers, got {limits!r:.60}; for arrays: maximum") from None
    return Clip.apply(x, low=low, high=high)


def where(condition: Any, a: Any, b: Any) -> Result:
    """Elementwise `a` or `b`; `condition` is a boolean array or Tensor."""
    condition = constant("where: the condition", condition)
    if not is_array(condition) or condition.dtype != bool:
        raise TypeError(f"where: the condition must be a boolean array, got {condition!r:.60}")
    return Where.apply(a, b, condition=condition)
