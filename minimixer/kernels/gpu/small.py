"""Products of float32 and float64 that are too small for cuBLAS, as of a classifier's head."""

import numpy as np

from ...engine.arrays import Array
from .cuda import ceil_div, get, pointer, type_of, usable

MOST = 1 << 18  # multiplications of numbers: a kernel takes 3 us, where cuBLAS's take 5 to 15
LONGEST = 2048  # sum
EACH = 8  # numbers that a thread adds up, at most, unless more than a warp's 32 would share a sum


def suits(a: Array, b: Array, out: Array, bias: Array | None) -> bool:
    """Can it do this product, and does it pay?"""
    given = (a, b) if bias is None else (a, b, bias)
    return (
        0 < out.size * a.shape[1] <= MOST
        and a.shape[1] <= LONGEST
        and out.dtype in (np.float32, np.float64)
        and out.flags.c_contiguous
        and all(x.dtype == out.dtype for x in given)
        and (bias is None or bias.flags.c_contiguous)
        and usable("small.cu", f"multiply_small<{type_of(out)}>")
    )


def matmul(a: Array, b: Array, out: Array, accumulate: bool, bias: Array | None) -> None:
    """As cublas.matmul, of what it suits, into `out`."""
    (m, k), n = a.shape, b.shape[1]
    threads = min(32, 1 << (ceil_div(k, EACH) - 1).bit_length())
    strides = [stride // x.itemsize for x in (a, b) for stride in x.strides]
    sizes = map(np.int32, (m, k, n, threads, accumulate))
    kernel = get("small.cu", f"multiply_small<{type_of(out)}>")
    blocks = ceil_div(m * n * threads, 128)
    kernel((blocks,), (128,), (a, b, pointer(bias), out, *sizes, *strides))
