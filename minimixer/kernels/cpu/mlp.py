"""Products, GELU and the MLP again, for NumPy: threads, blocks that stay in the cache, no copies.

functional.py has the derivations. The MLP's parts go side by side (threads.py), each from its
product with w1 to its product with w2; what lies between is done in blocks (blocks.py), in place.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...engine import products
from ...engine.arrays import Array
from ...engine.autograd import Gradients
from ...engine.products import as_rows
from ...nn.functional import _A, _K, _PHI, GELU
from ..fused import MLP
from ..node import Fast
from .blocks import BLOCK, COLUMNS, HALVED, PARTS, PRODUCT, ROWS, SMALL, TINY, parts, staggered
from .reuse import empty
from .threads import aside, blas_on_one_thread, run, turn

# ---- products -----------------------------------------------------------------------------------


def matmul(
    a: Array, b: Array, out: Array | None, accumulate: bool, precision: Any, bias: Array | None
) -> Array:
    """backend.matmul of two matrices."""
    tiny = a.size * b.shape[1] < TINY
    product = products.plain_matmul(a, b, out, accumulate, np.matmul if tiny else multiply)
    if bias is not None:
        product += bias
    return product


def multiply(a: Array, b: Array, out: Array | None = None) -> Array:
    """`a @ b` in parts: of the longest of a's rows, b's columns, and what is summed over."""
    (rows, inner), columns = a.shape, b.shape[1]
    fits = inner == len(b) and (out is None or out.shape == (rows, columns))
    if a.size * columns < PRODUCT or not fits:  # NumPy knows how to say it
        with blas_on_one_thread:
            return np.matmul(a, b, out=out)
    if out is None or np.may_share_memory(out, a) or np.may_share_memory(out, b):
        result = np.empty((rows, columns), dtype=np.result_type(a, b))
    else:
        result = out
    if inner > 4 * max(rows, columns):
        pieces = parts(inner, -(-inner // PARTS))
        sums = [np.empty_like(result) for _ in pieces[1:]]

        def task(i: int) -> None:
            np.matmul(a[:, pieces[i]], b[pieces[i]], out=sums[i - 1] if i else result)
    else:
        sums = []
        by_rows = rows >= columns
        pieces = parts(max(rows, columns), -(-max(rows, columns) // PARTS))

        def task(i: int) -> None:
            if by_rows:
                np.matmul(a[pieces[i]], b, out=result[pieces[i]])
            else:
                np.matmul(a, b[:, pieces[i]], out=result[:, pieces[i]])

    run(task, len(pieces))
    for part in sums:
        result += part
    if out is None or out is result:
        return result
    out[...] = result
    return out


# ---- GELU ---------------------------------------------------------------------------------------

LARGEST_SQUARE = 1e6  # of u: Phi(u) has long been 0 or 1 there; beyond 1e38 there are no numbers


def _gelu_block(u: Array, g: Array, slope: Array | None, approximate: str, scratch: Array) -> None:
    """g = gelu(u) and slope = gelu'(u), which may take u's place. scratch: two arrays like u.

    gelu'(u) = Phi + u Phi' = Phi + g (1 - Phi) (2 k + 6 k a u^2), with g = u Phi, in the tanh form.
    """
    if approximate != "tanh":
        phi, u_phi_slope = _PHI[approximate](u, slope is not None)
        np.multiply(phi, u, out=g)
        if slope is not None and u_phi_slope is not None:
            np.add(phi, u_phi_slope, out=slope)
        return
    square, phi = scratch
    np.multiply(u, u, out=square)
    if not square.max() < LARGEST_SQUARE:  # np.minimum takes as long as five products
        np.minimum(square, LARGEST_SQUARE, out=square)
    np.multiply(square, _K * _A, out=phi)
    phi += _K
    phi *= u
    np.tanh(phi, out=phi)
    phi *= 0.5
    phi += 0.5
    np.multiply(phi, u, out=g)
    if slope is not None:
        square *= 6 * _K * _A
        square += 2 * _K
        np.subtract(1, phi, out=slope)
        slope *= g  # first: 0 where u is large, and no overflow
        slope *= square
        slope += phi


def _gelu(u: Array, bias: Array, g: Array, slope: Array | None, approximate: str) -> None:
    """The same of a C-contiguous matrix u + bias, in blocks of rows. The bias goes along u's rows
    (one row) or along its columns (one column), and is added to u itself."""
    rows, columns = u.shape
    height = min(rows, max(1, BLOCK // columns))
    scratch = np.empty((2, height, columns), dtype=u.dtype)
    if len(bias) == 1:  # written out, it is added twice as fast
        bias = np.broadcast_to(bias, (height, columns)).copy()
    # A square that overflows is caught above.
    with np.errstate(over="ignore"):
        for start in range(0, rows, height):
            block = u[start : start + height]
            block += bias[start : start + height] if len(bias) == rows else bias[: len(block)]
            place = slice(start, start + len(block))
            slopes = None if slope is None else slope[place]
            _gelu_block(block, g[place], slopes, approximate, scratch[:, : len(block)])


class FastGELU(Fast, GELU):
    """In blocks."""

    def suits(self, x: Array, approximate: str) -> bool:
        return x.size >= SMALL

    def forward(self, x: Array, approximate: str) -> Array:
        u = np.ascontiguousarray(x).reshape(-1)
        g, slope = np.empty_like(u), np.empty_like(u) if self.needs[0] else None
        pieces = parts(u.size, BLOCK)
        longest = max(part.stop - part.start for part in pieces)
        scratch = np.empty((2, longest), dtype=u.dtype)
        with np.errstate(over="ignore"):
            for part in pieces:
                block, slopes = u[part], None if slope is None else slope[part]
                _gelu_block(block, g[part], slopes, approximate, scratch[:, : len(block)])
        self.slope: Any = None if slope is None else slope.reshape(x.shape)
        return g.reshape(x.shape)


# ---- the MLP ------------------------------------------------------------------------------------


class FastMLP(Fast, MLP):
    """Along either axis, x is read as a matrix X whose rows go through the MLP one by one. For the
    first axis that is a transposed view, as are U, G and Y, so that BLAS reads and writes rows in
    memory order all the same: "transposed" is but a flag to it.

    Kept for backward: x, and for each part g and gelu'(u). Backward writes du over the latter; a
    second backward makes both again (`du *= dg` is one long operation: it takes no turn). Gradients
    of the weights go aside, where nothing waits for them: one thread multiplies them while another
    does the next LayerNorm.
    """

    rows: Array
    w2: Array
    slope: Any
    all_g: list[Array]
    all_slope: list[Array]

    def suits(self, x: Array, w1: Array, b1: Array, w2: Array, axis: int, approximate: str) -> bool:
        return w1.size > 0 and x.size // len(w1) * len(b1) >= SMALL

    def forward(
        self, x: Array, w1: Array, b1: Array, w2: Array, axis: int, approximate: str
    ) -> Array:
        self.first: bool = axis == 0
        self.shape: tuple[int, ...] = x.shape
        self.approximate = approximate
        x = np.ascontiguousarray(x)
        if self.first:
            self.rows, self.w2 = x.reshape(len(x), math.prod(x.shape[1:])).T, w2.T
            size = max(COLUMNS[0], COLUMNS[1] // w1.shape[1])
        else:
            self.rows, self.w2, size = as_rows(x), w2, ROWS
        self.w1 = w1
        self.b1 = b1
        self.parts: list[slice] = staggered(len(self.rows), size)
        # A single part's products are cut themselves.
        self.product: Any = multiply if len(self.parts) == 1 else np.matmul
        return self.compute(keep=any(self.needs))

    def like(self, rows: int, columns: int) -> Array:
        """A new matrix (rows, columns), transposed in memory for the first axis."""
        dtype = self.rows.dtype
        return empty((columns, rows), dtype).T if self.first else empty((rows, columns), dtype)

    def hidden(self) -> tuple[list[Array], list[Array]]:
        """New matrices for the hidden units of each part; and the same for products over all parts,
        a single one, of which they are rows. For the first axis there is none: its columns are
        contiguous in memory, and a part would be strewn all over it."""
        columns = self.w1.shape[1]
        if self.first:
            pieces = [self.like(part.stop - part.start, columns) for part in self.parts]
            return pieces, pieces
        whole = self.like(len(self.rows), columns)
        return [whole[part] for part in self.parts], [whole]

    def compute(self, keep: bool) -> Array:
        """y; with `keep` also self.slope, by part, and what `hidden` says for g and the slope."""
        y = self.like(*self.rows.shape)
        g, all_g = self.hidden() if keep else ([], [])
        slope, all_slope = self.hidden() if keep else ([], [])
        bias = self.b1[:, None] if self.first else self.b1[None, :]

        def task(i: int) -> None:
            x = self.rows[self.parts[i]]
            # u is replaced by the slope where that is kept, and by g where nothing is.
            u = slope[i] if keep else self.like(len(x), self.w1.shape[1])
            g_i = g[i] if keep else u
            self.product(x, self.w1, out=u)
            in_memory = (u.T, g_i.T) if self.first else (u, g_i)
            with turn if len(self.parts) > 1 else contextlib.nullcontext():
                _gelu(in_memory[0], bias, in_memory[1], in_memory[0] if keep else None,
                      self.approximate)  # fmt: skip
            self.product(g_i, self.w2, out=y[self.parts[i]])

        self.for_each_part(task)
        self.slope, self.all_g, self.all_slope = slope, all_g, all_slope
        return self.as_given(y)

    def for_each_part(self, task: Callable[[int], None]) -> None:
        if len(self.parts) == 1:
            task(0)
        else:
            run(task, len(self.parts))

    def as_given(self, matrix: Array) -> Array:
        return (matrix.T if self.first else matrix).reshape(self.shape)

    def backward(self, dy: Array) -> Gradients:
        if self.slope is None:
            self.compute(keep=True)
        dy = np.ascontiguousarray(dy)
        dy = dy.reshape(len(dy), math.prod(dy.shape[1:])).T if self.first else as_rows(dy)
        du: Array = self.slope
        self.slope = None
        # Tasks that are put aside may run when the node has been released, and `self` is empty.
        x, first, product, all_g, all_du = (
            self.rows, self.first, self.product, self.all_g, self.all_slope)  # fmt: skip
        pieces = self.parts if first else [slice(0, len(x))]

        def add_up_dw2(out: Array, product: Any, hidden: slice) -> None:
            _sum_products(product, all_g, dy, pieces, out.T if first else out, hidden)

        def add_up_dw1(out: Array, product: Any, hidden: slice) -> None:
            _sum_products(product, all_du, x, pieces, out.T, hidden)

        dw2 = self.gradient(3, add_up_dw2, product)
        dx = self.like(*x.shape) if self.needs[0] else None

        def task(i: int) -> None:
            dg = self.like(*du[i].shape)
            product(dy[self.parts[i]], self.w2.T, out=dg)
            du[i] *= dg
            if dx is not None:
                product(du[i], self.w1.T, out=dx[self.parts[i]])

        if any(self.needs[:3]):
            self.for_each_part(task)
        dw1 = self.gradient(1, add_up_dw1, product)
        db1 = self.gradient(2, lambda out, *_: _sum_rows(all_du, out), product)
        return None if dx is None else self.as_given(dx), dw1, db1, dw2

    def gradient(self, position: int, add_up: Any, product: Any) -> Array | None:
        """A weight's gradient: put aside if it has a place to go to, else computed at once, for
        the engine takes it from here. Large ones are cut in two, between hidden units, so that two
        threads can share the last."""
        if not self.needs[position]:
            return None
        out = self.destination(position)
        if out is None:
            weights = self.w1, self.b1, self.w2.T if self.first else self.w2
            weight = weights[position - 1]
            out = np.empty(weight.shape, dtype=self.input_dtype)
            with blas_on_one_thread:
                add_up(out, multiply, slice(None))
            return out
        large = len(self.parts) > 1 and self.rows.size * len(self.b1) >= HALVED
        units = len(self.b1)
        for hidden in parts(units, units // 2) if large and position != 2 else [slice(None)]:
            aside(functools.partial(add_up, out, product, hidden))
        return out


def _sum_products(
    product: Any, left: list[Array], right: Array, pieces: list[slice], out: Array, hidden: slice
) -> None:
    """`out[hidden]`: the sum of all `left[i][:, hidden].T @ right[pieces[i]]`, in this order."""
    out = out[hidden]
    product(left[0][:, hidden].T, right[pieces[0]], out=out)
    more = np.empty_like(out) if len(pieces) > 1 else None  # in memory in the same order
    for i in range(1, len(pieces)):
        product(left[i][:, hidden].T, right[pieces[i]], out=more)
        out += more


def _sum_rows(matrices: list[Array], out: Array) -> None:
    for i, matrix in enumerate(matrices):
        ones = np.ones(len(matrix), dtype=matrix.dtype)
        if i == 0:
            np.matmul(ones, matrix, out=out)
        else:
            out += ones @ matrix
