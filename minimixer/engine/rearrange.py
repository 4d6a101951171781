"""Collecting numbers and moving them about: sums, means, reshapes, transposes.

All are linear, y[j] = sum_i A[j, i] x[i], with factors A known beforehand: 1, 0 or 1 / n. Backward
applies the transposed map, dx[i] = sum_j A[j, i] dy[j], and A is never written out: what a sum
collected is spread out again, what was moved goes back to its place.

>>> from minimixer import Tensor, rearrange
>>> x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
>>> rearrange.mean(rearrange.sum(rearrange.transpose(x, (1, 0)), axis=0)).backward()
>>> print(x.grad)
[[0.5 0.5]
 [0.5 0.5]]

Next: `tensor.py`, Tensor: the usual operators for all that.
"""

import math
from collections.abc import Sequence
from typing import Any

from .arrays import Array, namespace
from .autograd import Function
from .checks import no_others, whole, whole_numbers  # no_others: for dim= write axis=
from .inputs import Result  # a Tensor: see the next page

Axis = int | tuple[int, ...] | None


class _Reduction(Function):
    """y collects the elements of x along `axis`; backward spreads dy over them again."""

    def keep_axis(self, x: Array, axis: Axis) -> None:
        self.shape: tuple[int, ...] = x.shape
        axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        self.kept_shape: list[int] = list(x.shape)
        for i in axes:
            if not -x.ndim <= i < x.ndim:
                raise ValueError(f"axis {i} is out of range for {x.ndim} dimensions")
            self.kept_shape[i] = 1

    def spread(self, array: Array) -> Array:
        """Each element repeated, in name only: they share its memory."""
        return namespace(array).broadcast_to(array.reshape(self.kept_shape), self.shape)


class Sum(_Reduction):
    """Every element of x adds to y once: each gets y's gradient."""

    integers = "kept"

    def forward(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        self.keep_axis(x, axis)
        return namespace(x).asarray(x.sum(axis=axis, keepdims=keepdims))

    def backward(self, dy: Array) -> Array:
        return self.spread(dy)


class Mean(_Reduction):
    """The sum divided by the number n of elements: each gets dy / n. Of two-byte numbers, integers
    and booleans the mean is float32: that of `predictions == labels` is the accuracy."""

    wide_result, integers = True, "float32"

    def forward(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        self.keep_axis(x, axis)
        self.count = x.size // math.prod(self.kept_shape) if x.size else 1
        if not x.size:  # the mean of nothing is NaN; NumPy's warns
            return namespace(x).asarray(x.sum(axis=axis, keepdims=keepdims) * math.nan)
        return namespace(x).asarray(x.mean(axis=axis, keepdims=keepdims))

    def backward(self, dy: Array) -> Array:
        return self.spread(dy / self.count)


class Reshape(Function):
    """The same elements in another shape, and back."""

    any_dtype, integers = True, "kept"

    def forward(self, x: Array, shape: tuple[int, ...]) -> Array:
        self.shape: tuple[int, ...] = x.shape
        return x.reshape(shape)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.shape)


class Transpose(Function):
    """Axis k of y is axis `axes[k]` of x; the way back is the inverse permutation."""

    any_dtype, integers = True, "kept"

    def forward(self, x: Array, axes: Sequence[int]) -> Array:
        positive = [axis + x.ndim if axis < 0 else axis for axis in axes]
        if sorted(positive) != list(range(x.ndim)):
            raise ValueError(
                f"axes {axes} must name each of the {x.ndim} axes once; swapaxes swaps two"
            )
        self.back: list[int] = [positive.index(i) for i in range(x.ndim)]
        return x.transpose(positive)

    def backward(self, dy: Array) -> Array:
        return dy.transpose(self.back)


# ---- the functions -----------------------------------------------------------------------------


def axes(axis: Any, unknown: dict[str, Any]) -> Axis:
    """What was given as `axis`, checked; `unknown`: what else was given by name."""
    no_others(unknown)
    if axis is None or type(axis) is int:
        return axis
    if isinstance(axis, (tuple, list)):
        return tuple([whole(i, "an axis") for i in axis])
    return whole(axis, "an axis (or None, or a tuple of axes)")


def sum(x: Any, axis: Axis = None, keepdims: bool = False, **unknown: Any) -> Result:
    """The sum along one axis, several (a tuple) or all (None); keepdims leaves them as length 1.
    TypeError if an axis is no whole number, ValueError if there is no such axis."""
    return Sum.apply(x, axis=axes(axis, unknown), keepdims=keepdims)


def mean(x: Any, axis: Axis = None, keepdims: bool = False, **unknown: Any) -> Result:
    """The mean along one axis, several or all; see `sum`."""
    return Mean.apply(x, axis=axes(axis, unknown), keepdims=keepdims)


def reshape(x: Any, shape: Sequence[int] | int) -> Result:
    """The same elements in another shape, last axis fastest; one length may be -1."""
    lengths = shape if isinstance(shape, (tuple, list)) else (shape,)
    return Reshape.apply(x, shape=whole_numbers(lengths, "a length in a shape"))


def transpose(x: Any, axes: Sequence[int]) -> Result:
    """Axis k of the result is axis `axes[k]` of x; `axes` names each of x's axes once."""
    return Transpose.apply(x, axes=whole_numbers(axes, "an axis"))
