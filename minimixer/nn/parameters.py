"""Parameters: the weights of a model, as views into one flat buffer.

    buffer.values      | stem.weight | blocks.0... | head.weight | stem.bias | ...  |   one array
    buffer.gradients   |      .      |      .      |      .      |     .     | ...  |   one array

(The stem is the model's first layer, the head its last.) Each Parameter is a Tensor whose `data`
and `grad` are windows into these two arrays. So an update of all weights is a few operations on
long arrays, a gradient norm is one product, and moving a model to the GPU is one copy. Matrices
come first, so that whatever an optimizer does to matrices only, it does to one stretch of the
buffer; each Parameter starts at a multiple of 64 elements, which keeps the windows aligned.

>>> import numpy as np
>>> w, b = Parameter(np.ones((2, 3), "float32")), Parameter(np.zeros(3, "float32"))
>>> buffer = ParameterBuffer([w, b])
>>> w.data = 5 * np.ones((2, 3))             # copied into the window: nothing is ever rebound
>>> w.start, b.start, buffer.values[:7]
(0, 64, array([5., 5., 5., 5., 5., 5., 0.], dtype=float32))

Next: `module.py`, Module: Parameters and sub-modules by name.
"""

import math
import weakref
from collections.abc import Sequence
from copy import deepcopy
from operator import attrgetter
from typing import Any

import numpy as np

from ..engine.autograd import Variable
from ..engine.backend import (
    FLOAT_DTYPES,
    Array,
    check_device,
    describe,
    device_of,
    is_array,
    is_half,
    join,
    namespace,
    to_device,
    use_device_of,
)
from ..engine.tensor import Tensor
from .draws import RandomCounter
from .loss_scale import unscaled

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
    """

    owner: weakref.ref | None = None

    def __init__(self, parameters: Sequence["Parameter"]):
        # The parts join the largest of the buffers they come from, in its dtype and on its device.
        homes = [p.buffer for p in parameters if p.buffer is not None]
        home = max(homes, key=lambda buffer: buffer.count) if homes else None
        first = parameters[0].data if home is None else home.values
        xp = namespace(first)
        order = sorted(parameters, key=lambda p: p.ndim < 2)  # stable: matrices, then vectors
        self.members: list[weakref.ref[Parameter]] = []  # whose windows look at it
        self.size = sum(_aligned(p.size) for p in order)
        self.values: Array = xp.zeros(self.size, dtype=first.dtype)
        self.gradients: Array | None = None
        self.optimized: set[int] = set()
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
            start += _aligned(size)

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
        self.bind_windows()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Parameter(Tensor):
    """A Tensor that a model learns. `data` and `grad` are views into its buffer.

    Assigning to `data` copies into the view (ValueError if the shape differs); between forward and
    backward that is noticed, and an error. Writing into the view itself is not noticed: assign
    `p.data = p.data` after it. `grad` is None until backward, and again after `zero_grad()`, which
    only forgets: the next gradient overwrites.
    """

    __slots__ = ("_data", "_grad", "_low", "_shape", "buffer", "has_grad", "start", "version")
    is_parameter = True
    buffer: Any  # a ParameterBuffer, from the first moment on
    start: int  # in the buffer

    def __init__(self, data: Any, requires_grad: bool = True):
        value = Tensor(data).data
        if value.dtype not in FLOAT_DTYPES:
            raise TypeError(f"Parameter: must be float32 or float64, got {describe(value)}")
        self._data, self._shape, self.buffer = value, value.shape, None
        self.version, self.has_grad = 0, False
        self.node = self.output_index = None
        self.requires_grad = requires_grad
        ParameterBuffer([self])  # its own, until a model gathers its Parameters into one

    def __deepcopy__(self, memo: dict) -> "Parameter":
        memo[id(self)] = copy = Parameter(self.data.copy(), self.requires_grad)
        assert copy.buffer is not None and self.buffer is not None
        copy.buffer.random = deepcopy(self.buffer.random, memo)
        copy.buffer.precision, copy.buffer.scaled = self.buffer.precision, self.buffer.scaled
        copy.buffer.loss_scale = self.buffer.loss_scale.copy()
        return copy

    def __getstate__(self) -> dict[str, Any]:  # for pickle: without the windows
        names = ("node", "output_index", "requires_grad", "buffer", "start", "version", "has_grad")
        return {**{name: getattr(self, name) for name in names}, "_shape": self._shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.buffer.members.append(weakref.ref(self))
        self.bind()

    def bind(self) -> None:
        """Look at what the buffer holds now."""
        buffer = self.buffer
        self._data, self._grad, self._low = (
            None if flat is None else self.window(flat)
            for flat in (buffer.values, buffer.gradients, buffer.low)
        )

    @property
    def stop(self) -> int:
        """Where the next Parameter starts."""
        return self.start + _aligned(math.prod(self._shape))

    def window(self, flat: Array) -> Array:
        """This Parameter's part of an array that is laid out like its buffer."""
        return flat[self.start : self.start + math.prod(self._shape)].reshape(self._shape)

    def _assign(self, value: Any) -> None:
        value = value.data if isinstance(value, Variable) else value
        value = value if is_array(value) else np.asarray(value, dtype=self.dtype)
        if value.shape != self._shape:
            raise ValueError(
                f"a Parameter keeps its shape: {self._shape}, but the values are {value.shape}; "
                "for another shape make a new layer"
            )
        self.version += 1
        self.buffer.write(self.start, value)

    data = property(attrgetter("_data"), _assign)  # type: ignore[assignment]

    @property
    def grad(self) -> Array | None:  # type: ignore[override]
        if not self.has_grad:
            return None
        join()  # in the middle of a backward
        return self.grad_window

    @grad.setter
    def grad(self, value: Any) -> None:
        self.has_grad = False
        if value is not None:
            value = value.data if isinstance(value, Variable) else value
            if np.shape(value) != self._shape:
                raise ValueError(f"a gradient of {np.shape(value)} for a Parameter {self._shape}")
            self.accumulate_grad(value)

    def accumulate_grad(self, gradient: Array, read_as: np.dtype | None = None) -> None:
        """The first gradient after `zero_grad` overwrites what is there, later ones add. From where
        the values were read in another dtype they may come scaled (loss_scale.py)."""
        place = self.grad_window
        if read_as is not place.dtype:
            gradient = unscaled(gradient, read_as, self.buffer)
        if self.has_grad:
            join()  # what is written there beside
            place += gradient.astype(place.dtype, copy=False)
        elif gradient is not place:  # else backward wrote it there
            place[...] = gradient
        self.has_grad = True

    @property
    def grad_window(self) -> Array:
        """Its place among the gradients, whatever that holds."""
        if self._grad is None:
            self.buffer.make_gradients()
        return self._grad

    @property
    def precision(self) -> str | None:
        """Of products with it: "tf32", or None."""
        return self.buffer.precision

    def read(self, dtype: np.dtype) -> Array:
        """The values in the dtype of the activations that meet them."""
        if self._data.dtype == dtype:
            return self._data
        if not is_half(dtype):
            return self._data.astype(dtype)
        if self.buffer.low is None or self.buffer.low.dtype != dtype:
            self.buffer.read_low(dtype)
        return self._low

    def __repr__(self) -> str:
        return super().__repr__().replace("Tensor", "Parameter", 1)
