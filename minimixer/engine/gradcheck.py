"""Is a gradient right? Compare it with what it means: how the result moves when an input does.

For a number L and one element x_i of an input, the central difference is, by Taylor's theorem,

    (L(x_i + h) - L(x_i - h)) / 2h  =  dL/dx_i + h^2/6 L''' + ...

In float64 with h = 1e-5 max(1, |x_i|) both the neglected term and the rounding of the difference
are about 1e-10 of L: unless the gradient is a million times smaller than L, or than the largest of
its input, one that is wrong by one part in a thousand is far outside. To check a function with many
outputs, L is their sum with random weights: a mistake in any output shows.

Numbers do not show everything: a Function that writes into an array which is not its own may be
right by itself and spoil what others make of that array. So it is also looked at whether forward
and backward leave what they are given as it was, and whether a second backward says the same.

>>> from minimixer import Tensor, gradcheck
>>> x = Tensor([0.5, -1.5, 2.0], dtype="float64", requires_grad=True)
>>> gradcheck(lambda x: (x * x.tanh()).sum(), [x])
True

Next: `nn/loss.py`, softmax cross-entropy.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arrays import Array, describe, device_of, is_array, namespace, to_device
from .autograd import Function, Gradients
from .checks import whole
from .grad_mode import enable_grad, no_grad
from .tensor import Tensor
from .watching import GradientError, Unchanged, backward_twice, watching


def gradcheck(
    function: Callable[..., Any],
    inputs: Any,
    directions: int | None = None,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> bool:
    """Check backward of `function(*inputs)` against central differences; True, or GradientError.

    inputs      float64 arrays, or Tensors of which those with requires_grad are checked (they may
                be the Parameters of a model that `function` calls); one alone needs no list
    directions  None: element by element, two evaluations each. n: along n random directions of
                each input, which finds that something is wrong but not where
    tolerance   allowed difference, relative to the largest gradient of that input. On top of it
                comes the rounding of L, taken as 1e-9 of (1 + the sum of its terms' sizes): so
                give inputs for which gradients are not tiny beside the outputs

    Afterwards the inputs' `grad` is that of L.

    The function must be smooth at `inputs` and return one or several float64 Tensors. GradientError
    too if forward or backward writes into an array that it did not make.
    """
    name = getattr(function, "__qualname__", repr(function))
    if isinstance(inputs, Tensor) or is_array(inputs):
        inputs = [inputs]
    tensors = [_as_tensor(value, position, name) for position, value in enumerate(inputs)]
    if directions is not None and whole(directions, "directions") < 1:
        raise ValueError(f"gradcheck: directions must be at least 1, got {directions}")
    random = np.random.default_rng(seed)
    for tensor in tensors:
        tensor.grad = None
    with enable_grad():
        return _check(function, tensors, name, directions, tolerance, random)


def _check(
    function: Callable[..., Any],
    tensors: Sequence[Tensor],
    name: str,
    directions: int | None,
    tolerance: float,
    random: np.random.Generator,
) -> bool:
    given = Unchanged([(f"argument {i}", t.data) for i, t in enumerate(tensors)])
    returned = Unchanged([])
    with watching(returned):
        outputs = _outputs(function, tensors, name)
    given.check(f"{name} changed", "must leave its inputs as they are")
    weights = [
        to_device(random.uniform(0.5, 1.5, y.shape) * random.choice([-1, 1], y.shape), y.device)
        for y in outputs
    ]
    needing = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if not needing:
        raise GradientError(f"{name}: no output depends on an input that requires a gradient")
    given.add([(f"output {i}", y.data) for i, y in enumerate(outputs)])
    total = _WeightedSum.apply(*[y for y, _ in needing], weights=[w for _, w in needing])
    backward_twice(total, given, returned, tensors, name)
    size = sum(float(abs(y.data * w).sum()) for y, w in zip(outputs, weights, strict=True))

    def weighted_sum() -> float:
        with no_grad():
            results = _outputs(function, tensors, name)
        return sum(float((y.data * w).sum()) for y, w in zip(results, weights, strict=True))

    for position, tensor in enumerate(tensors):
        if not tensor.requires_grad or tensor.size == 0:
            continue
        found = tensor.grad
        found = np.zeros(tensor.shape) if found is None else to_device(found, "cpu")
        original = tensor.data.copy()
        steps: list[Any]
        if directions is None:
            steps = list(np.ndindex(*tensor.shape))
        else:
            steps = [random.standard_normal(tensor.shape) for _ in range(directions)]
        pairs = []
        for step in steps:
            if directions is None:
                h = 1e-5 * max(1.0, abs(float(original[step])))
                change = _difference(tensor, original, step, h, weighted_sum)
                pairs.append((float(found[step]), change / h))
            else:
                h = 1e-5 / math.sqrt(tensor.size)
                move = to_device(np.asarray(h * step), device_of(original))
                change = _difference(tensor, original, ..., move, weighted_sum)
                with np.errstate(invalid="ignore"):  # infinite gradients are reported below
                    pairs.append((float((found * step).sum()), change / h))
        largest = max(abs(differences_say) for _, differences_say in pairs)
        allowed = tolerance * largest + 1e-9 * (size + 1)
        for step, (backward_says, differences_say) in zip(steps, pairs, strict=True):
            if not abs(backward_says - differences_say) <= allowed < np.inf:  # nor may it be NaN
                where = f"index {step}" if directions is None else "a random direction"
                raise GradientError(
                    f"{name}: gradient of argument {position}, {describe(tensor.data)}, at "
                    f"{where}: backward gives {backward_says:.9g}, finite differences "
                    f"{differences_say:.9g}; {_hint(pairs)}"
                )
    given.check(
        f"{name}: when it was called again, it changed", "must return new arrays at each call"
    )
    return True


class _WeightedSum(Function):
    """sum of weights * outputs. Not made of the package's own operations: if their backward had
    the wrong sign, checking them with themselves would take two wrongs for a right."""

    def forward(self, *outputs: Array, weights: Any) -> Array:
        self.weights = weights
        xp = namespace(outputs[0])
        return xp.asarray(sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)))

    def backward(self, dy: Array) -> Gradients:
        return tuple(dy * w for w in self.weights)


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


def _outputs(function: Callable[..., Any], tensors: Sequence[Tensor], name: str) -> list[Tensor]:
    result = function(*tensors)
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    for output in outputs:
        if not isinstance(output, Tensor) or output.dtype != np.float64:
            raise TypeError(f"gradcheck of {name}: it must return float64 Tensors, got {output!r}")
    return outputs


def _difference(
    tensor: Tensor, original: Any, where: Any, move: Any, weighted_sum: Callable[[], float]
) -> float:
    """(L(x + move) - L(x - move)) / 2, x moved at `where` only; it is put back afterwards."""
    try:
        tensor.data[where] = original[where] + move
        above = weighted_sum()
        tensor.data[where] = original[where] - move
        below = weighted_sum()
    finally:
        tensor.data[...] = original
    return (above - below) / 2


def _hint(pairs: Sequence[tuple[float, float]]) -> str:
    """What kind of mistake this looks like."""
    found, expected = np.array(pairs).T
    if not np.isfinite(found).all():
        return "look for a division by zero or an overflow in backward"
    if not found.any():
        return "all zero: look for a gradient returned as None, or an input cut off from the graph"
    factor = (found @ expected) / max(expected @ expected, 1e-300)
    if np.allclose(found, factor * expected, rtol=1e-4, atol=1e-12 * abs(expected).max()):
        return f"all are {factor:.6g} times too large: look for a factor or a sign"
    return "look for a missing term, a wrong axis, or a gradient buffer given to two inputs"
