"""Linear and the mean again, on CUDA kernels.

Each class here does what the class that it derives from does, with fewer passes over memory; the
`.cu` files say what each kernel computes and moves. Products go to cuBLAS; everything between two
products is one kernel.
"""

from typing import Any

import numpy as np

from ...engine.arrays import Array, namespace
from ...engine.autograd import Gradients
from ...engine.precision import wide
from ...engine.products import as_rows
from ...engine.rearrange import Mean
from ...nn.functional import Linear
from ..node import Fast
from . import cublas
from .cuda import c_name, ceil_div, get, type_of, usable
from .side import aside
from .sums import column_sums, mean_rows, mean_rows_name

# ---- linear -------------------------------------------------------------------------------------


class FastLinear(Fast, Linear):
    """The bias is added as the product is stored; gradients of weights go aside."""

    any_dtype = True

    def forward(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        rows = as_rows(x)
        self.shape: tuple[int, ...] = x.shape
        self.x: Array = rows if self.needs[1] else None
        self.weight: Array = weight if self.needs[0] else None
        y = cublas.matmul(rows, weight, precision=self.precision, bias=bias)
        return y.reshape(*x.shape[:-1], weight.shape[1])

    def backward(self, dy: Array) -> Gradients:
        dy = as_rows(namespace(dy).ascontiguousarray(dy))
        dx = dw = db = None
        with aside(self, (1, 2), self.x, dy):
            if self.needs[1]:
                dw = weight_gradient(self, 1, self.x.T, dy)
            if self.needs[2]:
                db = column_sums(dy, self.destination(2))
        if self.needs[0]:
            dx = cublas.matmul(dy, self.weight.T, precision=self.precision).reshape(self.shape)
        return dx, dw, db


def weight_gradient(node: Fast, position: int, a: Array, b: Array) -> Array | None:
    """The gradient of the node's input at `position`, if it is needed, as the product `a @ b`:
    straight to where it belongs, if there is such a place."""
    if not node.needs[position]:
        return None
    return sum_of_products(a, b, node.destination(position), node.precision)


def sum_of_products(
    a: Array, b: Array, out: Array | None = None, precision: str | None = None
) -> Array:
    """`a @ b`, in float32 even if they are shorter, in `out` if given."""
    if out is None:
        out = namespace(a).empty((a.shape[0], b.shape[1]), dtype=wide(a.dtype))
    return cublas.matmul(a, b, out=out, precision=precision)


# ---- the mean over the tokens -------------------------------------------------------------------


class FastMean(Fast, Mean):
    """Along the first axis in one kernel, as is the way back."""

    any_dtype = True

    def suits(self, x: Array, axis: Any = None, keepdims: bool = False) -> bool:
        if not (axis == 0 and not keepdims and x.ndim > 1 and x.size and x.flags.c_contiguous):
            return False
        back = f"divide<{type_of(x)},{c_name(wide(x.dtype))}>"
        return usable("reduce.cu", mean_rows_name(x.reshape(len(x), -1)), back)

    def forward(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        self.keep_axis(x, axis)
        self.count: int = len(x)
        self.dtype: np.dtype = x.dtype
        return mean_rows(x.reshape(len(x), -1)).reshape(x.shape[1:])

    def backward(self, dy: Array) -> Array:
        kernel = get("reduce.cu", f"divide<{c_name(self.dtype)},{type_of(dy)}>")
        dy = namespace(dy).ascontiguousarray(dy)
        dx = namespace(dy).empty(dy.shape, dtype=self.dtype)
        count = dy.dtype.type(self.count)
        kernel((ceil_div(dy.size, 128),), (128,), (dy, dx, dy.size, count))
        return self.spread(dx)
