"""Linear, the mean, GELU and the MLP again, on CUDA kernels.

Each class here does what the class that it derives from does, with fewer passes over memory; the
`.cu` files say what each kernel computes and moves. Products go to cuBLAS; everything between two
products is one kernel.
"""

import math
import weakref
from collections import defaultdict
from typing import Any

import numpy as np

from ...engine.arrays import Array, namespace
from ...engine.autograd import Gradients
from ...engine.precision import wide
from ...engine.products import as_rows
from ...engine.rearrange import Mean
from ...nn.functional import GELU, Linear
from ..fused import MLP
from ..kept import Kept
from ..node import Fast
from . import cublas, spare_row, token_mixing
from .cuda import as_bool, c_name, ceil_div, get, multiprocessors, pointer, type_of, usable
from .side import LARGEST, aside
from .sums import can_sum, column_sums, mean_rows, mean_rows_name, sum_columns, sum_rows

THREADS = 128  # in a block, for most kernels here
_kept: defaultdict[int, Kept] = defaultdict(Kept)  # of each GPU

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


# ---- GELU and the MLP ---------------------------------------------------------------------------


class _Gelu:
    """gelu(u + bias) over matrices u of one shape, in x's dtype and on its GPU; the bias goes along
    their rows (axis 0) or columns (axis -1). New ones start at a multiple of 16 bytes; else `u` is
    one of them."""

    def __init__(
        self, x: Array, shape: tuple[int, int], bias: Array | None, axis: int, approximate: str,
        u: Array | None = None,
    ):  # fmt: skip
        self.axis, self.bias, self.dtype = axis, bias, x.dtype
        self.rows, self.columns = shape
        width = 16 // x.dtype.itemsize
        self.width = 1 if self.columns % width or (u is not None and u.data.ptr % 16) else width
        self.options = f"{type_of(x)},{self.width},{as_bool(approximate == 'tanh')}"
        packs = ceil_div(self.columns, self.width)
        if axis == 0:  # kernels in rows: 4 packs a thread, and each block within a row
            self.threads = min(256, max(32, 32 * ceil_div(packs, 32)))
            self.grid = (ceil_div(packs, 4 * self.threads), min(self.rows, 65535))
        else:  # in columns: stretches of rows, as many as fill the GPU
            self.threads = min(THREADS, 32 * ceil_div(packs, 32))
            across = ceil_div(packs, self.threads)
            stretches = max(1, 16 * multiprocessors(x.device.id) // across)
            self.rows_per_block = 4 * max(2, ceil_div(self.rows, 4 * min(stretches, 65535)))
            self.grid = (across, ceil_div(self.rows, self.rows_per_block))

    def _arguments(self, *arrays: Any) -> tuple[Any, ...]:
        sizes = (self.rows, self.columns)
        return (*arrays, *sizes, *([] if self.axis == 0 else [np.int32(self.rows_per_block)]))

    def _name(self, backward: bool = False, make_g: bool = False) -> str:
        name = "gelu_rows" if self.axis == 0 else "gelu_columns"
        return (
            f"{name}_backward<{self.options},{as_bool(make_g)}>"
            if backward
            else (f"{name}<{self.options}>")
        )

    def usable(self, backward: bool) -> bool:
        names = [self._name()]
        if backward:
            names += [self._name(True, False), self._name(True, True)]
        return usable("gelu.cu", *names) and can_sum(self.dtype)

    def forward(self, u: Array, out: Array | None = None) -> Array:
        """g, or written over u with `out=u`."""
        g = namespace(u).empty_like(u) if out is None else out
        kernel = get("gelu.cu", self._name())
        kernel(self.grid, (self.threads,), self._arguments(u, pointer(self.bias), g))
        return g

    def backward(self, u: Array, dg: Array, make_g: bool) -> Array:
        """dg becomes du; with make_g, u becomes g. Returns parts of the bias's gradient."""
        shape = (self.rows, self.grid[0]) if self.axis == 0 else (self.grid[1], self.columns)
        partial = namespace(u).empty(shape, dtype=wide(u.dtype))
        kernel = get("gelu.cu", self._name(True, make_g))
        kernel(self.grid, (self.threads,), self._arguments(u, pointer(self.bias), dg, partial))
        return partial

    def sum(self, partial: Array, out: Array | None) -> Array:
        """The bias's gradient from its parts, in `out` if given."""
        if self.axis == 0:
            return sum_columns(partial, out=out)
        out = namespace(partial).empty(self.columns, dtype=partial.dtype) if out is None else out
        sum_rows(partial[:, None], out)
        return out


class FastGELU(Fast, GELU):
    """Keeps x, and works out the slope again in backward's one pass."""

    any_dtype = True

    def suits(self, x: Array, approximate: str) -> bool:
        return x.size > 0 and self.kernel(x, approximate).usable(backward=self.needs[0])

    def kernel(self, x: Array, approximate: str) -> Any:
        u = x if x.flags.c_contiguous else None
        return _Gelu(x, (1, x.size), None, 0, approximate, u)

    def forward(self, x: Array, approximate: str) -> Array:
        self.shape: tuple[int, ...] = x.shape
        x = namespace(x).ascontiguousarray(x)
        self.approximate = approximate
        self.x: Array = x if self.needs[0] else None
        return self.kernel(x, approximate).forward(x.reshape(1, -1)).reshape(self.shape)

    def backward(self, dy: Array) -> Array:
        dx, kernel = dy.copy(order="C"), self.kernel(self.x, self.approximate)
        kernel.backward(self.x.reshape(1, -1), dx.reshape(1, -1), make_g=False)
        return dx.reshape(self.shape)


class FastMLP(Fast, MLP):
    """Keeps x, u (not the slope), and g or not.

    Token mixing is one kernel where token_mixing.py has one. Else, where it can, cuBLAS applies
    bias and GELU as it stores the product, and in backward the slope (token mixing: spare_row.py).
    The channel-mixing MLP's g is the largest array of a block. It is kept as far as `kernels.keep`
    says; where not, backward makes it again from u, over u, in a pass that turns dg into du.
    """

    any_dtype = True

    def suits(self, x: Array, w1: Array, b1: Array, w2: Array, axis: int, approximate: str) -> bool:
        if not x.size or not w1.size:
            return False
        rows, units = x.size // x.shape[axis], w1.shape[1]
        self.axis = axis
        self.first: bool = axis == 0
        self.approximate = approximate
        self.hidden: tuple[int, int] = (units, rows) if self.first else (rows, units)
        self.biased: bool = False
        return self.gelu(x, b1).usable(backward=any(self.needs))

    def forward(
        self, x: Array, w1: Array, b1: Array, w2: Array, axis: int, approximate: str
    ) -> Array:
        self.shape: tuple[int, ...] = x.shape
        xp = namespace(x)
        x, b1 = xp.ascontiguousarray(x), xp.ascontiguousarray(b1)
        x = x.reshape(len(x), math.prod(x.shape[1:])) if self.first else as_rows(x)
        self.x1: Array = None
        self.u: Array = None
        keep = any(self.needs)
        can_fuse = approximate == "tanh" and cublas.can_fuse(x.dtype)
        self.in_one: bool = can_fuse and self.first and token_mixing.suits(x, w1, b1)
        if self.in_one:
            y, self.u = token_mixing.forward(x, w1, b1, w2, keep)
            if keep:
                self.x, self.w1, self.w2 = x, w1, w2
            return y.reshape(self.shape)
        both = self.fused(x, w1, b1, keep) if can_fuse else None
        g, u = both or (None, self.make_u(x, w1))
        self.biased = both is not None  # u has the bias in it
        if g is None:
            g = self.gelu(x, b1).forward(u, out=None if keep else u)
        y = self.product(w2, g) if self.first else self.product(g, w2)
        if keep:
            self.x: Array = x
            self.w1: Array = w1
            self.b1: Array = b1
            self.w2: Array = w2
            self.u = u
            self.g: Array = g if self.first or self.may_keep(g) else None
        return y.reshape(self.shape)

    def fused(self, x: Array, w1: Array, b1: Array, keep: bool) -> Any:
        """(g, u) from one product with GELU, or None."""
        if not self.first:
            return cublas.matmul_gelu(x, w1, b1, keep)
        x1 = spare_row.with_ones(x)
        if x1 is None:
            return None
        both = cublas.matmul_gelu(spare_row.append(w1, b1).T, x1, None, keep)
        self.x1 = x1 if both and keep else None
        return both

    def may_keep(self, g: Array) -> bool:
        kept = _kept[g.device.id]
        may = kept.take(g.nbytes)
        if may and g.nbytes > LARGEST:
            weakref.finalize(self, kept.give_back, g.nbytes).atexit = False
        return may

    def product(self, a: Array, b: Array) -> Array:
        return cublas.matmul(a, b, precision=self.precision)

    def make_u(self, x: Array, w1: Array) -> Array:
        return self.product(w1.T, x) if self.first else self.product(x, w1)

    def gelu(self, x: Array, b1: Array) -> Any:
        bias = None if self.biased else b1
        return _Gelu(x, self.hidden, bias, self.axis, self.approximate)

    def backward(self, dy: Array) -> Gradients:
        dy = namespace(dy).ascontiguousarray(dy)
        dy = dy.reshape(len(dy), math.prod(dy.shape[1:])) if self.first else as_rows(dy)
        if self.in_one:
            return self.backward_in_one(dy)
        x, w1, u, g, dx = self.x, self.w1, self.u, self.g, None
        if u is None:  # a second backward (retain_graph): the first wrote over it
            u, self.biased = self.make_u(x, w1), False
        du = partial = None
        if self.biased and g is not None:
            product = (self.w2.T, dy) if self.first else (dy, self.w2.T)
            du = cublas.matmul_slope(*product, u)
        if du is None:
            du = self.product(self.w2.T, dy) if self.first else self.product(dy, self.w2.T)  # dg
            partial = self.gelu(u, self.b1).backward(u, du, g is None)
            if g is None:
                g = u
                self.u = None
        with aside(self, (1, 2, 3), partial, x, du, dy, g):
            if partial is None and self.first:
                both = sum_of_products(self.x1, du.T)
                dw1, db1 = spare_row.split(both, self.destination(1), self.destination(2))
            else:
                if partial is not None:
                    db1 = self.gelu(u, self.b1).sum(partial, self.destination(2))
                else:
                    db1 = column_sums(du, self.destination(2))
                dw1 = weight_gradient(self, 1, *((x, du.T) if self.first else (x.T, du)))
            dw2 = weight_gradient(self, 3, *((dy, g.T) if self.first else (g.T, dy)))
        if self.needs[0]:
            dx = self.product(w1, du) if self.first else self.product(du, w1.T)
            dx = dx.reshape(self.shape)
        return dx, dw1 if self.needs[1] else None, db1 if self.needs[2] else None, dw2

    def backward_in_one(self, dy: Array) -> Gradients:
        dy = dy.copy() if dy.data.ptr % 16 else dy
        dx, g, du = token_mixing.backward(dy, self.u, self.w1, self.w2)  # (n, D) of the last two
        x1 = spare_row.with_ones(self.x)
        with aside(self, (1, 2, 3), self.x, dy, g, du):
            if x1 is not None:
                both = sum_of_products(x1, du)
                dw1, db1 = spare_row.split(both, self.destination(1), self.destination(2))
            else:
                dw1 = weight_gradient(self, 1, self.x, du)
                db1 = column_sums(du, self.destination(2))
            dw2 = weight_gradient(self, 3, dy, g)
        gradients = (dx.reshape(self.shape), dw1, db1, dw2)
        return tuple(d if wanted else None for d, wanted in zip(gradients, self.needs, strict=True))
