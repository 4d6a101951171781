"""Matrix products straight from cuBLAS, which can do more than `cupy.matmul` asks of it:

float32 results of two-byte inputs, adding to what is there, TF32 for one product and not for the
next, bias and GELU applied before the result is stored, and being recorded into a CUDA graph, which
products of many matrices are too.

cuBLAS stores matrices by columns, NumPy by rows. A row-major matrix read by columns is its
transpose, so from `C^T = B^T A^T` it is given B and A in that order and writes C as we store it;
transposed views need no copy either.
"""

import ctypes
import math

import numpy as np

from ...engine.arrays import Array
from ...engine.products import as_rows
from .. import chosen
from . import small
from .plans import (
    AUX,
    BIAS,
    PLAIN,
    WITH_AUX,
    WITH_BIAS,
    WITH_GELU,
    WITH_SLOPE,
    WORTH_TIMING,
    Plan,
    choices,
    context,
    remember,
)


def matmul(
    a: Array, b: Array, out: Array | None = None, accumulate: bool = False,
    precision: str | None = None, bias: Array | None = None,
) -> Array:  # fmt: skip
    """backend.matmul for two matrices."""
    (m, k), (k_of_b, n) = a.shape, b.shape
    if k != k_of_b:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: the inner lengths differ")
    if out is None:
        out = _empty((m, n), a.dtype)
    elif out.shape != (m, n):
        raise ValueError(f"matmul: `out` is {out.shape}, the product {(m, n)}")
    if small.suits(a, b, out, bias):
        small.matmul(a, b, out, accumulate, bias)
        return out
    if bias is not None:
        inside = not accumulate and bias.dtype == out.dtype and bias.data.ptr % 16 == 0
        inside = inside and bias.flags.c_contiguous
        if inside and _product(a, b, out, False, precision, WITH_BIAS, bias, None):
            return out
    if not _product(a, b, out, accumulate, precision, PLAIN, None, None):
        _plainly(a, b, out, accumulate)
    if bias is not None:
        out += bias
    return out


def matmuls(
    a: Array, b: Array, out: None = None, accumulate: bool = False, precision: str | None = None,
    bias: None = None,
) -> Array:  # fmt: skip
    """backend.matmul for many matrices, leading axes broadcast, in one call; without `out` and
    `bias`. Matrices that do not lie evenly apart are copied first."""
    import cupy

    if b.ndim == 2:
        rows = matmul(as_rows(a), b, precision=precision)
        return rows.reshape(*a.shape[:-1], b.shape[1])
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: the inner lengths differ")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    product, count = cupy.empty((*lead, a.shape[-2], b.shape[-1]), dtype=a.dtype), math.prod(lead)
    first, second, result = (
        cupy.broadcast_to(x, lead + x.shape[-2:]).reshape(count, *x.shape[-2:])
        for x in (a, b, product)
    )  # views where they can be
    if not _product(first, second, result, False, precision, PLAIN, None, None):
        _plainly(a, b, product, False)
    return product


def matmul_gelu(
    a: Array, b: Array, bias: Array | None, keep_u: bool
) -> tuple[Array, Array | None] | None:
    """(gelu(u), u) for u = a b + bias (columns,), GELU in the tanh form; u only if wanted.

    None if cuBLAS can't.
    """
    shape = (a.shape[0], b.shape[1])
    if shape[1] % 8 or (bias is not None and bias.data.ptr % 16):
        return None
    g = _empty(shape, a.dtype)
    u = _empty(shape, a.dtype) if keep_u else None
    epilogue = WITH_GELU | (WITH_BIAS if bias is not None else 0) | (WITH_AUX if keep_u else 0)
    return (g, u) if _product(a, b, g, False, None, epilogue, bias, u) else None


def matmul_slope(a: Array, b: Array, u: Array) -> Array | None:
    """`a @ b` times gelu'(u), GELU in the tanh form. None if cuBLAS can't."""
    if u.shape[1] % 8 or u.data.ptr % 16:
        return None
    out = _empty(u.shape, a.dtype)
    return out if _product(a, b, out, False, None, WITH_SLOPE | WITH_AUX, None, u) else None


def can_fuse(dtype: np.dtype) -> bool:
    """Does GELU in a product pay? Its tanh is the hardware's, right to 11 bits, and for float32
    cuBLAS runs a kernel of its own after the product."""
    return dtype.itemsize == 2


def _empty(shape: tuple[int, int], dtype: np.dtype) -> Array:
    import cupy

    return cupy.empty(shape, dtype=dtype)


def _product(a, b, out, accumulate, precision, epilogue, bias, aux) -> bool:
    """`out = a @ b`, of two matrices or of two stacks of as many; False if cuBLAS has no kernel for
    it."""
    import cupy

    (m, k), n = a.shape[-2:], b.shape[-1]
    dtype, out_dtype = a.dtype, out.dtype
    if not out.size * k or b.dtype != dtype or not out.flags.c_contiguous:
        return False
    if out_dtype != dtype and not (dtype.itemsize == 2 and out_dtype == np.float32):
        return False
    a, *layout_a = _layout(a)
    b, *layout_b = _layout(b)
    tf32 = precision == "tf32" and dtype == np.float32
    addresses = a.data.ptr | b.data.ptr | out.data.ptr | 256
    stack: tuple[int, ...] = ()
    if out.ndim == 3:
        stack = len(out), a.strides[0] // a.itemsize, b.strides[0] // b.itemsize
        addresses |= a.strides[0] | b.strides[0] | out.strides[0]  # where the others begin
    alignment = addresses & -addresses  # the largest power of two that divides them all, up to 256
    kind = (m, k, n, *layout_a, *layout_b, dtype, out_dtype, tf32, epilogue, alignment, *stack)
    device = out.device.id
    stream = cupy.cuda.get_current_stream().ptr
    timing = chosen() != "untimed"  # once, as another thread may choose
    place = device, timing, kind
    plan = context.plans.get(place)
    new = final = plan is None
    if plan is None:
        plan = Plan(device, *kind)
    if not plan.found:
        context.plans[place] = plan
        return False
    if bias is not None:
        plan.set(BIAS, ctypes.c_uint64(bias.data.ptr))
    if aux is not None:
        plan.set(AUX, ctypes.c_uint64(aux.data.ptr))
    if new and timing and plan.found > 1 and out.size * k >= WORTH_TIMING:
        key = " ".join(map(str, kind))
        choice = choices(device)[1].get(key)
        if choice is not None:
            plan.chosen = min(choice, plan.found - 1)
        elif not cupy.cuda.get_current_stream().is_capturing():
            plan.choose(a, b, out.copy() if accumulate else out)
            plan.chosen = min(remember(device, key, plan.chosen), plan.found - 1)
        else:  # nothing can be timed now: take cuBLAS's first, and choose when it comes again
            final = False
    if final:
        context.plans[place] = plan
    space = context.workspace(device, stream, plan.workspace)
    status = plan.run(a, b, out, accumulate, stream, space)
    if status != 0:
        raise RuntimeError(f"cublasLtMatmul {a.shape} @ {b.shape} in {dtype}: status {status}")
    return True


def _layout(matrix: Array) -> tuple[Array, int, int]:
    """(matrix, whether cuBLAS must transpose it, distance between rows or columns): a copy only if
    neither its rows nor its columns are contiguous, or if a stack of matrices goes backwards."""
    rows, columns = matrix.shape[-2:]
    if matrix.ndim == 3 and matrix.strides[0] < 0:
        return matrix.copy(order="C"), 0, columns
    size = matrix.dtype.itemsize
    down, right = matrix.strides[-2] // size, matrix.strides[-1] // size
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return matrix, 0, max(down if rows > 1 else columns, columns)
    if (down == 1 or rows == 1) and (right >= rows or columns == 1):
        return matrix, 1, max(right if columns > 1 else rows, rows)
    return matrix.copy(order="C"), 0, columns


def _plainly(a: Array, b: Array, out: Array, accumulate: bool) -> None:
    """What cuBLAS has no kernel for: nothing to multiply, mixed dtypes, `out` with gaps."""
    import cupy

    dtype = np.float64 if "float64" in (a.dtype.name, out.dtype.name) else np.float32
    product = cupy.matmul(a.astype(dtype), b.astype(dtype))
    if accumulate:
        product += out
    out[...] = product.astype(out.dtype)
