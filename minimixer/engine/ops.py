"""Arithmetic: each operation's forward beside its backward.

dx is short for dL/dx, here as on all pages, and has x's shape. For y = f(x), element by element,
dx = f'(x) dy. A matrix product is linear in each factor, and its gradients are products with the
other factor transposed. Where shapes differ, NumPy repeats the smaller operand (broadcasting): then
its numbers are used many times, and their gradients add. `sum_to_shape` sees to that here.

>>> from minimixer import Tensor, ops
>>> x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
>>> row = Tensor([10.0, 20.0], requires_grad=True)
>>> ops.multiply(x, row).sum().backward()
>>> print(x.grad, row.grad)
[[10. 20.]
 [10. 20.]] [4. 6.]

Now you can do Task 1, Task 2.
Next: `rearrange.py`, sums, means, reshapes: where gradients go when numbers move.
"""

import math
from typing import Any

from .arrays import Array
from .autograd import Function, Gradients
from .inputs import Operation  # a function of Tensors, arrays or numbers: a Tensor
from .products import matmul as matrix_product  # a @ b; by the fast form, where there is one
from .products import sum_rows  # of a matrix: one row


def sum_to_shape(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Undo a broadcast: if x[j] was used as y[i, j] for every i, then dx[j] = sum_i dy[i, j].
    Repeated are axes of length 1, and axes in front that `shape` lacks."""
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
        self.shapes: list[Any] = [getattr(a, "shape", ()), getattr(b, "shape", ())]

    def undo(self, da: Array | None, db: Array | None) -> tuple[Array | None, Array | None]:
        if da is not None and da.shape != self.shapes[0]:
            da = sum_to_shape(da, self.shapes[0])
        if db is not None and db.shape != self.shapes[1]:
            db = sum_to_shape(db, self.shapes[1])
        return da, db


class Add(_Binary):
    """y = a + b: da = dy, db = dy."""

    integers = "kept"

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        return a + b

    def backward(self, dy: Array) -> Gradients:
        return self.undo(dy if self.needs[0] else None, dy if self.needs[1] else None)


class Subtract(_Binary):
    """y = a - b: da = dy, db = -dy."""

    integers = "kept"

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        return a - b

    def backward(self, dy: Array) -> Gradients:
        return self.undo(dy if self.needs[0] else None, -dy if self.needs[1] else None)


class Multiply(_Binary):
    """y = a b: da = dy b, db = dy a."""

    integers = "kept"

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        self.a: Array = a if self.needs[1] else None
        self.b: Array = b if self.needs[0] else None
        return a * b

    def backward(self, dy: Array) -> Gradients:
        da = dy * self.b if self.needs[0] else None
        return self.undo(da, dy * self.a if self.needs[1] else None)


class Divide(_Binary):
    """y = a / b: da = dy / b, db = -dy (y / b). (Not -da y: infinity times 0 is NaN.)"""

    integers, quiet = "float32", True

    def forward(self, a: Array, b: Array) -> Array:
        self.keep_shapes(a, b)
        y = a / b
        self.b, self.y = b, (y if self.needs[1] else None)
        return y

    def backward(self, dy: Array) -> Gradients:
        da = dy / self.b if self.needs[0] else None
        db = -dy * (self.y / self.b) if self.needs[1] else None
        return self.undo(da, db)


class Negative(Function):
    """dx = -dy."""

    integers = "kept"

    def forward(self, x: Array) -> Array:
        return -x

    def backward(self, dy: Array) -> Array:
        return -dy


class MatMul(Function):
    """y = a b on the last two axes, broadcast over the others; vectors as in NumPy. From y[i, j] =
    sum_k a[i, k] b[k, j] follows da[i, k] = sum_j dy[i, j] b[k, j]: da = dy b^T, db = a^T dy."""

    takes_numbers = False

    def forward(self, a: Array, b: Array) -> Array:
        if a.ndim == 0 or b.ndim == 0:
            raise ValueError("a matrix product needs two arrays of at least one dimension")
        self.shapes: tuple[Any, Any] = a.shape, b.shape
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


# ---- the functions, of Tensors, arrays or numbers: what each does, its class says ---------------

add: Operation = Add.apply
subtract: Operation = Subtract.apply
multiply: Operation = Multiply.apply
divide: Operation = Divide.apply
negative: Operation = Negative.apply
matmul: Operation = MatMul.apply
