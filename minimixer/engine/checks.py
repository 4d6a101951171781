"""What is given to layers and optimizers, checked once, where it is given.

>>> from minimixer.engine.checks import check_number
>>> check_number("p", 0.5, 0, 1, "[)")
0.5
>>> check_number("p", float("nan"), 0, 1, "[)")
Traceback (most recent call last):
ValueError: p must be a number in [0, 1), got nan
"""

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from .arrays import Array, namespace


def check_sizes(**sizes: Any) -> None:
    """ValueError, with the name, unless every size is a whole number above zero."""
    for name, size in sizes.items():
        try:
            check_integer(name, size, 1)
        except TypeError as error:
            raise ValueError(str(error)) from None


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as a Python int. TypeError if it is no whole number, ValueError unless it is from
    low to high (None: without end)."""
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    kind = f"a whole number {bounds}"
    number = whole(value, name, kind)
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {kind}, got {number}")
    return number


def check_seed(seed: Any) -> int:
    """As random_bits needs it: 64 bits. TypeError, ValueError as of check_integer."""
    return check_integer("seed", seed, 0, (1 << 64) - 1)


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


def whole(value: Any, what: str, kind: str = "a whole number") -> int:
    """`value` as a Python int; TypeError if it is no whole number, as True is none."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{what} must be {kind}, got {value!r:.60}")


def whole_numbers(values: Iterable[Any], what: str) -> tuple[int, ...]:
    """Each of them as `whole` has it."""
    values = tuple(values)
    return values if {*map(type, values)} == {int} else tuple([whole(v, what) for v in values])


RENAMED = {"dim": "axis", "keepdim": "keepdims", "ddof": "correction", "unbiased": "correction"}


def no_others(unknown: dict[str, Any]) -> None:
    """TypeError, with what to write instead, if anything else was given by name."""
    for name in unknown:
        instead = f"{RENAMED[name]}=" if name in RENAMED else "axis= and keepdims="
        raise TypeError(f"there is no {name}= here: write {instead}")
