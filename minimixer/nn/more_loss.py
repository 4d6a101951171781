"""Beside the loss: softmax and its logarithm as operations of their own, and the squared error.

A network's scores become probabilities when they are looked at, or go on into something else than a
loss. Then softmax has a gradient of its own, which is not as simple as with the loss behind it.

>>> from minimixer import Tensor
>>> from minimixer.nn.more_loss import softmax
>>> z = Tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> p = softmax(z)
>>> p[2].backward()
>>> print(p.data.round(3), z.grad.round(3))
[0.09  0.245 0.665] [-0.06  -0.163  0.223]
"""

from typing import Any, TypeVar

from ..engine.arrays import Array, is_array
from ..engine.autograd import Function, Variable
from ..engine.checks import no_others, whole
from ..engine.more_ops import power
from ..engine.ops import subtract
from ..engine.precision import widen
from ..engine.rearrange import mean
from ..engine.rearrange import sum as sum_of
from ..engine.tensor import Tensor
from .loss import REDUCTIONS, shifted_softmax

Scores = TypeVar("Scores")  # a Tensor or an array: what goes in comes out


def mse_loss(x: Any, target: Any, reduction: str = "mean") -> Tensor:
    """(x - target)^2 of two Tensors or arrays of one shape: its "mean" or "sum" -> (), or "none".
    ValueError for other shapes, which broadcasting would hide."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"mse_loss: reduction must be in {REDUCTIONS}, got {reduction!r}")
    shapes = [getattr(a, "shape", ()) for a in (x, target)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"mse_loss: x is {shapes[0]} and target {shapes[1]}; they must be alike")
    square = power(subtract(x, target), 2)
    if reduction == "none":
        return square
    return mean(square) if reduction == "mean" else sum_of(square)


class Softmax(Function):
    """p[k] = e^z[k] / sum_j e^z[j] along one axis.

    z[k] is in the numerator of p[k] and in everyone's denominator:
        d p[j] / d z[k] = p[j] ([j = k] - p[k]),
        dz[k] = sum_j dp[j] p[j] ([j = k] - p[k]) = p[k] (dp[k] - sum_j dp[j] p[j]).
    So a row of dz sums to 0, as adding a number to all of z changes nothing. Kept: p.
    """

    takes_numbers = False
    quiet = True

    @staticmethod
    def check(z: Array, axis: int) -> None:
        _check_axis(z, axis)

    def forward(self, z: Array, axis: int) -> Array:
        self.axis: int = _check_axis(z, axis)
        p = shifted_softmax(z, axis)[1]
        self.p: Array = p if self.needs[0] else None
        return p

    def backward(self, dp: Array) -> Array:
        dz = dp * self.p
        dz -= self.p * dz.sum(axis=self.axis, keepdims=True)
        return dz


class LogSoftmax(Function):
    """y[k] = log p[k] = z[k] - log sum_j e^z[j]: d y[j] / d z[k] = [j = k] - p[k], so
    dz[k] = dy[k] - p[k] sum_j dy[j]. Kept: p."""

    takes_numbers = False
    quiet = True

    def forward(self, z: Array, axis: int) -> Array:
        self.axis: int = _check_axis(z, axis)
        y, p, log_total = shifted_softmax(z, axis)
        self.p: Array = p if self.needs[0] else None
        y -= log_total.astype(y.dtype)
        return y

    def backward(self, dy: Array) -> Array:
        return dy - self.p * dy.sum(axis=self.axis, keepdims=True)


def _check_axis(z: Array, axis: Any) -> int:
    axis = whole(axis, "the axis")
    if not -z.ndim <= axis < z.ndim or z.shape[axis] == 0:
        raise ValueError(f"there must be an axis {axis}, of at least one element")
    return axis


def softmax(logits: Scores, axis: int = -1, **unknown: Any) -> Scores:
    """Scores -> probabilities along `axis`: of a Tensor a Tensor, which has its gradient; of an
    array an array, float32 or float64. ValueError: no such axis, or an empty one."""
    return _along_axis(Softmax, logits, axis, unknown)


def log_softmax(logits: Scores, axis: int = -1, **unknown: Any) -> Scores:
    """The logarithm of `softmax`, which stays finite where a probability is too small for a
    number: of a Tensor a Tensor, of an array an array."""
    return _along_axis(LogSoftmax, logits, axis, unknown)


def _along_axis(function: type[Function], logits: Any, axis: int, unknown: dict[str, Any]) -> Any:
    no_others(unknown)
    if isinstance(logits, Variable):
        return function.apply(logits, axis=axis)
    return function.apply(widen(logits) if is_array(logits) else logits, axis=axis).data
