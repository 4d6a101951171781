"""The one matrix product, and what is made of it. All products here go through `matmul`.

A product's time is in its shape: the same number of multiplications takes several times as long
with short rows as with long ones. So arrays of any shape are looked at as matrices, which moves
nothing in memory, and sums over many rows are products too.

>>> import numpy as np
>>> from minimixer.engine.products import matmul, sum_rows
>>> x = np.arange(6.0).reshape(3, 2)
>>> matmul(x.T, x)
array([[20., 26.],
       [26., 35.]])
>>> sum_rows(x)
array([6., 9.])
"""

import math

import numpy as np

from . import forms
from .arrays import Array, namespace
from .precision import FLOAT_DTYPES, wide
from .two_bytes import plain_matmul


def matmul(
    a: Array,
    b: Array,
    out: Array | None = None,
    accumulate: bool = False,
    precision: str | None = None,
    bias: Array | None = None,
) -> Array:
    """`a` (..., m, k) @ `b` (..., k, n) -> (..., m, n).

    `out` receives the result; with `accumulate` the product is added to what `out` holds. Two-byte
    numbers are multiplied and summed in float32, and rounded to `out`'s dtype, or to a's.
    `precision` "tf32" lets a GPU read float32 inputs with 10 bits of mantissa. `bias` (n,) is added
    to each row of the result.
    """
    fast = forms.table.get("matmul" if a.ndim == b.ndim == 2 else "matmuls")
    if fast is not None and (form := fast.get(namespace(a).__name__)) is not None:
        if accumulate and out is None:
            raise ValueError("matmul: accumulate=True adds to `out`, but no `out` was given")
        if a.ndim == b.ndim == 2 or (out is None and bias is None):
            return form(a, b, out, accumulate, precision, bias)
    multiply = np.matmul if type(a) is np.ndarray else namespace(a).matmul
    if out is None and bias is None and a.dtype == b.dtype and a.dtype in FLOAT_DTYPES:
        return multiply(a, b)
    product = plain_matmul(a, b, out, accumulate, multiply)
    if bias is not None:
        product += bias
    return product


def sum_rows(matrix: Array) -> Array:
    """(m, n) -> (n,): the sum over rows, as ones @ matrix; of two-byte numbers in float32.

    On the CPU a product streams through wide rows several times faster than .sum(axis=0).
    """
    xp = np if type(matrix) is np.ndarray else namespace(matrix)
    ones = xp.ones((1, matrix.shape[0]), dtype=matrix.dtype)
    out = None
    if matrix.dtype.itemsize == 2:
        out = xp.empty((1, matrix.shape[1]), dtype=wide(matrix.dtype))
    return matmul(ones, matrix, out=out)[0]


def row_means(matrix: Array) -> Array:
    """(m, n) -> (m, 1): the mean of each row, as a product too."""
    xp, n = np if type(matrix) is np.ndarray else namespace(matrix), matrix.shape[1]
    return matmul(matrix, xp.full((n, 1), 1 / n, dtype=matrix.dtype))


def as_rows(x: Array) -> Array:
    """(..., n) as a matrix of rows of length n, also if there are none or n is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def as_columns(x: Array) -> Array:
    """(n, ...) as a matrix of n rows, also if there are none or they are empty."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def add_at(target: Array, positions: Array, values: Array) -> None:
    """target[positions] += values for flat arrays, adding every value where positions repeat.

    In a fixed order: on the GPU in rounds, each of which meets a position at most once, since
    atomic additions would give other bits on every run.
    """
    xp = namespace(target)
    if xp is np:
        np.add.at(target, positions, values)
        return
    order = xp.argsort(positions)  # CuPy's is stable
    positions, values = positions[order], values[order]
    first = xp.searchsorted(positions, positions, side="left")
    occurrence = xp.arange(len(positions)) - first
    for number in range(int(occurrence.max()) + 1 if len(positions) else 0):
        chosen = occurrence == number
        target[positions[chosen]] += values[chosen]
