"""Parameters: the weights of a model, as views into one flat buffer.

    buffer.values      | stem.weight | blocks.0... | head.weight | stem.bias | ...  |   one array
    buffer.gradients   |      .      |      .      |      .      |     .     | ...  |   one array

(The stem is the model's first layer, the head its last.) Each Parameter is a Tensor whose `data`
and `grad` are windows into these two arrays: NumPy's views, which share another array's memory. So
an optimizer, which moves all weights at every step, needs a few operations on long arrays, and
moving a model to the GPU is one copy. Matrices come first: what is done to them alone, is done to
one stretch. Parameters start at multiples of 64 elements, as processors' wide reads want.

>>> import numpy as np
>>> from minimixer.nn.parameters import Parameter, ParameterBuffer
>>> w, b = Parameter(np.ones((2, 3), "float32")), Parameter(np.zeros(3, "float32"))
>>> buffer = ParameterBuffer([w, b])
>>> w.data = 5 * np.ones((2, 3))             # copied into the window, which stays
>>> w.start, b.start, buffer.values[:7]
(0, 64, array([5., 5., 5., 5., 5., 5., 0.], dtype=float32))

Next: `module.py`, Module: Parameters and sub-modules by name.
"""

import math
from operator import attrgetter
from typing import Any

import numpy as np

from ..engine.arrays import Array, describe, is_array
from ..engine.aside import join  # waits for gradients that are computed beside the rest
from ..engine.autograd import Variable
from ..engine.precision import FLOAT_DTYPES
from ..engine.tensor import Tensor
from .buffer import ParameterBuffer, Pickled, aligned  # Pickled: for pickle; aligned: to 64s
from .loss_scale import unscaled  # a gradient that came multiplied, from float16


class Parameter(Pickled, Tensor):
    """A Tensor that a model learns. `data` and `grad` are views into its buffer.

    Assigning to `data` copies into the view (ValueError if the shape differs); a backward through
    operations that read the old values is an error then. Writing into the view itself is not
    noticed: assign `p.data = p.data` after it. `grad` is None until backward, and again after
    `zero_grad()` of the model or the optimizer. `low` is its view of the values in two bytes."""

    __slots__ = ("_data", "_grad", "_shape", "buffer", "has_grad", "low", "start", "version")
    is_parameter = True
    buffer: Any  # a ParameterBuffer, from the first moment on
    start: int  # in the buffer
    low: Array | None

    def __init__(self, data: Any, requires_grad: bool = True):
        value = Tensor(data).data
        if value.dtype not in FLOAT_DTYPES:
            raise TypeError(f"Parameter: must be float32 or float64, got {describe(value)}")
        self._data, self._shape, self.buffer = value, value.shape, None
        self.version: int = 0
        self.has_grad: bool = False
        self.node: None = None  # a leaf
        self.output_index: None = None
        self.requires_grad = requires_grad
        # Sets buffer and start, and binds: its own, until a model gathers its Parameters into one.
        ParameterBuffer([self])

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parameter":
        memo[id(self)] = copy = Parameter(self.data.copy(), self.requires_grad)
        copy.buffer.take_settings(self.buffer, memo)
        return copy

    def bind(self) -> None:
        """Open the windows anew, on the arrays that the buffer holds now."""
        buffer = self.buffer
        self._data, self._grad, self.low = (
            None if flat is None else self.window(flat)
            for flat in (buffer.values, buffer.gradients, buffer.low)
        )

    @property
    def stop(self) -> int:
        """Where the next Parameter starts."""
        return self.start + aligned(math.prod(self._shape))

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

    data: Array = property(attrgetter("_data"), _assign)

    # `_grad`: the window, None before the first backward. `has_grad`: does what it shows count?

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
        place = self.grad_window if self._grad is None else self._grad
        if read_as is not place.dtype:
            gradient = unscaled(gradient, read_as, self.buffer)
        if self.has_grad:
            join()
            place += gradient.astype(place.dtype, copy=False)
        elif gradient is not place:  # else backward wrote it there
            place[...] = gradient
        self.has_grad = True

    @property
    def grad_window(self) -> Array:
        """Its place among the gradients, whatever that holds."""
        if self._grad is None:
            self.buffer.make_gradients()  # which calls `bind` of all Parameters
        return self._grad

    def read(self, dtype: np.dtype) -> Array:
        """The values in the dtype of what meets them, the activations that flow through a model."""
        if self._data.dtype == dtype:
            return self._data
        return self.buffer.read(self, dtype)

    def __repr__(self) -> str:
        return super().__repr__().replace("Tensor", "Parameter", 1)
