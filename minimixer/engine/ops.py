"""The primitive operations: each forward beside its backward.

Write L for the number that is differentiated in the end and dx for dL/dx, which has x's shape.
For y = f(x) elementwise, dx = f'(x) dy. A matrix product is linear in each factor, and its
gradients are products with the other factor transposed. Where broadcasting repeated an operand,
its gradient is the sum over the repetitions; that is undone in one place, `sum_to_shape`.

>>> import numpy as np
>>> from minimixer.engine.autograd import Variable
>>> from minimixer.engine.backward import backward
>>> x = Variable(np.array([[1.0, 2.0], [3.0, 4.0]]), requires_grad=True)
>>> row = Variable(np.array([10.0, 20.0]), requires_grad=True)
>>> backward(multiply(x, row), np.ones((2, 2)))
>>> print(x.grad, row.grad)
[[10. 20.]
 [10. 20.]] [4. 6.]

Next: `rearrange.py`, sums, reshapes, slices: where gradients go when numbers move.
"""

import math
from typing import Any

from .autograd import Function, Gradients, constant
from .backend import Array, device_of, is_array, namespace, to_device
from .erf import erf as erf_of_array
from .products import matmul as matrix_product
from .products import sum_rows

# ---- broadcasting -------------------------------------------------------------------------------


def sum_to_shape(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Undo a broadcast: sum `gradient` over the axes along which `shape` was repeated.

    If x[j] was used as y[i, j] for every i, then dx[j] = sum_i dy[i, j]. Broadcasting repeats
    in two ways: along new leading axes, and along axes of length 1.
    """
    if gradient.shape == shape:
        return gradient
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


# ---- arithmetic ---------------------------------------------------------------------------------


class Add(_Binary):
    """y = a + b: da = dy, db = dy."""

    whole = "kept"

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        return a + b

    def backward(self, dy: Array) -> Gradients:
        return self.undo(dy if self.needs[0] else None, dy if self.needs[1] else None)


class Subtract(_Binary):
    """y = a - b: da = dy, db = -dy."""

    whole = "kept"

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        return a - b

    def backward(self, dy: Array) -> Gradients:
        return self.undo(dy if self.needs[0] else None, -dy if self.needs[1] else None)


class Multiply(_Binary):
    """y = a b: da = dy b, db = dy a."""

    whole = "kept"

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        self.a: Array = a if self.needs[1] else None
        self.b: Array = b if self.needs[0] else None
        return a * b

    def backward(self, dy: Array) -> Gradients:
        da = dy * self.b if self.needs[0] else None
        return self.undo(da, dy * self.a if self.needs[1] else None)


class Divide(_Binary):
    """y = a / b: da = dy / b, db = -dy (y / b): where b is tiny da may overflow, and y be 0."""

    whole, quiet = "float32", True

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        y = a / b
        self.b, self.y = b, (y if self.needs[1] else None)
        return y

    def backward(self, dy: Array) -> Gradients:
        da = dy / self.b if self.needs[0] else None
        db = -dy * (self.y / self.b) if self.needs[1] else None
        return self.undo(da, db)


class Power(_Binary):
    """y = a^b: da = dy b a^(b-1), 0 where b = 0: a^0 is 1 everywhere, though a^-1 be infinite.
    db = dy y ln a, 0 where a = 0 and b >= 0: 0^b is 0 around there, but at b = 0 itself."""

    whole, quiet = "kept", True

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        y = _power(a, b)
        self.a, self.b = a, b
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


class Negative(Function):
    """dx = -dy."""

    whole = "kept"

    def forward(self, x: Array) -> Array:
        return -x

    def backward(self, dy: Array) -> Array:
        return -dy


class MatMul(Function):
    """y = a b on the last two axes, broadcast over the others; vectors as in NumPy.

    y[i, j] = sum_k a[i, k] b[k, j], so da[i, k] = sum_j dy[i, j] b[k, j], that is
    da = dy b^T, and likewise db = a^T dy.
    """

    takes_numbers = False

    def forward(self, a: Array, b: Array) -> Array:
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
        self.a: Array = a_matrix if self.needs[1] else None
        self.b: Array = b_matrix if self.needs[0] else None
        y = matrix_product(a_matrix, b_matrix)
        if a.ndim == 1:
            y = y[..., 0, :]
        return y if b.ndim > 1 else y[..., 0]

    def backward(self, dy: Array) -> Gradients:
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

    quiet = True

    def forward(self, x: Array) -> Array:
        self.y = namespace(x).exp(x)
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
        self.y = namespace(x).sqrt(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy / (2 * self.y)


class Tanh(Function):
    """dx = dy (1 - y^2)."""

    quiet = True

    def forward(self, x: Array) -> Array:
        self.y = namespace(x).tanh(x)
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

    whole = "kept"

    def forward(self, x: Array) -> Array:
        self.x = x
        return abs(x)

    def backward(self, dy: Array) -> Array:
        return dy * namespace(dy).sign(self.x)


class Relu(Function):
    """The larger of x and 0; the slope at the kink, x = 0, is taken as 0. NaN stays NaN."""

    whole = "kept"

    def forward(self, x: Array) -> Array:
        self.y = namespace(x).maximum(x, 0)
        return self.y

    def backward(self, dy: Array) -> Array:
        return namespace(dy).where(self.y <= 0, 0, dy)


class Clip(Function):
    """x limited to [low, high]; the slope is 1 inside and on the limits, 0 outside."""

    def forward(self, x: Array, low: float | None, high: float | None) -> Array:
        y = namespace(x).clip(x, low, high)
        self.inside = y == x
        return y

    def backward(self, dy: Array) -> Array:
        return namespace(dy).where(self.inside, dy, 0)


class Maximum(_Binary):
    """The larger of two; equal, each gets half of the gradient. With a NaN each gets all of it."""

    whole = "kept"

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        self.a, self.b = a, b
        return namespace(a if is_array(a) else b).maximum(a, b)

    def backward(self, dy: Array) -> Gradients:
        where = namespace(dy).where
        shared = where(self.a == self.b, 0.5 * dy, dy)
        da = where(self.a < self.b, 0, shared) if self.needs[0] else None
        return self.undo(da, where(self.b < self.a, 0, shared) if self.needs[1] else None)


class Where(_Binary):
    """a where the condition (a boolean array, not differentiated) holds, else b."""

    whole = "kept"

    def forward(self, a: Array, b: Array, condition: Array) -> Array:
        self.keep_shapes(a, b)
        self.condition = to_device(condition, device_of(a if is_array(a) else b))
        return namespace(self.condition).where(self.condition, a, b)

    def backward(self, dy: Array) -> Gradients:
        where = namespace(dy).where
        da = where(self.condition, dy, 0) if self.needs[0] else None
        return self.undo(da, where(self.condition, 0, dy) if self.needs[1] else None)


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
relu = Relu.apply


def clip(x, low: float | None = None, high: float | None = None):
    """Every element limited to [low, high]; None: no limit on that side. TypeError if one is no
    number, or wants a gradient."""
    limits = [constant("clip: a limit", limit) for limit in (low, high)]
    try:  # as Python numbers: NumPy's would promote float32 arrays
        low, high = (None if limit is None else float(limit) for limit in limits)
    except (TypeError, ValueError):
        raise TypeError(f"clip takes numbers, got {limits!r:.60}; for arrays: maximum") from None
    return Clip.apply(x, low=low, high=high)


def where(condition, a, b):
    """Elementwise a or b; `condition` is a boolean array or Tensor."""
    condition = constant("where: the condition", condition)
    if not is_array(condition) or condition.dtype != bool:
        raise TypeError(f"where: the condition must be a boolean array, got {condition!r:.60}")
    return Where.apply(a, b, condition=condition)
