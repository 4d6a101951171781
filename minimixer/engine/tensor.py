"""Tensor: an array that remembers where it came from, with the usual signs and methods.

There is no mathematics in this file: `a * b` is `ops.multiply(a, b)`, and so on.

>>> x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
>>> y = (x @ x.T).sum()
>>> y.backward()
>>> x.grad
array([[ 8., 12.],
       [ 8., 12.]], dtype=float32)

Next: `gradcheck.py`, finite differences against backward.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import ops, rearrange
from .autograd import Variable
from .backend import (
    as_dtype,
    check_device,
    describe,
    device_of,
    is_array,
    namespace,
    to_device,
    to_numpy,
)
from .backward import backward
from .habits import Habits, plain_value
from .precision import is_floating, native


class Tensor(Variable, Habits):
    """A NumPy or CuPy array `data` with a gradient `grad` (an array, or None) of the same shape.

    data            array (not copied: do not change it before backward; one in another machine's
                    order of bytes is converted), number or nested list (floats become float32,
                    integers stay)
    requires_grad   collect d(loss)/d(this) in `grad` when loss.backward() runs
    dtype, device   convert to these: "float32", "float64"; "cpu", "cuda", "cuda:N"

    Arithmetic keeps the dtype: Python numbers and 0-d arrays never promote, and two Tensors of
    different dtype or device are a TypeError. In "float16" and "bfloat16" each operation computes
    in float32 and rounds its result; the mean stays float32. Comparisons give boolean Tensors.
    Booleans and integers have no gradient: they are added and compared as in NumPy, divided and
    averaged as float32, so that `(predictions == labels).mean()` is the accuracy.
    """

    __slots__ = ()
    __array_priority__ = 1000

    def __init__(
        self, data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None
    ):
        if isinstance(data, Variable):
            data = data.data
        if isinstance(data, (list, tuple)) and _holds_variables(data):
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

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        values = np.array2string(to_numpy(self.data), separator=", ", prefix="Tensor(")
        where = "" if self.device == "cpu" else f", device={self.device!r}"
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({values}, dtype={self.dtype}{where}{grad})"

    def __bool__(self) -> bool:
        return bool(self.data)

    __hash__ = object.__hash__  # by identity, although == compares elements

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """By NumPy's rules: np.array(x) is a copy, np.asarray(x) may share memory as numpy() does,
        and copy=False is a ValueError where another dtype or a GPU needs a copy."""
        if copy is False and self.device != "cpu":
            raise ValueError(f"values on {self.device} can't be had without a copy: copy=None")
        return np.array(self.numpy(), dtype=dtype, copy=copy if self.device == "cpu" else None)

    def __deepcopy__(self, memo: dict) -> "Tensor":
        if self.node is not None:
            raise TypeError("only leaves can be copied: use detach() first")
        memo[id(self)] = copy = Tensor(self.data.copy(), self.requires_grad)
        return copy

    def item(self) -> Any:
        """The only element as a Python number. Waits for a GPU."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: shared memory on the CPU, a copy from a GPU."""
        return to_numpy(self.data)

    def detach(self) -> "Tensor":
        """The same values, cut off from the graph."""
        return Tensor(self.data)

    def to(self, *targets: Any, dtype: Any = None, device: Any = None) -> "Tensor":
        """`to("cuda")`, `to("float64")` or both, in any order or by name; differentiable.
        ValueError if the device can't be used here."""
        dtype, device = split_targets(targets, dtype, device)
        device = self.device if device is None else check_device(device)
        if device == self.device and (dtype is None or dtype == self.dtype):  # float64 equals None
            return self
        if is_floating(self.dtype) and (dtype is None or is_floating(dtype)):
            return rearrange.to(self, dtype, device)
        if self.requires_grad:
            raise TypeError(f"to: there are no gradients in {dtype}; detach() first")
        return Tensor(self.data, dtype=dtype, device=device)  # integers have no gradient

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add d(this)/d(leaf) * gradient into every leaf's `grad`; see backward.py."""
        backward(self, gradient, retain_graph)

    # ---- operators ------------------------------------------------------------------------------

    def __add__(self, other):
        return ops.add(self, other)

    def __radd__(self, other):
        return ops.add(other, self)

    def __sub__(self, other):
        return ops.subtract(self, other)

    def __rsub__(self, other):
        return ops.subtract(other, self)

    def __mul__(self, other):
        return ops.multiply(self, other)

    def __rmul__(self, other):
        return ops.multiply(other, self)

    def __truediv__(self, other):
        return ops.divide(self, other)

    def __rtruediv__(self, other):
        return ops.divide(other, self)

    def __pow__(self, other):
        return ops.power(self, other)

    def __rpow__(self, other):
        return ops.power(other, self)

    def __matmul__(self, other):
        return ops.matmul(self, other)

    def __rmatmul__(self, other):
        return ops.matmul(other, self)

    def __neg__(self):
        return ops.negative(self)

    def __abs__(self):
        return ops.absolute(self)

    def __getitem__(self, key):
        return rearrange.index(self, key)

    def __eq__(self, other):  # type: ignore[override]
        return Tensor(self.data == plain_value(other))

    def __ne__(self, other):  # type: ignore[override]
        return Tensor(self.data != plain_value(other))

    def __lt__(self, other):
        return Tensor(self.data < plain_value(other))

    def __le__(self, other):
        return Tensor(self.data <= plain_value(other))

    def __gt__(self, other):
        return Tensor(self.data > plain_value(other))

    def __ge__(self, other):
        return Tensor(self.data >= plain_value(other))

    # ---- methods --------------------------------------------------------------------------------

    def sum(self, axis=None, keepdims=False, **unknown):
        return rearrange.sum(self, axis, keepdims, **unknown)

    def mean(self, axis=None, keepdims=False, **unknown):
        return rearrange.mean(self, axis, keepdims, **unknown)

    def max(self, axis=None, keepdims=False, **unknown):
        return rearrange.max(self, axis, keepdims, **unknown)

    def min(self, axis=None, keepdims=False, **unknown):
        return rearrange.min(self, axis, keepdims, **unknown)

    def var(self, axis=None, keepdims=False, correction=1, **unknown):
        """A sum of squares divided by n - correction: 1 as in PyTorch, 0 as in NumPy."""
        return rearrange.var(self, axis, keepdims, correction, **unknown)

    def std(self, axis=None, keepdims=False, correction=1, **unknown):
        return rearrange.std(self, axis, keepdims, correction, **unknown)

    def argmax(self, axis=None, keepdims=False, **unknown):
        """Where the largest element is; the first one, if there are several. No gradient."""
        return self._reduced("argmax", axis, keepdims, unknown)

    def argmin(self, axis=None, keepdims=False, **unknown):
        """Where the smallest element is; likewise."""
        return self._reduced("argmin", axis, keepdims, unknown)

    def any(self, axis=None, keepdims=False, **unknown):
        """Is any element true, that is not 0?"""
        return self._reduced("any", axis, keepdims, unknown)

    def all(self, axis=None, keepdims=False, **unknown):
        """Are all elements true, that is not 0?"""
        return self._reduced("all", axis, keepdims, unknown)

    def _reduced(self, name: str, axis: Any, keepdims: bool, unknown: dict[str, Any]) -> "Tensor":
        axis = rearrange.axes(axis, unknown)
        if name.startswith("arg") and isinstance(axis, tuple):
            raise TypeError(f"{name}: goes along one axis, or over all (None), got {axis}")
        result = getattr(self.data, name)(axis=axis, keepdims=keepdims)
        return Tensor(namespace(self.data).asarray(result))

    def reshape(self, *shape):
        """reshape(2, 3) or reshape((2, 3)); one length may be -1."""
        return rearrange.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        """transpose(1, 0, 2) or transpose((1, 0, 2)): axis k of the result is axis axes[k].
        No axes: reversed."""
        if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
            axes = tuple(axes[0])
        return rearrange.transpose(self, axes or range(self.ndim)[::-1])

    @property
    def T(self):
        return self.transpose()

    def exp(self):
        return ops.exp(self)

    def log(self):
        return ops.log(self)

    def sqrt(self):
        return ops.sqrt(self)

    def tanh(self):
        return ops.tanh(self)

    def erf(self):
        return ops.erf(self)

    def abs(self):
        return ops.absolute(self)

    def clip(self, low=None, high=None):
        return ops.clip(self, low, high)


Variable.result_class = Tensor


def _holds_variables(data: list | tuple) -> bool:
    return any(
        isinstance(v, Variable) or (isinstance(v, (list, tuple)) and _holds_variables(v))
        for v in data
    )


def split_targets(
    targets: tuple[Any, ...], dtype: Any = None, device: Any = None
) -> tuple[np.dtype | None, str | None]:
    """("cuda", "float64") -> (dtype("float64"), "cuda"): what `.to(...)` was asked for."""
    targets += tuple([target for target in (dtype, device) if target is not None])
    dtypes, devices = [], []
    for target in targets:
        if isinstance(target, str) and (target == "cpu" or target.startswith("cuda")):
            devices.append(target)
            continue
        try:
            dtypes.append(np.dtype(object) if isinstance(target, Variable) else as_dtype(target))
        except TypeError:
            dtypes.append(np.dtype(object))
        if target is None or not (dtypes[-1].kind in "iub" or is_floating(dtypes[-1])):
            raise TypeError(
                f"to: expected a device ('cpu', 'cuda', 'cuda:N') or a dtype, got {target!r}"
            )
    if len(dtypes) > 1 or len(devices) > 1:
        raise TypeError(f"to: one device and one dtype at most, got {targets}")
    return dtypes[0] if dtypes else None, devices[0] if devices else None
