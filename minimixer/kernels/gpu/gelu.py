"""GELU on CUDA kernels: alone, or with an MLP's bias before it and in one pass with its sums."""

from typing import Any

import numpy as np

from ...engine.arrays import Array, namespace
from ...engine.precision import wide
from ...nn.functional import GELU
from ..node import Fast
from .cuda import as_bool, ceil_div, get, multiprocessors, pointer, type_of, usable
from .sums import can_sum, sum_columns, sum_rows

THREADS = 128  # in a block, for kernels in columns


class GeluKernel:
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
        if backward:
            return f"{name}_backward<{self.options},{as_bool(make_g)}>"
        return f"{name}<{self.options}>"

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
        return GeluKernel(x, (1, x.size), None, 0, approximate, u)

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
