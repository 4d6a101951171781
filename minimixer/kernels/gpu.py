"""GELU, the MLP and LayerNorm again, on CUDA kernels: functional.py and layer_norm.py, faster.

Each class here does what the class that it derives from does, with fewer passes over memory; the
`.cu` files say what each kernel computes and moves. Products go to cuBLAS; everything between two
products is one kernel.
"""

import math
from typing import Any

import numpy as np

from ..backend import Array, namespace, wide
from ..functional import GELU, Linear
from ..products import as_rows
from ..rearrange import Mean
from . import cublas, spare_row
from .cuda import (
    as_bool,
    c_name,
    ceil_div,
    get,
    multiprocessors,
    pack,
    pointer,
    resident_blocks,
    type_of,
    usable,
)
from .fused import MLP, AddLayerNorm, LayerNormAlone, bias_gradient
from .node import Fast
from .side import LARGEST, aside
from .sums import can_sum, column_sums, mean_rows, mean_rows_name, sum_columns, sum_rows

THREADS = 128  # in a block, for most kernels here

# ---- linear -------------------------------------------------------------------------------------


class FastLinear(Fast, Linear):
    """The bias is added as the product is stored; gradients of weights go aside."""

    any_dtype = True

    def forward(self, x, weight, bias=None):
        rows = as_rows(x)
        self.shape = x.shape
        self.x = rows if self.needs[1] else None
        self.weight = weight if self.needs[0] else None
        y = cublas.matmul(rows, weight, precision=self.precision, bias=bias)
        return y.reshape(*x.shape[:-1], weight.shape[1])

    def backward(self, dy):
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
    """a @ b, a sum over the whole batch, in float32 even if a and b are shorter; straight to where
    it belongs, if there is such a place."""
    if not node.needs[position]:
        return None
    return sum_of_products(a, b, node.destination(position), node.precision)


def sum_of_products(
    a: Array, b: Array, out: Array | None = None, precision: str | None = None
) -> Array:
    if out is None:
        out = namespace(a).empty((a.shape[0], b.shape[1]), dtype=wide(a.dtype))
    return cublas.matmul(a, b, out=out, precision=precision)


# ---- the mean over the tokens -------------------------------------------------------------------


class FastMean(Fast, Mean):
    """Along the first axis in one kernel, as is the way back."""

    any_dtype = True

    def suits(self, x, axis=None, keepdims=False):
        if not (axis == 0 and not keepdims and x.ndim > 1 and x.size and x.flags.c_contiguous):
            return False
        back = f"divide<{type_of(x)},{c_name(wide(x.dtype))}>"
        return usable("reduce.cu", mean_rows_name(x.reshape(len(x), -1)), back)

    def forward(self, x, axis=None, keepdims=False):
        self.keep_axis(x, axis)
        self.count, self.dtype = len(x), x.dtype
        return mean_rows(x.reshape(len(x), -1)).reshape(x.shape[1:])

    def backward(self, dy):
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
        """g, or written over u with out=u."""
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

    def suits(self, x, approximate):
        return x.size > 0 and self.kernel(x, approximate).usable(backward=self.needs[0])

    def kernel(self, x, approximate):
        u = x if x.flags.c_contiguous else None
        return _Gelu(x, (1, x.size), None, 0, approximate, u)

    def forward(self, x, approximate):
        self.shape, x = x.shape, namespace(x).ascontiguousarray(x)
        self.approximate, self.x = approximate, x if self.needs[0] else None
        return self.kernel(x, approximate).forward(x.reshape(1, -1)).reshape(self.shape)

    def backward(self, dy):
        dx, kernel = dy.copy(order="C"), self.kernel(self.x, self.approximate)
        kernel.backward(self.x.reshape(1, -1), dx.reshape(1, -1), make_g=False)
        return dx.reshape(self.shape)


class FastMLP(Fast, MLP):
    """Keeps x and u (not the slope), and g where it is small.

    Where it can, cuBLAS applies bias and GELU as it stores the product, and in backward the slope
    (token mixing: see spare_row.py). The channel-mixing MLP's g is the largest array of a block:
    backward makes it again from u, over u, in a pass that turns dg into du. For Mixer-B/16 at 256
    images that saves 3.4 of 15.5 GiB for 3% of the step; a small model's g is kept.
    """

    any_dtype = True

    def suits(self, x, w1, b1, w2, axis, approximate):
        if not x.size or not w1.size:
            return False
        rows, units = x.size // x.shape[axis], w1.shape[1]
        self.axis, self.first, self.approximate = axis, axis == 0, approximate
        self.hidden = (units, rows) if self.first else (rows, units)
        self.biased = False
        return self.gelu(x, b1).usable(backward=any(self.needs))

    def forward(self, x, w1, b1, w2, axis, approximate):
        self.shape = x.shape
        xp = namespace(x)
        x, b1 = xp.ascontiguousarray(x), xp.ascontiguousarray(b1)
        x = x.reshape(len(x), math.prod(x.shape[1:])) if self.first else as_rows(x)
        self.x1, keep = None, any(self.needs)
        can_fuse = approximate == "tanh" and cublas.can_fuse(x.dtype)
        both = self.fused(x, w1, b1, keep) if can_fuse else None
        g, u = both or (None, self.make_u(x, w1))
        self.biased = both is not None  # u has the bias in it
        if g is None:
            g = self.gelu(x, b1).forward(u, out=None if keep else u)
        y = self.product(w2, g) if self.first else self.product(g, w2)
        if keep:
            self.x, self.w1, self.b1, self.w2, self.u = x, w1, b1, w2, u
            self.g = g if self.first or g.nbytes <= LARGEST else None
        return y.reshape(self.shape)

    def fused(self, x, w1, b1, keep):
        """(g, u) from one product with GELU, or None."""
        if not self.first:
            return cublas.matmul_gelu(x, w1, b1, keep)
        x1 = spare_row.with_ones(x)
        if x1 is None:
            return None
        both = cublas.matmul_gelu(spare_row.append(w1, b1).T, x1, None, keep)
        self.x1 = x1 if both and keep else None
        return both

    def product(self, a, b):
        return cublas.matmul(a, b, precision=self.precision)

    def make_u(self, x, w1):
        return self.product(w1.T, x) if self.first else self.product(x, w1)

    def gelu(self, x, b1):
        bias = None if self.biased else b1
        return _Gelu(x, self.hidden, bias, self.axis, self.approximate)

    def backward(self, dy):
        dy = namespace(dy).ascontiguousarray(dy)
        dy = dy.reshape(len(dy), math.prod(dy.shape[1:])) if self.first else as_rows(dy)
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
                g, self.u = u, None
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


# ---- LayerNorm ----------------------------------------------------------------------------------

ROWS_A_WARP = 4  # at least, in backward: each block's sums are one row more to add up at the end
IN_REGISTERS = 40  # numbers of a row that a thread can keep; longer rows are read again


def _row_template(channels: int, *arrays: Array | None) -> str | None:
    """ "T,W,C" for the kernels that keep a row in registers, or None if they can't. Arrays that are
    not contiguous will be copied, to where a pack may start."""
    given = [a for a in arrays if a is not None]
    width = pack(channels, given[0].dtype, *[a for a in given if a.flags.c_contiguous])
    dtype = given[0].dtype
    if width * dtype.itemsize != 16 or channels > 32 * IN_REGISTERS:
        return None
    while width > 1 and 16 * width >= channels:
        width //= 2  # a short row keeps all threads of a warp busy with shorter packs
    return f"{c_name(dtype)},{width},{channels}"


class FastAddLayerNorm(Fast, AddLayerNorm):
    """Keeps s, which is alive as an output anyway, with the mean and 1 / sigma of each row."""

    any_dtype = True

    def suits(self, x, y, bias, gamma, beta, epsilon, bias_axis):
        if not x.size:
            return False
        self.bias_axis = bias_axis = -1 if x.ndim == 1 else bias_axis  # which has one axis only
        columns_bias = bias if bias_axis == -1 else None  # which is read in packs
        self.template = template = _row_template(x.shape[-1], x, y, columns_bias, gamma, beta)
        self.name = (
            f"add_layer_norm<{template}>" if template else f"add_layer_norm_any<{type_of(x)}>"
        )
        names = [self.name]
        if template and any(self.needs):
            column_bias = as_bool(self.needs[2] and bias_axis == -1)
            names.append(f"add_layer_norm_backward<{template},{column_bias}>")
        return usable("layer_norm.cu", *names) and can_sum(x.dtype)

    def forward(self, x, y, bias, gamma, beta, epsilon, bias_axis):
        bias_axis, template, name = self.bias_axis, self.template, self.name
        xp = namespace(x)
        channels, rows = x.shape[-1], x.size // x.shape[-1]
        x, gamma, beta = map(xp.ascontiguousarray, (x, gamma, beta))
        y = None if y is None else xp.ascontiguousarray(y)
        bias = None if bias is None else xp.ascontiguousarray(bias)
        s = x if y is None and bias is None else xp.empty_like(x)
        # What follows is token mixing, unless the bias says that token mixing went before.
        wanted = x.ndim > 2 and bias_axis != 0 and cublas.can_fuse(x.dtype)
        ones = rows // x.shape[0] if wanted else 0
        h = spare_row.empty(x.shape, x.dtype) if ones else xp.empty_like(x)
        mean, inverse_sigma = xp.empty((2, rows), dtype=wide(x.dtype))
        kernel = get("layer_norm.cu", name)
        bias_rows = rows // x.shape[0] if bias_axis == 0 else 0
        kernel((ceil_div(rows + ones, 4),), (THREADS,), (
            x, pointer(y), pointer(bias), bias_rows, gamma, beta, epsilon, rows, ones,
            *([] if template else [np.int32(channels)]), s, h, mean, inverse_sigma,
        ))  # fmt: skip
        if any(self.needs):
            self.s, self.mean, self.inverse_sigma, self.gamma = s, mean, inverse_sigma, gamma
        return s, h

    def backward(self, ds, dh):
        if dh is None:
            dbias = bias_gradient(ds, self.bias_axis) if self.needs[2] else None
            dx, dy = (ds if need else None for need in self.needs[:2])
            return dx, dy, dbias, None, None
        s, mean, inverse_sigma, gamma = self.s, self.mean, self.inverse_sigma, self.gamma
        xp = namespace(s)
        channels, rows = s.shape[-1], s.size // s.shape[-1]
        repeated = dh.ndim > 1 and dh.strides[0] == 0 and dh[0].flags.c_contiguous
        dh = dh[0] if repeated else xp.ascontiguousarray(dh)
        dh_rows = dh.size // channels
        ds = None if ds is None else xp.ascontiguousarray(ds)
        dx = xp.empty_like(s)
        column_bias = self.needs[2] and self.bias_axis == -1
        row_bias = self.needs[2] and self.bias_axis == 0
        row_sums = xp.empty(rows, dtype=mean.dtype) if row_bias else None
        template = _row_template(channels, dh, ds, s, gamma)
        common = (dh, dh_rows, pointer(ds), s, mean, inverse_sigma, gamma, rows)
        if template:
            sums = 3 if column_bias else 2
            name = f"add_layer_norm_backward<{template},{as_bool(column_bias)}>"
            kernel = get("layer_norm.cu", name)
            warps = ceil_div(rows, ROWS_A_WARP)
            blocks = min(ceil_div(warps, 4), resident_blocks(kernel, THREADS, s.device.id))
            partial = xp.empty((blocks, sums, channels), dtype=mean.dtype)
            kernel((blocks,), (THREADS,), (*common, dx, partial, pointer(row_sums)),
                   shared_mem=sums * channels * mean.itemsize)  # fmt: skip
        else:
            kernel = get("layer_norm.cu", f"add_layer_norm_backward_any<{type_of(s)}>")
            kernel((ceil_div(rows, 4),), (THREADS,), (
                *common, np.int32(channels), dx, pointer(row_sums),
            ))  # fmt: skip
            kernel = get("layer_norm.cu", f"add_layer_norm_sums_any<{type_of(s)}>")
            per_block = max(64, ceil_div(rows, 65535))
            stretches = ceil_div(rows, per_block)
            partial = xp.empty((stretches, 3, channels), dtype=mean.dtype)
            kernel((ceil_div(channels, THREADS), stretches), (THREADS,), (
                dh, dh_rows, dx, s, mean, inverse_sigma, rows, np.int32(channels),
                np.int32(per_block), partial,
            ))  # fmt: skip
        results = [dx if self.needs[0] else None, dx if self.needs[1] else None, None, None, None]
        with aside(self, (2, 3, 4), partial, row_sums):
            if row_bias:
                row_sums = row_sums.reshape(s.shape[0], -1)
                results[2] = sum_columns(row_sums, out=self.destination(2))
            for position in (3, 4, 2) if column_bias else (3, 4):
                if self.needs[position]:
                    place = self.destination(position)
                    empty = xp.empty(channels, dtype=mean.dtype) if place is None else place
                    results[position] = empty
            sum_rows(partial, results[3], results[4], results[2] if column_bias else None)
        return tuple(results)


class FastLayerNorm(LayerNormAlone):
    form, any_dtype = FastAddLayerNorm, True
