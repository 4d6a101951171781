"""Sums on the GPU in a fixed order, never by atomic additions: the same bits on every run."""

import numpy as np

from ...engine.arrays import Array, namespace
from ...engine.precision import is_half, wide
from ...engine.products import sum_rows as plain_sum_rows
from .cuda import c_name, ceil_div, get, multiprocessors, pack, pointer, type_of, usable
from .side import LARGEST

BLOCKS = 512  # of 1024 threads: two at a time on each of an H100's multiprocessors, twice


def sum_rows(matrix: Array, *outs: Array | None) -> None:
    """(rows, parts, columns) -> into `outs`, at most three arrays (columns,), one for each part."""
    rows, parts, columns = matrix.shape
    kernel = get("reduce.cu", f"sum_rows<{type_of(matrix)}>")
    outs = (*map(pointer, outs), 0, 0)[:3]
    kernel((ceil_div(columns, 32), parts), (32, 32), (matrix, *outs, rows, columns))


def sum_columns(matrix: Array, scale: float = 1.0, out: Array | None = None) -> Array:
    """(rows, columns) -> (rows,), times `scale`"""
    rows, columns = matrix.shape
    sums = namespace(matrix).empty(rows, dtype=matrix.dtype) if out is None else out
    kernel = get("reduce.cu", f"sum_columns<{type_of(matrix)}>")
    kernel((rows,), (256,), (matrix, sums, columns, float(scale)))
    return sums


def column_sums(matrix: Array, out: Array | None) -> Array:
    """(rows, columns) -> (columns,), in `out` if given; of two-byte numbers in float32."""
    columns, dtype, half = matrix.shape[1], wide(matrix.dtype), is_half(matrix.dtype)
    large = half and matrix.nbytes > LARGEST  # a product reads two bytes faster
    if large or not can_sum(dtype) or (half and not usable("reduce.cu", _stretches_name(matrix))):
        sums = plain_sum_rows(matrix)
        if out is None:
            return sums
        out[...] = sums
        return out
    out = namespace(matrix).empty(columns, dtype=dtype) if out is None else out
    parts = _sum_stretches(matrix) if half else _sum_groups(matrix)
    sum_rows(parts[:, None], out)
    return out


def _sum_groups(matrix: Array) -> Array:
    """(rows, columns) -> (groups, columns): a long matrix's rows are added up in groups, side by
    side, as many as fill the GPU (a block adds up 32 columns) and divide the rows."""
    rows, columns = matrix.shape
    side = rows & -rows
    while side > 1 and (side * columns > BLOCKS * 32 or rows < 32 * side):
        side //= 2
    if side == 1:
        return matrix
    groups = namespace(matrix).empty((side, columns), dtype=matrix.dtype)
    sum_rows(matrix.reshape(rows // side, 1, side * columns), groups.reshape(-1))
    return groups


def _sum_stretches(matrix: Array) -> Array:
    """(rows, columns) -> (stretches, columns), as many as fill the GPU, in float32."""
    rows, columns = matrix.shape
    wide_blocks = ceil_div(columns, 32 * pack(columns, matrix.dtype, matrix))
    most = ceil_div(multiprocessors(matrix.device.id), wide_blocks)
    stretches = max(1, min(most, rows // 64))
    sums = namespace(matrix).empty((stretches, columns), dtype=wide(matrix.dtype))
    kernel = get("reduce.cu", _stretches_name(matrix))
    kernel((wide_blocks, stretches), (32, 8), (matrix, sums, rows, columns))
    return sums


def _stretches_name(matrix: Array) -> str:
    width = pack(matrix.shape[1], matrix.dtype, matrix)
    return f"sum_stretches<{type_of(matrix)},{c_name(wide(matrix.dtype))},{width}>"


def mean_rows(matrix: Array) -> Array:
    """(rows, columns) -> (columns,), of two-byte numbers in float32."""
    rows, columns = matrix.shape
    means = namespace(matrix).empty(columns, dtype=wide(matrix.dtype))
    grid = (ceil_div(columns, 128 * _width(matrix)),)
    get("reduce.cu", mean_rows_name(matrix))(grid, (128,), (matrix, means, rows, columns))
    return means


def mean_rows_name(matrix: Array) -> str:
    """The kernel that mean_rows uses."""
    return f"mean_rows<{type_of(matrix)},{c_name(wide(matrix.dtype))},{_width(matrix)}>"


def _width(matrix: Array) -> int:
    return min(2, pack(matrix.shape[1], matrix.dtype, matrix))  # a short loop wants many threads


def can_sum(dtype: np.dtype) -> bool:
    """Are there kernels for the sums that backward begins, over such numbers?"""
    name = c_name(wide(dtype))
    return usable("reduce.cu", f"sum_rows<{name}>", f"sum_columns<{name}>")


class GradientNorm:
    """From the sums of squares in float64, where those of float32 numbers neither overflow nor
    vanish."""

    @staticmethod
    def suits(arrays: list[Array]) -> bool:
        if namespace(arrays[0]) is np:
            return False
        names = [_squares_name(array) for array in arrays]
        return usable("reduce.cu", *names, "sum_columns<double>")

    @staticmethod
    def run(arrays: list[Array]) -> Array:
        xp, dtype = namespace(arrays[0]), arrays[0].dtype
        return xp.sqrt(sum(map(sum_squares, arrays))).astype(dtype).reshape(())


def sum_squares(values: Array) -> Array:
    """The sum of squares of a flat float32 or float64 array: (1,), in float64."""
    blocks = 4 * multiprocessors(values.device.id)
    sums = namespace(values).empty((1, blocks), dtype=np.float64)
    kernel = get("reduce.cu", _squares_name(values))
    kernel((blocks,), (512,), (values, values.size, sums))
    return sum_columns(sums)


def _squares_name(values: Array) -> str:
    return f"sum_squares<{type_of(values)},{pack(values.size, values.dtype, values)}>"
