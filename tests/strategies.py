"""What the tests draw: shapes, axes, dtypes, memory layouts and values; and the plain functions.

Hypothesis draws shapes, choices and a seed; the numbers come from NumPy's generator. A failing
example so shrinks to a small shape in moments, instead of number by number. The values of a
domain keep away from where an operation has a kink, a pole or a tie.
"""

import contextlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from minimixer.backend import Array, namespace
from support.kernels import using

# ---- shapes, axes, choices ----------------------------------------------------------------------

dtypes = st.sampled_from(["float32", "float64"])
_ml_dtypes = find_spec("ml_dtypes") is not None
_no_bfloat16 = pytest.mark.skipif(not _ml_dtypes, reason="ml_dtypes is missing")
HALVES = ["float16", *["bfloat16"] * _ml_dtypes]
each_half = pytest.mark.parametrize(
    "dtype", ["float16", pytest.param("bfloat16", marks=_no_bfloat16)]
)
seeds = st.integers(0, 2**32 - 1)


LIMITS = {"min_dims": 0, "max_dims": 3, "min_side": 0, "max_side": 4}


def shapes(**limits: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st_numpy.array_shapes(**LIMITS | limits)


def broadcast_shapes(number: int, **limits: int) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    """`number` shapes that broadcast against each other: axes missing, of length 1 and of 0."""
    several = st_numpy.mutually_broadcastable_shapes(num_shapes=number, **LIMITS | limits)
    return several.map(lambda drawn: drawn.input_shapes)


def axes(ndim: int) -> st.SearchStrategy[int | tuple[int, ...] | None]:
    """What a reduction takes: None, one axis from either end, or a tuple of them, maybe empty."""
    several = st_numpy.valid_tuple_axes(ndim)
    return st.none() | several if ndim == 0 else st.none() | one_axis(ndim) | several


def one_axis(ndim: int) -> st.SearchStrategy[int]:
    return st.integers(-ndim, ndim - 1)


def permutations(ndim: int) -> st.SearchStrategy[tuple[int, ...]]:
    """An order of the axes, each counted from the front or from the back."""
    signs = st.tuples(*[st.booleans()] * ndim)
    return st.tuples(st.permutations(range(ndim)), signs).map(
        lambda drawn: tuple(i - ndim if negative else i for i, negative in zip(*drawn, strict=True))
    )


# ---- values -------------------------------------------------------------------------------------

Random = np.random.Generator


def normal(random: Random, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(random.standard_normal(shape))


def positive(random: Random, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(random.uniform(0.5, 2.0, shape))


def nonzero(random: Random, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(positive(random, shape) * random.choice([-1.0, 1.0], shape))


def distinct(random: Random, shape: tuple[int, ...]) -> np.ndarray:
    """No two closer than 0.1, so that a small step does not change which is the largest."""
    size = int(np.prod(shape))
    return np.asarray((random.permutation(size) - size / 2).reshape(shape) * 0.11)


def lattice(random: Random, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 0.27; with `between`, never nearer than half of that."""
    return np.asarray(np.round(random.standard_normal(shape) * 4) * 0.27)


def between(random: Random, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(lattice(random, shape) + 0.135)


# ---- memory layouts -----------------------------------------------------------------------------

LAYOUTS = ("contiguous", "transposed", "strided", "reversed", "loose", "swapped", "read-only")
layouts = st.sampled_from(LAYOUTS)


def with_layout(array: Array, layout: str) -> Array:
    """The same numbers laid out otherwise in memory; what lies between them is NaN."""
    xp = namespace(array)
    if layout == "transposed":
        return array.T.copy().T
    if layout == "strided":
        around = xp.full([2 * n for n in array.shape], np.nan, dtype=array.dtype)
        view = around[(..., *[slice(None, None, 2)] * array.ndim)]
        view[...] = array
        return view
    if layout == "reversed":
        backwards = (..., *[slice(None, None, -1)] * array.ndim)
        return array[backwards].copy()[backwards]
    if layout == "loose":  # contiguous all the same: nobody takes a stride along a length of 1
        array = array.copy(order="C")
        strides = [1040 if n == 1 else s for n, s in zip(array.shape, array.strides, strict=True)]
        return xp.lib.stride_tricks.as_strided(array, array.shape, strides)
    if layout == "swapped" and xp is np:  # as in files of another machine
        return array.astype(array.dtype.newbyteorder("S"))
    array = array.copy()
    if layout == "read-only" and xp is np:
        array.flags.writeable = False
    return array


def same_memory(a: Array, b: Array) -> bool:
    """Whether the two share bytes; on the GPU, whether their ranges of addresses meet."""
    if a.size == 0 or b.size == 0 or namespace(a) is not namespace(b):
        return False
    if namespace(a) is np:
        return np.shares_memory(a, b)
    (a_low, a_high), (b_low, b_high) = _addresses(a), _addresses(b)
    return a_low < b_high and b_low < a_high


def _addresses(array: Any) -> tuple[int, int]:
    reach = [stride * (n - 1) for stride, n in zip(array.strides, array.shape, strict=True)]
    low = array.data.ptr + sum(r for r in reach if r < 0)
    return low, array.data.ptr + sum(r for r in reach if r > 0) + array.itemsize


# ---- the plain functions ------------------------------------------------------------------------


def reference_functions() -> contextlib.AbstractContextManager[None]:
    """The functions of the tutorial where their fast twins would run."""
    return using("reference")
