"""The flat arrays behind a model's Parameters: made, written to, moved.

>>> from minimixer import Linear
>>> buffer = Linear(2, 3).parameters()[0].buffer
>>> buffer.size, buffer.values.shape, buffer.gradients is None
(128, (128,), True)
"""

import weakref
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from ..engine.arrays import Array, device_of, namespace, to_device, use_device_of
from ..engine.devices import check_device
from ..engine.precision import FLOAT_DTYPES, is_half
from .draws import RandomCounter

ALIGNMENT = 64  # elements


class ParameterBuffer:
    """The flat arrays behind a list of Parameters, which it takes over with their values.

    values     (size,) float32 or float64
    gradients  the same, made at the first backward; only the engine writes there
    low        the values again in the two-byte dtype that activations have, made when first read
    precision  of matrix products with these Parameters: "tf32", or None
    scaled     do gradients from float16 come multiplied by the loss scale?
    loss_scale (2,) float64 on the device: the scale (loss_scale.py), steps it has held
    random     the model's RandomCounter
    owner      the Module that all of it belongs to, a weak reference
    optimized  where the Parameters start that optimizers were made for
    moves      how often `to` was asked for other arrays, for who has some of their own
    """

    owner: weakref.ref[Any] | None = None

    def __init__(self, parameters: Sequence[Any]):
        # The parts join the largest of the buffers they come from, in its dtype and on its device.
        homes = [p.buffer for p in parameters if p.buffer is not None]
        home = max(homes, key=lambda buffer: buffer.count) if homes else None
        first = parameters[0].data if home is None else home.values
        xp = namespace(first)
        order = sorted(parameters, key=lambda p: p.ndim < 2)  # stable: matrices, then vectors
        self.members: list[weakref.ref[Any]] = []  # whose windows look at it
        self.size: int = sum(aligned(p.size) for p in order)
        self.values: Array = xp.zeros(self.size, dtype=first.dtype)
        self.gradients: Array = None
        self.optimized: set[int] = set()
        self.moves: int = 0
        self.low: Array | None = None
        self.precision: str | None = None if home is None else home.precision
        self.scaled: bool = home is not None and home.scaled
        self.loss_scale: Array = xp.array([1.0, 0.0]) if home is None else home.loss_scale
        self.random: RandomCounter = RandomCounter() if home is None else home.random
        self.random.counters = to_device(self.random.counters, self.device)
        start = 0
        for parameter in order:
            value, grad, size = parameter.data, parameter.grad, parameter.size
            parameter.buffer, parameter.start, parameter.has_grad = self, start, False
            self.members.append(weakref.ref(parameter))
            parameter.bind()
            parameter.data = value
            parameter.grad = grad
            start += aligned(size)

    @property
    def count(self) -> int:
        """The number of Parameters that are still in use."""
        return sum(member() is not None for member in self.members)

    def bind_windows(self) -> None:
        """Let the Parameters see the arrays that are here now."""
        for member in self.members:
            parameter = member()
            if parameter is not None and parameter.buffer is self:
                parameter.bind()

    def __getstate__(self) -> dict[str, Any]:  # for pickle, which refuses weak references
        return {**vars(self), "members": [], "low": None, "owner": None}

    @property
    def device(self) -> str:
        return device_of(self.values)

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    def write(self, start: int, values: Array) -> None:
        """The one way in which values enter from outside: cast, moved and copied to `start`."""
        values = to_device(values, self.device).reshape(-1)
        use_device_of(self.values)
        self.values[start : start + values.size] = values
        self.refresh(start, start + values.size)

    def refresh(self, start: int, stop: int) -> None:
        """Bring the low-precision copy of values[start:stop] up to date."""
        if self.low is not None:
            self.low[start:stop] = self.values[start:stop].astype(self.low.dtype)

    def read_low(self, dtype: np.dtype) -> Array:
        """All values in a two-byte dtype: a copy that is kept, and kept up to date."""
        if self.low is None or self.low.dtype != dtype:
            self.low = self.values.astype(dtype)
            self.bind_windows()
        return self.low

    def read(self, parameter: Any, dtype: np.dtype) -> Array:
        """A Parameter's values in another dtype than its own."""
        if not is_half(dtype):
            return parameter.data.astype(dtype)
        if self.low is None or self.low.dtype != dtype:
            self.read_low(dtype)
        return parameter.low

    def take_settings(self, other: "ParameterBuffer", memo: dict[int, Any]) -> None:
        """What a copy of a Parameter needs of the buffer of the first."""
        self.random = deepcopy(other.random, memo)
        self.precision, self.scaled = other.precision, other.scaled
        self.loss_scale = other.loss_scale.copy()

    def make_gradients(self) -> Array:
        if self.gradients is None:
            self.gradients = namespace(self.values).zeros_like(self.values)
            self.bind_windows()
        return self.gradients

    def to(self, dtype: np.dtype | None = None, device: str | None = None) -> None:
        """Other arrays, the same windows: every Parameter and optimizer sees the new ones."""
        dtype = self.dtype if dtype is None else dtype
        device = self.device if device is None else check_device(device)
        if dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"parameters are float32 or float64, not {dtype}; for two-byte activations use "
                "Mixer.set_precision"
            )
        values = to_device(self.values, device).astype(dtype, copy=False)
        gradients = self.gradients
        if gradients is not None:
            gradients = to_device(gradients, device).astype(dtype, copy=False)
        scale, counters = to_device(self.loss_scale, device), self.random.counters
        self.random.counters = to_device(counters, device)  # from here on nothing can fail
        self.values, self.gradients, self.loss_scale, self.low = values, gradients, scale, None
        self.moves += 1
        self.bind_windows()


def aligned(size: int) -> int:
    """So many elements, and those that stay free before the next Parameter."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Pickled:
    """How a Parameter is pickled: with its buffer, and without its windows."""

    __slots__ = ()

    def __getstate__(self: Any) -> dict[str, Any]:
        names = ("node", "output_index", "requires_grad", "buffer", "start", "version", "has_grad")
        return {**{name: getattr(self, name) for name in names}, "_shape": self._shape}

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.buffer.members.append(weakref.ref(self))
        self.bind()
