"""More of Tensor: powers, parts, comparisons, conversions, extremes, elementwise functions.

>>> from minimixer import Tensor
>>> x = Tensor([[1.0, 4.0], [9.0, 16.0]])
>>> (x > 3).data.tolist(), x.sqrt().max().item(), x.argmax(axis=0).data.tolist()
([[False, True], [True, True]], 4.0, [1, 1])
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import more_ops, more_rearrange, rearrange
from .arrays import namespace
from .autograd import Variable
from .devices import check_device
from .habits import Habits, plain_value
from .precision import as_dtype, is_floating

if TYPE_CHECKING:
    from .tensor import Tensor


class MoreOfTensor(Habits):
    """What Tensor has beside what training a Mixer needs."""

    __slots__ = ()

    def __len__(self: Any) -> int:
        return len(self.data)

    def __iter__(self: Any) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.data)

    def __array__(self: Any, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """By NumPy's rules: `np.array(x)` is a copy, `np.asarray(x)` may share memory as numpy()
        does, and copy=False is a ValueError where another dtype or a GPU needs a copy."""
        if copy is False and self.device != "cpu":
            raise ValueError(f"values on {self.device} can't be had without a copy: copy=None")
        return np.array(self.numpy(), dtype=dtype, copy=copy if self.device == "cpu" else None)

    def to(self: Any, *targets: Any, dtype: Any = None, device: Any = None) -> "Tensor":
        """`to("cuda")`, `to("float64")` or both, in any order or by name; differentiable.
        ValueError if the device can't be used here."""
        dtype, device = split_targets(targets, dtype, device)
        device = self.device if device is None else check_device(device)
        if device == self.device and (dtype is None or dtype == self.dtype):
            return self
        if is_floating(self.dtype) and (dtype is None or is_floating(dtype)):
            return more_rearrange.to(self, dtype, device)
        if self.requires_grad:
            raise TypeError(f"to: there are no gradients in {dtype}; detach() first")
        tensor: Any = Variable.result_class
        return tensor(self.data, dtype=dtype, device=device)  # integers have no gradient

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        if self.node is not None:
            raise TypeError("only leaves can be copied: use detach() first")
        memo[id(self)] = copy = Variable.result_class(self.data.copy(), self.requires_grad)
        return copy

    def __pow__(self: Any, other: Any) -> "Tensor":
        return more_ops.power(self, other)

    def __rpow__(self: Any, other: Any) -> "Tensor":
        return more_ops.power(other, self)

    def __abs__(self: Any) -> "Tensor":
        return more_ops.absolute(self)

    def __getitem__(self: Any, key: Any) -> "Tensor":
        return more_rearrange.index(self, key)

    def __eq__(self, other: Any) -> "Tensor":  # type: ignore[override]
        return Variable.result_class(self.data == plain_value(other))

    def __ne__(self, other: Any) -> "Tensor":  # type: ignore[override]
        return Variable.result_class(self.data != plain_value(other))

    def __lt__(self, other: Any) -> "Tensor":
        return Variable.result_class(self.data < plain_value(other))

    def __le__(self, other: Any) -> "Tensor":
        return Variable.result_class(self.data <= plain_value(other))

    def __gt__(self, other: Any) -> "Tensor":
        return Variable.result_class(self.data > plain_value(other))

    def __ge__(self, other: Any) -> "Tensor":
        return Variable.result_class(self.data >= plain_value(other))

    def max(self, axis: Any = None, keepdims: bool = False, **unknown: Any) -> "Tensor":
        return more_rearrange.max(self, axis, keepdims, **unknown)

    def min(self, axis: Any = None, keepdims: bool = False, **unknown: Any) -> "Tensor":
        return more_rearrange.min(self, axis, keepdims, **unknown)

    def var(
        self, axis: Any = None, keepdims: bool = False, correction: float = 1, **unknown: Any
    ) -> "Tensor":
        """A sum of squares divided by n - correction: 1 as in PyTorch, 0 as in NumPy."""
        return more_rearrange.var(self, axis, keepdims, correction, **unknown)

    def std(
        self, axis: Any = None, keepdims: bool = False, correction: float = 1, **unknown: Any
    ) -> "Tensor":
        return more_rearrange.std(self, axis, keepdims, correction, **unknown)

    def argmax(self, axis: Any = None, keepdims: bool = False, **unknown: Any) -> "Tensor":
        """Where the largest element is; the first one, if there are several. No gradient."""
        return self._reduced("argmax", axis, keepdims, unknown)

    def argmin(self, axis: Any = None, keepdims: bool = False, **unknown: Any) -> "Tensor":
        """Where the smallest element is; likewise."""
        return self._reduced("argmin", axis, keepdims, unknown)

    def any(self, axis: Any = None, keepdims: bool = False, **unknown: Any) -> "Tensor":
        """Is any element true, that is not 0?"""
        return self._reduced("any", axis, keepdims, unknown)

    def all(self, axis: Any = None, keepdims: bool = False, **unknown: Any) -> "Tensor":
        """Are all elements true, that is not 0?"""
        return self._reduced("all", axis, keepdims, unknown)

    def _reduced(self, name: str, axis: Any, keepdims: bool, unknown: dict[str, Any]) -> "Tensor":
        axis = rearrange.axes(axis, unknown)
        if name.startswith("arg") and isinstance(axis, tuple):
            raise TypeError(f"{name}: goes along one axis, or over all (None), got {axis}")
        result = getattr(self.data, name)(axis=axis, keepdims=keepdims)
        return Variable.result_class(namespace(self.data).asarray(result))

    def exp(self) -> "Tensor":
        return more_ops.exp(self)

    def log(self) -> "Tensor":
        return more_ops.log(self)

    def sqrt(self) -> "Tensor":
        return more_ops.sqrt(self)

    def tanh(self) -> "Tensor":
        return more_ops.tanh(self)

    def erf(self) -> "Tensor":
        return more_ops.erf(self)

    def abs(self) -> "Tensor":
        return more_ops.absolute(self)

    def clip(self, low: Any = None, high: Any = None) -> "Tensor":
        return more_ops.clip(self, low, high)


def holds_variables(data: list[Any] | tuple[Any, ...]) -> bool:
    """Are there Variables in a nested list?"""
    return any(
        isinstance(v, Variable) or (isinstance(v, (list, tuple)) and holds_variables(v))
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
