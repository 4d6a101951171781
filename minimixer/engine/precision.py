"""How numbers are stored, and what that costs: float64, float32, tf32, bfloat16, float16.

A floating-point number is a sign, an exponent and the digits of a mantissa; its bits are split
between range and digits:

                exponent  mantissa   largest   smallest   rounding error, at most
    float64        11        52      1.8e308    5e-324        1.1e-16
    float32         8        23      3.4e38     1e-45         6.0e-8
    tf32            8        10      3.4e38     1e-41         4.9e-4      of a product's inputs
    bfloat16        8         7      3.4e38     9e-41         3.9e-3
    float16         5        10      65504      6e-8          4.9e-4

A GPU multiplies matrices of two-byte numbers ten times as fast as float32, and moves them in half
the time. Sums of many need more digits than that: so weights and their gradients stay float32, and
each step of an operation on two-byte numbers widens them, computes, and rounds what it stores.

>>> from minimixer.engine.precision import as_dtype, is_half, wide
>>> as_dtype("float16").itemsize, is_half(as_dtype("float16")), wide(as_dtype("float16"))
(2, True, dtype('float32'))
"""

import functools
from typing import Any

import numpy as np

FLOAT_DTYPES = (np.dtype("float32"), np.dtype("float64"))
HALF_DTYPES = ("float16", "bfloat16")  # two bytes: what activations may be stored in
PRECISIONS = ("float32", "tf32", *HALF_DTYPES)


def check_precision(precision: str, device: str) -> np.dtype:
    """The dtype of activations in a precision; ValueError if it can't be used on `device`.

    "float32": everything in the parameters' dtype. "tf32": the same, but matrix products read their
    float32 inputs with 10 bits of mantissa, which a GPU's tensor cores multiply fast. "bfloat16",
    "float16": activations in two bytes; weights, sums and statistics stay float32.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: use {', '.join(PRECISIONS)}")
    needs = {"tf32": 80, "bfloat16": 80}.get(precision, 0)
    if device == "cpu" and precision == "tf32":
        raise ValueError("precision tf32 is a GPU's: on the CPU use float32")
    if device != "cpu" and _compute_capability(device) < needs:
        raise ValueError(
            f"precision {precision} needs a GPU of compute capability 8.0, and {device} has "
            f"{_compute_capability(device) / 10}: use float32 or float16"
        )
    if precision == "bfloat16":
        try:
            import ml_dtypes
        except ModuleNotFoundError:
            raise ValueError("precision bfloat16 needs ml_dtypes: pip install ml_dtypes") from None
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype("float16" if precision == "float16" else "float32")


@functools.cache
def _compute_capability(device: str) -> int:
    import cupy

    return int(cupy.cuda.Device(int(device[5:])).compute_capability)


@functools.cache  # asked hundreds of times a step, and a dtype's name takes a while
def is_half(dtype: np.dtype) -> bool:
    """float16 or bfloat16?"""
    return dtype.itemsize == 2 and dtype.name in HALF_DTYPES


def is_floating(dtype: np.dtype) -> bool:
    """Can numbers of this dtype have gradients? float64, float32 and the two-byte ones."""
    return dtype in FLOAT_DTYPES or is_half(dtype)


@functools.cache
def wide(dtype: np.dtype) -> np.dtype:
    """The dtype to compute in: float32 for what is stored in two bytes, else the same."""
    return FLOAT_DTYPES[0] if is_half(dtype) else dtype


def as_dtype(dtype: Any) -> np.dtype:
    """np.dtype(dtype), where "bfloat16" is known too; TypeError if there is no such dtype,
    ValueError if it is bfloat16 and ml_dtypes is missing."""
    if dtype == "bfloat16":
        return check_precision(dtype, "cpu")
    return np.dtype(dtype).newbyteorder("=")


def widen(array: Any) -> Any:
    """`array` in the dtype to compute in: itself, unless it is stored in two bytes."""
    return array.astype(np.float32) if is_half(array.dtype) else array
