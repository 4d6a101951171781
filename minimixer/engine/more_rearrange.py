"""More that collects and moves numbers: extremes, variances, joins, other dtypes and devices.

>>> from minimixer import Tensor, concatenate
>>> from minimixer.engine.more_rearrange import max, var
>>> x = Tensor([1.0, 4.0, 2.0], requires_grad=True)
>>> (max(x) + concatenate([x, x]).sum()).backward()
>>> print(x.grad, var(x).data.round(3))
[2. 3. 2.] 2.333
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Array, device_of, is_array, namespace, to_device, to_numpy
from .autograd import Function, Gradients, Variable
from .inputs import Result
from .precision import as_dtype
from .products import add_at
from .rearrange import Axis, _Reduction, axes


class Max(_Reduction):
    """The largest element; where several are equal they share the gradient evenly. NaN is larger
    than all."""

    integers = "kept"
    pick = "max"

    def forward(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        self.keep_axis(x, axis)
        y = namespace(x).asarray(getattr(x, self.pick)(axis=axis, keepdims=keepdims))
        self.x: Array = x
        self.y: Array = y
        return y

    def backward(self, dy: Array) -> Array:
        x, xp = self.x, namespace(dy)
        chosen = (x == self.y.reshape(self.kept_shape)) | (x != x)  # x != x: NaN
        axes = tuple(i for i, n in enumerate(self.kept_shape) if n != self.shape[i])
        winners = chosen.sum(axis=axes, keepdims=True).astype(dy.dtype)
        return xp.where(chosen, self.spread(dy.reshape(self.kept_shape) / winners), 0)


class Min(Max):
    """The smallest element, likewise."""

    pick = "min"


class Var(_Reduction):
    """y = 1/m sum (x - mean)^2, where m is the number of elements less `correction`; NaN if that
    leaves none. dx = 2/m (x - mean) dy: that the mean moves too adds nothing, for the sum of
    x - mean is 0."""

    quiet = True

    def forward(
        self, x: Array, axis: Axis = None, keepdims: bool = False, correction: int = 1
    ) -> Array:
        self.keep_axis(x, axis)
        count = x.size // math.prod(self.kept_shape) if x.size else 0
        self.m: float = count - correction if count > correction else 0
        self.centred: Array = x - x.sum(axis=axis, keepdims=True) / count
        self.centred -= self.centred.sum(axis=axis, keepdims=True) / count  # what rounding left
        squares = self.centred * self.centred
        return namespace(x).asarray(squares.sum(axis=axis, keepdims=keepdims) / self.m)

    def backward(self, dy: Array) -> Array:
        return self.spread(2 * dy / self.m) * self.centred


class Std(Var):
    """The root of Var; where it is 0 the slope is taken as 0."""

    def forward(
        self, x: Array, axis: Axis = None, keepdims: bool = False, correction: int = 1
    ) -> Array:
        self.y: Array = namespace(x).sqrt(super().forward(x, axis, keepdims, correction))
        return self.y

    def backward(self, dy: Array) -> Array:
        return super().backward(namespace(dy).where(self.y == 0, 0, dy / (2 * self.y)))


class Concatenate(Function):
    """Arrays joined along an axis; backward cuts dy where they meet."""

    takes_numbers = False
    integers = "kept"

    def forward(self, *arrays: Array, axis: int) -> Array:
        xp = namespace(arrays[0])
        if not -arrays[0].ndim <= axis < arrays[0].ndim:
            raise ValueError(f"there is no axis {axis} to join along; stack makes a new one")
        if len({array.ndim for array in arrays}) > 1:
            raise ValueError("all must have the same number of dimensions")
        self.axis = axis
        self.borders: list[int] = [0]
        for array in arrays:
            self.borders.append(self.borders[-1] + array.shape[axis])
        return xp.concatenate(arrays, axis=axis)

    def backward(self, dy: Array) -> Gradients:
        moved = dy.swapaxes(0, self.axis)
        return tuple(
            moved[start:stop].swapaxes(0, self.axis)
            for start, stop in zip(self.borders[:-1], self.borders[1:], strict=True)
        )


class Stack(Function):
    """Arrays side by side along a new axis; backward takes dy apart along it."""

    takes_numbers = False
    integers = "kept"

    def forward(self, *arrays: Array, axis: int) -> Array:
        self.axis = axis
        return namespace(arrays[0]).stack(arrays, axis=axis)

    def backward(self, dy: Array) -> Gradients:
        return tuple(namespace(dy).moveaxis(dy, self.axis, 0))


def max(x: Any, axis: Axis = None, keepdims: bool = False, **unknown: Any) -> Result:
    """The largest element along one axis, several or all; see `sum`."""
    return Max.apply(x, axis=axes(axis, unknown), keepdims=keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False, **unknown: Any) -> Result:
    """The smallest element along one axis, several or all; see `sum`."""
    return Min.apply(x, axis=axes(axis, unknown), keepdims=keepdims)


def var(
    x: Any, axis: Axis = None, keepdims: bool = False, correction: float = 1, **unknown: Any
) -> Result:
    """The variance along one axis, several or all; see `sum`. As in PyTorch it is the unbiased one,
    a sum of squares divided by n - 1; with correction=0 by n, as NumPy does."""
    return Var.apply(x, axis=axes(axis, unknown), keepdims=keepdims, correction=correction)


def std(
    x: Any, axis: Axis = None, keepdims: bool = False, correction: float = 1, **unknown: Any
) -> Result:
    """The standard deviation, the root of `var`."""
    return Std.apply(x, axis=axes(axis, unknown), keepdims=keepdims, correction=correction)


def _some(tensors: Sequence[Any]) -> Sequence[Any]:
    if len(tensors) == 0:
        raise ValueError("concatenate, stack: there is nothing to join")
    return tensors


def concatenate(tensors: Sequence[Any], axis: int = 0, **unknown: Any) -> Result:
    """Join along an existing axis. ValueError if there is nothing to join, or shapes differ."""
    return Concatenate.apply(*_some(tensors), axis=axes(axis, unknown))


def stack(tensors: Sequence[Any], axis: int = 0, **unknown: Any) -> Result:
    """Join along a new axis. ValueError if there is nothing to join, or shapes differ."""
    return Stack.apply(*_some(tensors), axis=axes(axis, unknown))


class To(Function):
    """The same numbers in another dtype or on another device; the gradient travels back."""

    any_dtype = True

    def forward(self, x: Array, dtype: Any, device: Any) -> Array:
        self.dtype: np.dtype = x.dtype
        self.device: str = device_of(x)
        return to_device(x, device).astype(dtype, copy=False)

    def backward(self, dy: Array) -> Array:
        return to_device(dy, self.device).astype(self.dtype, copy=False)


def to(x: Any, dtype: Any = None, device: str | None = None) -> Result:
    """x in another dtype, on another device, or both."""
    dtype = x.data.dtype if dtype is None else as_dtype(dtype)
    return To.apply(x, dtype=dtype, device=device_of(x.data) if device is None else device)


class Index(Function):
    """`y = x[index]`, as in NumPy: numbers, slices, None, Ellipsis, integer or boolean arrays.

    An element that was picked several times collects all of its gradients.
    """

    integers = "kept"

    def forward(self, x: Array, index: Any) -> Array:
        index = index if isinstance(index, tuple) else (index,)
        self.index: tuple[Any, ...] = tuple(_index_array(i, x) for i in index)
        self.shape: tuple[int, ...] = x.shape
        if namespace(x) is not np:  # CuPy reads past the end; NumPy, of a dummy, says so
            host = tuple(to_numpy(i) if is_array(i) else i for i in self.index)
            np.broadcast_to(np.empty((), dtype=bool), x.shape)[host]
        return namespace(x).asarray(x[self.index])

    def backward(self, dy: Array) -> Array:
        xp = namespace(dy)
        dx = xp.zeros(self.shape, dtype=dy.dtype)
        if any(is_array(i) and i.dtype != bool for i in self.index):  # may repeat an element
            positions = xp.arange(dx.size).reshape(self.shape)[self.index]
            add_at(dx.reshape(-1), positions.reshape(-1), dy.reshape(-1))
        else:
            dx[self.index] = dy
        return dx


def _index_array(index: Any, x: Array) -> Any:
    """Index arrays must be plain, lie where x does, and stay as they are until backward."""
    if isinstance(index, Variable):
        index = index.data
    if isinstance(index, (list, tuple, range)):
        index = np.array(index, dtype=None if len(index) else np.intp)
    return to_device(index.copy(), device_of(x)) if is_array(index) else index


def index(x: Any, key: Any) -> Result:
    """`x[key]`, as in NumPy. IndexError if it reaches outside."""
    return Index.apply(x, index=key)
