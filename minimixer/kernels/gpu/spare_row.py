"""A bias as one more input that is always one: w1^T x + b1 = [w1; b1]^T [x; 1].

cuBLAS can apply GELU to a product before storing it, and can add a bias that runs along the
product's rows first. In token mixing the bias runs along the columns. So x gets one more row, of
ones, and w1 the row b1: then GELU needs no pass of its own, and the product that gives w1's
gradient gives b1's in its last row. It costs next to nothing where x is made with that row behind
it: add_layer_norm takes its memory from `empty` and writes the ones.
"""

import functools
import math
from typing import Any

import numpy as np

from ...engine.arrays import Array, namespace
from .cuda import ceil_div, get, type_of, usable


@functools.cache
def _kind() -> Any:
    import cupy

    class Roomy(cupy.ndarray):
        """An array whose last row holds ones, if `whole` finds it."""

    return Roomy


def empty(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """An array with room for one row behind it, where whoever made it has to write ones."""
    import cupy

    roomy = _kind()((shape[0] + 1, *shape[1:]), dtype=dtype)
    return roomy[:-1].view(type=cupy.ndarray)


def with_ones(x: Array) -> Array | None:
    """x (rows, ...) -> (rows + 1, columns), x itself and the ones behind it; None if there are
    none."""
    whole = x.base
    if not isinstance(whole, _kind()) or whole.shape[0] != x.shape[0] + 1:
        return None
    if whole.data.ptr != x.data.ptr or whole.dtype != x.dtype or not x.flags.c_contiguous:
        return None
    columns = math.prod(x.shape[1:])
    if math.prod(whole.shape[1:]) != columns:
        return None
    return whole.view(type=namespace(x).ndarray).reshape(-1, columns)


def append(matrix: Array, row: Array) -> Array:
    """(rows, columns) and (columns,) -> (rows + 1, columns)"""
    both = namespace(matrix).empty((len(matrix) + 1, len(row)), dtype=matrix.dtype)
    if not usable("spare_row.cu", f"append_row<{type_of(both)}>"):
        both[:-1], both[-1] = matrix, row
        return both
    kernel = get("spare_row.cu", f"append_row<{type_of(both)}>")
    kernel((ceil_div(both.size, 256),), (256,), (matrix, row, both, matrix.size, len(row)))
    return both


def split(both: Array, matrix: Array | None, row: Array | None) -> tuple[Array, Array]:
    """The reverse, into the given arrays."""
    kind = f"split_row<{type_of(both)}>"
    if matrix is None or row is None or not usable("spare_row.cu", kind):
        return both[:-1], both[-1]
    kernel = get("spare_row.cu", kind)
    kernel((ceil_div(both.size, 256),), (256,), (both, matrix, row, matrix.size, len(row)))
    return matrix, row
