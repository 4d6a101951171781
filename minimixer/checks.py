"""What is given to layers and optimizers, checked once, where it is given.

>>> check_number("p", 0.5, 0, 1, "[)")
0.5
>>> check_number("p", float("nan"), 0, 1, "[)")
Traceback (most recent call last):
ValueError: p must be a number in [0, 1), got nan

Next: `loss.py`, the first gradient derived by hand.
"""

import math
from typing import Any

import numpy as np

from .backend import Array, namespace


def check_sizes(**sizes: Any) -> None:
    """ValueError, with the name, unless every size is a whole number above zero."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")


def check_seed(seed: Any) -> int:
    """ValueError unless it is a whole number that 64 bits hold, as random_bits needs it."""
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be a whole number from 0 to 2^64 - 1, got {seed!r:.60}")
    return int(seed)


def all_finite(array: Array, dtype: np.dtype) -> bool:
    """Is every number of `array` one in `dtype`, too: neither NaN nor infinite?"""
    with np.errstate(over="ignore"):
        return bool(namespace(array).isfinite(array.astype(dtype, copy=False)).all())


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, ends: str = "[)"
) -> float:
    """`value` as a Python number, since NumPy's would promote float32 arrays. ValueError unless it
    is one from low to high; `ends`: whether these belong to it, "[" and "]", or not, "(" and ")".
    """
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if (
        not (low <= number <= high)
        or (number, ends[0]) == (low, "(")
        or ((number, ends[1]) == (high, ")"))
    ):
        range_ = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
        raise ValueError(f"{name} must be a number in {range_}, got {value!r:.60}")
    return number
