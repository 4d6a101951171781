"""Tensor: an array that remembers where it came from, with the usual operators and methods.

There is no mathematics in this file: `a * b` is `ops.multiply(a, b)`, and so on.

>>> from minimixer import Tensor
>>> x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
>>> y = (x @ x.T).sum()
>>> y.backward()
>>> x.grad
array([[ 8., 12.],
       [ 8., 12.]], dtype=float32)

Next: `gradcheck.py`, finite differences against backward.
"""

from typing import Any

import numpy as np

from . import ops, rearrange
from .arrays import describe, device_of, is_array, native, to_device, to_numpy
from .autograd import Variable
from .backward import backward
from .more_tensor import MoreOfTensor, holds_variables  # powers, parts, comparisons and the like
from .precision import as_dtype, is_floating


class Tensor(Variable, MoreOfTensor):
    """A NumPy or CuPy array `data` with a gradient `grad` (an array, or None) of the same shape.

    data            array (not copied: do not change it before backward; it keeps its dtype), number
                    or nested list (of floats, which become float32, or of integers)
    requires_grad   collect the loss's gradient in `grad` when loss.backward() runs
    dtype, device   convert to these: "float32" and others; "cpu", "cuda" (a GPU), "cuda:N"

    Arithmetic keeps a float's dtype: Python numbers and 0-d arrays don't change it, two Tensors of
    different dtype or device are a TypeError. Of "float16" and "bfloat16", numbers of two bytes,
    operations compute in float32 and round the result; the mean stays float32. Comparisons give
    booleans: these and integers have no gradient, and are divided and averaged as float32."""

    __slots__ = ()
    __array_priority__ = 1000  # array + x: CuPy's calls x.__radd__; NumPy's asks habits.py

    def __init__(
        self, data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None
    ):
        if isinstance(data, Variable):
            data = data.data
        if isinstance(data, (list, tuple)) and holds_variables(data):
            raise TypeError(
                "Tensor: to join Tensors use stack or concatenate, which keep gradients"
            )
        if not is_array(data):
            array = np.asarray(data)
            python_numbers = not isinstance(data, np.generic) and array.dtype == np.float64
            data = array.astype(np.float32) if python_numbers else array
        if not data.dtype.isnative:
            data = native(data)
        if dtype is not None:
            data = data.astype(as_dtype(dtype), copy=False)
        if device is not None:
            data = to_device(data, device)
        if requires_grad and not is_floating(data.dtype):
            raise TypeError(f"Tensor: only floating-point numbers have gradients: {describe(data)}")
        if data.dtype == object:
            raise TypeError(f"Tensor: expected numbers, got {data!r:.60}")
        super().__init__(data, requires_grad)

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def device(self) -> str:
        return device_of(self.data)

    def __repr__(self) -> str:
        values = np.array2string(to_numpy(self.data), separator=", ", prefix="Tensor(")
        where = "" if self.device == "cpu" else f", device={self.device!r}"
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({values}, dtype={self.dtype}{where}{grad})"

    __hash__ = object.__hash__  # by identity, although == compares elements

    def item(self) -> Any:
        """The only element as a Python number: waits until the GPU, behind Python, has it."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: shared memory on the CPU, a copy from a GPU."""
        return to_numpy(self.data)

    def detach(self) -> "Tensor":
        """The same values as a leaf: backward stops there."""
        return Tensor(self.data)

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add the gradient of sum(gradient * this) into every leaf's `grad`; see backward.py."""
        backward(self, gradient, retain_graph)

    # ---- operators ------------------------------------------------------------------------------

    def __add__(self, other: Any) -> "Tensor":
        return ops.add(self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return ops.add(other, self)

    def __sub__(self, other: Any) -> "Tensor":
        return ops.subtract(self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return ops.subtract(other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return ops.multiply(self, other)

    def __rmul__(self, other: Any) -> "Tensor":
        return ops.multiply(other, self)

    def __truediv__(self, other: Any) -> "Tensor":
        return ops.divide(self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return ops.divide(other, self)

    def __matmul__(self, other: Any) -> "Tensor":
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return ops.matmul(other, self)

    def __neg__(self) -> "Tensor":
        return ops.negative(self)

    # ---- methods --------------------------------------------------------------------------------

    def sum(self, axis: Any = None, keepdims: bool = False, **unknown: Any) -> "Tensor":
        return rearrange.sum(self, axis, keepdims, **unknown)

    def mean(self, axis: Any = None, keepdims: bool = False, **unknown: Any) -> "Tensor":
        return rearrange.mean(self, axis, keepdims, **unknown)

    def reshape(self, *shape: Any) -> "Tensor":
        """reshape(2, 3) or reshape((2, 3)); one length may be -1."""
        return rearrange.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> "Tensor":
        """transpose(1, 0, 2) or transpose((1, 0, 2)): axis k of the result is axis axes[k].
        No axes: reversed."""
        if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
            axes = tuple(axes[0])
        return rearrange.transpose(self, axes or range(self.ndim)[::-1])

    @property
    def T(self) -> "Tensor":
        return self.transpose()


Variable.result_class = Tensor
