"""Is a gradient right? Compare it with what it means: how the result moves when an input does.

For a number L and one element x_i of an input, the central difference is, by Taylor's theorem,

    (L(x_i + h) - L(x_i - h)) / 2h  =  dL/dx_i + h^2/6 L''' + ...

In float64 with h = 1e-5 max(1, |x_i|) both the neglected term and the rounding of the difference
are about 1e-10 of L. A gradient that is wrong by one part in a thousand shows, unless it is itself
a thousand times smaller than the largest of the same input, or a million times smaller than 1 and
L's terms. To check a function of many outputs, L is their sum with random weights: all show.

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
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .arrays import describe, device_of, to_device
from .checks import whole
from .grad_mode import enable_grad
from .tensor import Tensor
from .watching import GradientError
from .weighted_sum import WeightedSum, as_tensors  # L; and what is checked, as Tensors


def difference(tensor: Tensor, where: Any, move: Any, number: Callable[[], float]) -> float:
    """(L(x + move) - L(x - move)) / 2, with x moved at `where` only; it is put back afterwards."""
    original = tensor.data.copy()
    try:
        tensor.data[where] = original[where] + move
        above = number()
        tensor.data[where] = original[where] - move
        below = number()
    finally:
        tensor.data[...] = original
    return (above - below) / 2


def compared(
    tensor: Tensor, number: Callable[[], float], directions: int | None, random: np.random.Generator
) -> Iterator[tuple[str, float, float]]:
    """(where, what backward says, what differences say): for each element, or each direction."""
    found = np.zeros(tensor.shape) if tensor.grad is None else to_device(tensor.grad, "cpu")
    for index in np.ndindex(*tensor.shape) if directions is None else ():
        h = 1e-5 * max(1.0, abs(float(tensor.data[index])))
        yield f"index {index}", float(found[index]), difference(tensor, index, h, number) / h
    h = 1e-5 / math.sqrt(tensor.size)  # so the whole move is about 1e-5 long
    for step in [random.standard_normal(tensor.shape) for _ in range(directions or 0)]:
        move = to_device(np.asarray(h * step), device_of(tensor.data))
        with np.errstate(invalid="ignore"):  # infinite gradients are reported by who asks
            slope = float((found * step).sum())
        yield "a random direction", slope, difference(tensor, ..., move, number) / h


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
    if directions is not None and whole(directions, "directions") < 1:
        raise ValueError(f"gradcheck: directions must be at least 1, got {directions}")
    tensors = as_tensors(inputs, name)
    random = np.random.default_rng(seed)
    with enable_grad():
        # L: number() computes it again, number.size is the sum of its terms' sizes.
        number = WeightedSum(function, tensors, name, random)
        number.backward()
        for position, tensor in enumerate(tensors):
            if not tensor.requires_grad or tensor.size == 0:
                continue
            found = list(compared(tensor, number, directions, random))
            largest = max(abs(differences_say) for _, _, differences_say in found)
            allowed = tolerance * largest + 1e-9 * (number.size + 1)
            for where, backward_says, differences_say in found:
                if not abs(backward_says - differences_say) <= allowed < np.inf:  # nor NaN
                    raise GradientError(
                        f"{name}: gradient of argument {position}, {describe(tensor.data)}, at "
                        f"{where}: backward gives {backward_says:.9g}, finite differences "
                        f"{differences_say:.9g}; {_hint([pair for _, *pair in found])}"
                    )
        number.check_arrays()
    return True


def _hint(pairs: list[list[float]]) -> str:
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
