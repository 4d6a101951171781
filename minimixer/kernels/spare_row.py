"""A bias as one more input that is always one: w1^T x + b1 = [w1; b1]^T [x; 1].

For two-byte numbers cuBLAS can apply GELU to a product before storing it, and can add a bias that
runs along the product's rows first. In token mixing the bias runs along the columns. So x gets one
more row, of ones, and w1 the row b1: then GELU needs no pass of its own, and the product that
gives w1's gradient gives b1's in its last row. It costs nothing where an x is made with room for
that row behind it: `empty` below, which add_layer_norm uses.
"""

import functools
import math
from typing import Any

import numpy as np

from ..backend import Array, namespace


@functools.cache
def _kind() -> Any:
    import cupy

    class Roomy(cupy.ndarray):
        """An array whose last row no one but `with_ones` may read or write."""

    return Roomy


def empty(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """An array with room for one row behind it, if `with_ones` may want it."""
    import cupy

    if dtype.itemsize != 2 or len(shape) < 2:
        return cupy.empty(shape, dtype=dtype)
    roomy = _kind()((shape[0] + 1, *shape[1:]), dtype=dtype)
    return roomy[:-1].view(type=cupy.ndarray)


def with_ones(x: Array) -> Array | None:
    """x (rows, ...) -> (rows + 1, columns), x itself followed by ones; None if it has no room."""
    whole = x.base
    if not isinstance(whole, _kind()) or whole.shape[0] != x.shape[0] + 1:
        return None
    if whole.data.ptr != x.data.ptr or whole.dtype != x.dtype or not x.flags.c_contiguous:
        return None
    columns = math.prod(x.shape[1:])
    if math.prod(whole.shape[1:]) != columns:
        return None
    whole = whole.view(type=namespace(x).ndarray).reshape(-1, columns)
    whole[-1].fill(1)
    return whole


def append(matrix: Array, row: Array) -> Array:
    """(rows, columns) and (columns,) -> (rows + 1, columns)"""
    both = namespace(matrix).empty((len(matrix) + 1, len(row)), dtype=matrix.dtype)
    both[:-1] = matrix
    both[-1] = row
    return both
