"""What gradcheck differentiates: the outputs of a function, summed with random weights.

>>> import numpy as np
>>> from minimixer import Tensor
>>> from minimixer.engine.weighted_sum import WeightedSum
>>> x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
>>> number = WeightedSum(lambda x: x * x, [x], "square", np.random.default_rng(0))
>>> number.backward()
>>> before = number()
>>> x.data += 1e-6 * x.grad
>>> bool(number() > before)                  # along its gradient it grows
True
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arrays import Array, describe, is_array, namespace, to_device
from .autograd import Function, Gradients
from .grad_mode import no_grad
from .tensor import Tensor
from .watching import GradientError, Unchanged, watching


class WeightedSum:
    """L: the sum of what function(*tensors) returns, with random weights, called for its value."""

    def __init__(
        self, function: Callable[..., Any], tensors: Sequence[Tensor], name: str,
        random: np.random.Generator,
    ):  # fmt: skip
        self._function, self._tensors, self._name = function, tensors, name
        self._given = Unchanged([(f"argument {i}", t.data) for i, t in enumerate(tensors)])
        self._returned = Unchanged([])
        with watching(self._returned):
            self._outputs = self._call()
        self._given.check(f"{name} changed", "must leave its inputs as they are")
        self._weights = [
            to_device(random.uniform(0.5, 1.5, y.shape) * random.choice([-1, 1], y.shape), y.device)
            for y in self._outputs
        ]
        pairs = zip(self._outputs, self._weights, strict=True)
        self.size = sum(float(abs(y.data * w).sum()) for y, w in pairs)  # of its terms

    def __call__(self) -> float:
        with no_grad():
            pairs = zip(self._call(), self._weights, strict=True)
        return sum(float((y.data * w).sum()) for y, w in pairs)

    def _call(self) -> list[Tensor]:
        result = self._function(*self._tensors)
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        for output in outputs:
            if not isinstance(output, Tensor) or output.dtype != np.float64:
                raise TypeError(
                    f"gradcheck of {self._name}: it must return float64 Tensors, got {output!r}"
                )
        return outputs

    def backward(self) -> None:
        """dL/dx of each Tensor x in its `grad`, computed twice: the second must say the same, and
        nobody may have written into what was given, or into what was returned before."""
        name, pairs = self._name, zip(self._outputs, self._weights, strict=True)
        needing = [(y, w) for y, w in pairs if y.requires_grad]
        if not needing:
            raise GradientError(f"{name}: no output depends on an input that requires a gradient")
        self._given.add([(f"output {i}", y.data) for i, y in enumerate(self._outputs)])
        total = _Sum.apply(*[y for y, _ in needing], weights=[w for _, w in needing])
        gradients = []
        for retain_graph in (True, False):
            for tensor in self._tensors:
                tensor.grad = None
            self._returned.watched.clear()
            total.backward(retain_graph=retain_graph)
            self._given.check(
                f"{name}: backward changed", "must not write into what forward was given"
            )
            self._returned.check(
                f"{name}: backward changed, once it was returned,", "must stay as it is"
            )
            found = [None if t.grad is None else to_device(t.grad, "cpu") for t in self._tensors]
            gradients.append([None if g is None else g.tobytes() for g in found])
        for position, (first, second) in enumerate(zip(*gradients, strict=True)):
            if first != second:
                raise GradientError(
                    f"{name}: a second backward gives argument {position} another gradient; "
                    "backward must leave what forward kept for it as it was"
                )

    def check_arrays(self) -> None:
        """GradientError if it wrote into arrays of others when it was called again."""
        self._given.check(
            f"{self._name}: when it was called again, it changed",
            "must return new arrays at each call",
        )


class _Sum(Function):
    """sum of weights * outputs. Not made of the package's own operations: if their backward had
    the wrong sign, checking them with themselves would take two wrongs for a right."""

    def forward(self, *outputs: Array, weights: Any) -> Array:
        self.weights = weights
        xp = namespace(outputs[0])
        return xp.asarray(sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)))

    def backward(self, dy: Array) -> Gradients:
        return tuple(dy * w for w in self.weights)


def as_tensors(inputs: Any, name: str) -> list[Tensor]:
    """What gradcheck is given, as float64 Tensors without gradients; TypeError for others."""
    if isinstance(inputs, Tensor) or is_array(inputs):
        inputs = [inputs]
    tensors = [_as_tensor(value, position, name) for position, value in enumerate(inputs)]
    for tensor in tensors:
        tensor.grad = None
    return tensors


def _as_tensor(value: Any, position: int, name: str) -> Tensor:
    if is_array(value):
        value = Tensor(value.copy(), requires_grad=True)
    if not isinstance(value, Tensor) or (value.requires_grad and value.data.dtype != np.float64):
        raise TypeError(
            f"gradcheck of {name}: argument {position} must be a float64 array or Tensor, got "
            f"{describe(value.data) if isinstance(value, Tensor) else repr(value)}: "
            "finite differences in float32 are too coarse to tell right from wrong"
        )
    return value
