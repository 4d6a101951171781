"""The primitive operations: each forward beside its backward.

Write L for the number that is differentiated in the end and dx for dL/dx, which has x's shape.
For y = f(x) elementwise, dx = f'(x) dy. A matrix product is linear in each factor, and its
gradients are products with the other factor transposed. Where broadcasting repeated an operand,
its gradient is the sum over the repetitions; that is undone in one place, `sum_to_shape`.

>>> import numpy as np
>>> from minimixer.autograd import Variable
>>> from minimixer.backward import backward
>>> x = Variable(np.array([[1.0, 2.0], [3.0, 4.0]]), requires_grad=True)
>>> row = Variable(np.array([10.0, 20.0]), requires_grad=True)
>>> backward(multiply(x, row), np.ones((2, 2)))
>>> print(x.grad, row.grad)
[[10. 20.]
 [10. 20.]] [4. 6.]

Next: `rearrange.py`, the operations that move numbers about or collect them.
"""

import math
import operator
from typing import Any

from .autograd import Function, Variable
from .backend import Array, device_of, is_array, is_half, namespace, sum_rows, to_device, widen
from .backend import matmul as matrix_product
from .erf import erf as erf_of_array

# ---- broadcasting -------------------------------------------------------------------------------


def sum_to_shape(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Undo a broadcast: sum `gradient` over the axes along which `shape` was repeated.

    If x[j] was used as y[i, j] for every i, then dx[j] = sum_i dy[i, j]. Broadcasting repeats
    in two ways: along new leading axes, and along axes of length 1.
    """
    if gradient.shape == shape:
        return gradient
    if is_half(gradient.dtype):  # many terms: in float32
        return sum_to_shape(widen(gradient), shape).astype(gradient.dtype)
    leading = gradient.ndim - len(shape)
    if leading and shape == gradient.shape[leading:] and shape and gradient.size:
        columns = math.prod(shape)  # the frequent case, a bias: rows of a matrix, summed
        return sum_rows(gradient.reshape(-1, columns)).reshape(shape)
    repeated = [i + leading for i, n in enumerate(shape) if n != gradient.shape[i + leading]]
    return gradient.sum(axis=(*range(leading), *repeated), keepdims=True).reshape(shape)


class _Binary(Function):
    """Two operands that broadcast against each other."""

    def keep_shapes(self, a: Any, b: Any) -> None:
        self.shapes = [getattr(a, "shape", ()), getattr(b, "shape", ())]

    def undo(self, da: Array | None, db: Array | None) -> tuple[Array | None, Array | None]:
        if da is not None and da.shape != self.shapes[0]:
            da = sum_to_shape(da, self.shapes[0])
        if db is not None and db.shape != self.shapes[1]:
            db = sum_to_shape(db, self.shapes[1])
        return da, db


def _in_float32(function: Any, a: Any, b: Any) -> Any:
    """function(a, b), of two-byte arrays in float32 and rounded: a Python number among them would
    promote some of them for good."""
    dtype = getattr(a, "dtype", None)
    if dtype is None or not is_half(dtype):
        dtype = getattr(b, "dtype", None)
        if dtype is None or not is_half(dtype):
            return function(a, b)
    return function(*(widen(x) if is_array(x) else x for x in (a, b))).astype(dtype)


# ---- arithmetic ---------------------------------------------------------------------------------


class Add(_Binary):
    """y = a + b: da = dy, db = dy."""

    half = True

    def forward(self, a, b):
        self.keep_shapes(a, b)
        return _in_float32(operator.add, a, b)

    def backward(self, dy):
        return self.undo(dy if self.needs[0] else None, dy if self.needs[1] else None)


class Subtract(_Binary):
    """y = a - b: da = dy, db = -dy."""

    def forward(self, a, b):
        self.keep_shapes(a, b)
        return a - b

    def backward(self, dy):
        return self.undo(dy if self.needs[0] else None, -dy if self.needs[1] else None)


class Multiply(_Binary):
    """y = a b: da = dy b, db = dy a."""

    half = True

    def forward(self, a, b):
        self.keep_shapes(a, b)
        self.a = a if self.needs[1] else None
        self.b = b if self.needs[0] else None
        return _in_float32(operator.mul, a, b)

    def backward(self, dy):
        need_a, need_b = self.needs
        da = _in_float32(operator.mul, dy, self.b) if need_a else None
        return self.undo(da, _in_float32(operator.mul, dy, self.a) if need_b else None)


class Divide(_Binary):
    """y = a / b: da = dy / b, db = -dy y / b."""

    def forward(self, a, b):
        self.keep_shapes(a, b)
        y = a / b
        self.b = b
        self.y = y if self.needs[1] else None
        return y

    def backward(self, dy):
        da = dy / self.b
        db = -da * self.y if self.needs[1] else None
        return self.undo(da if self.needs[0] else None, db)


class Power(_Binary):
    """y = a^b: da = dy b a^(b-1), db = dy y ln a, taken as 0 where a = 0."""

    def forward(self, a, b):
        self.keep_shapes(a, b)
        y = _power(a, b)
        self.a, self.b = a, b
        self.y = y if self.needs[1] else None
        return y

    def backward(self, dy):
        a, b = self.a, self.b
        da = db = None
        if self.needs[0]:
            if is_array(b):
                zero = b == 0  # a^0 is 1 everywhere: its slope is 0 even where a^-1 is not finite
                xp = namespace(dy)
                da = dy * b * a ** xp.where(zero, b, b - 1)
            else:
                da = dy * (b * _power(a, b - 1)) if b else namespace(dy).zeros_like(dy)
        if self.needs[1]:
            xp = namespace(dy)
            if is_array(a):
                log_a = xp.log(xp.where(a == 0, 1, a))
            else:
                log_a = math.log(a) if a > 0 else 0.0 if a == 0 else math.nan
            db = dy * self.y * log_a
        return self.undo(da, db)


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


class Negative(Function):
    """dx = -dy."""

    def forward(self, x):
        return -x

    def backward(self, dy):
        return -dy


class MatMul(Function):
    """y = a b on the last two axes, broadcast over the others; vectors as in NumPy.

    y[i, j] = sum_k a[i, k] b[k, j], so da[i, k] = sum_j dy[i, j] b[k, j], that is
    da = dy b^T, and likewise db = a^T dy.
    """

    takes_numbers = False

    def forward(self, a, b):
        if a.ndim == 0 or b.ndim == 0:
            raise ValueError("a matrix product needs two arrays of at least one dimension")
        self.shapes = a.shape, b.shape
        a_matrix = a if a.ndim > 1 else a[None, :]
        b_matrix = b if b.ndim > 1 else b[:, None]
        if a_matrix.shape[-1] != b_matrix.shape[-2]:
            raise ValueError(
                f"the last axis of the first has length {a_matrix.shape[-1]}, "
                f"the rows of the second {b_matrix.shape[-2]}; they must agree"
            )
        self.a = a_matrix if self.needs[1] else None
        self.b = b_matrix if self.needs[0] else None
        y = matrix_product(a_matrix, b_matrix)
        if a.ndim == 1:
            y = y[..., 0, :]
        return y if b.ndim > 1 else y[..., 0]

    def backward(self, dy):
        a_shape, b_shape = self.shapes
        if len(b_shape) == 1:
            dy = dy[..., None]
        if len(a_shape) == 1:
            dy = dy[..., None, :]
        da = db = None
        if self.needs[0]:
            da = matrix_product(dy, self.b.swapaxes(-1, -2))
            da = sum_to_shape(da, a_shape if len(a_shape) > 1 else (1, *a_shape)).reshape(a_shape)
        if self.needs[1]:
            db = matrix_product(self.a.swapaxes(-1, -2), dy)
            db = sum_to_shape(db, b_shape if len(b_shape) > 1 else (*b_shape, 1)).reshape(b_shape)
        return da, db


# ---- elementwise functions ----------------------------------------------------------------------


class Exp(Function):
    """y = e^x is its own slope: dx = dy y."""

    def forward(self, x):
        self.y = namespace(x).exp(x)
        return self.y

    def backward(self, dy):
        return dy * self.y


class Log(Function):
    """dx = dy / x."""

    def forward(self, x):
        self.x = x
        return namespace(x).log(x)

    def backward(self, dy):
        return dy / self.x


class Sqrt(Function):
    """dx = dy / (2 y): infinite at 0."""

    def forward(self, x):
        self.y = namespace(x).sqrt(x)
        return self.y

    def backward(self, dy):
        return dy / (2 * self.y)


class Tanh(Function):
    """dx = dy (1 - y^2)."""

    def forward(self, x):
        self.y = namespace(x).tanh(x)
        return self.y

    def backward(self, dy):
        return dy * (1 - self.y * self.y)


class Erf(Function):
    """y = 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x; its slope is the integrand."""

    def forward(self, x):
        self.x = x
        return erf_of_array(x)

    def backward(self, dy):
        xp = namespace(dy)
        return dy * (2 / math.sqrt(math.pi) * xp.exp(-self.x * self.x))


class Abs(Function):
    """The slope at the kink, x = 0, is taken as 0."""

    def forward(self, x):
        self.x = x
        return abs(x)

    def backward(self, dy):
        return dy * namespace(dy).sign(self.x)


class Clip(Function):
    """x limited to [low, high]; the slope is 1 inside and on the limits, 0 outside."""

    def forward(self, x, low, high):
        xp = namespace(x)
        inside = xp.ones(x.shape, dtype=bool)
        if low is not None:
            inside &= x >= low
        if high is not None:
            inside &= x <= high
        self.inside = inside
        return xp.clip(x, low, high)

    def backward(self, dy):
        return dy * self.inside


class Maximum(_Binary):
    """The larger of two; where they are equal each gets half of the gradient."""

    def forward(self, a, b):
        self.keep_shapes(a, b)
        self.a, self.b = a, b
        return namespace(a if is_array(a) else b).maximum(a, b)

    def backward(self, dy):
        half = (0.5 * (self.a == self.b)).astype(dy.dtype)
        da = dy * ((self.a > self.b) + half) if self.needs[0] else None
        db = dy * ((self.b > self.a) + half) if self.needs[1] else None
        return self.undo(da, db)


class Where(_Binary):
    """a where the condition (a boolean array, not differentiated) holds, else b."""

    def forward(self, a, b, condition):
        self.keep_shapes(a, b)
        self.condition = to_device(condition, device_of(a if is_array(a) else b))
        return namespace(self.condition).where(self.condition, a, b)

    def backward(self, dy):
        xp = namespace(dy)
        da = xp.where(self.condition, dy, 0) if self.needs[0] else None
        db = xp.where(self.condition, 0, dy) if self.needs[1] else None
        return self.undo(da, db)


# ---- the functions ------------------------------------------------------------------------------
#
# Of Tensors, arrays or numbers; what each does, the class of its name says.

add = Add.apply
subtract = Subtract.apply
multiply = Multiply.apply
divide = Divide.apply
power = Power.apply
negative = Negative.apply
matmul = MatMul.apply
exp = Exp.apply
log = Log.apply
sqrt = Sqrt.apply
tanh = Tanh.apply
erf = Erf.apply
absolute = Abs.apply
maximum = Maximum.apply


def clip(x, low: float | None = None, high: float | None = None):
    """Every element limited to [low, high]; None: no limit on that side."""
    # as Python numbers: NumPy's would promote float32 arrays
    low, high = (None if limit is None else float(limit) for limit in (low, high))
    return Clip.apply(x, low=low, high=high)


def where(condition, a, b):
    """Elementwise a or b; `condition` is a boolean array or Tensor."""
    condition = condition.data if isinstance(condition, Variable) else condition
    if not is_array(condition) or condition.dtype != bool:
        raise TypeError(f"where: the condition must be a boolean array, got {condition!r:.60}")
    return Where.apply(a, b, condition=condition)
