"""The layers' mathematics, with gradients derived by hand.

Each of these could be composed of the engine's operations (the tests do that, to compare). The
gradient of the whole, derived by hand, is less work and less memory: one pass instead of one for
each operation, and nothing kept that can be had cheaply again.

>>> from minimixer import Tensor, functional
>>> functional.linear(Tensor([[1.0, 2.0]]), Tensor([[1.0, 0.0], [1.0, 1.0]]), Tensor([0.0, 10.0]))
Tensor([[ 3., 12.]], dtype=float32)

Now you can do Task 7. Next: `parameters.py`, Parameter, a window into one flat buffer.
"""

import math
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..engine.autograd import Function, Gradients
from ..engine.erf import erf  # 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x
from ..engine.habits import missing
from ..engine.more_ops import relu as relu  # "as relu": to be found here, not used here
from ..engine.products import as_columns, as_rows, matmul, sum_rows  # arrays seen as matrices
from ..engine.tensor import Tensor
from .layer_norm import LayerNorm as LayerNorm
from .layer_norm import layer_norm as layer_norm
from .loss import cross_entropy as cross_entropy
from .more_loss import log_softmax as log_softmax
from .more_loss import mse_loss as mse_loss
from .more_loss import softmax as softmax

# ---- linear -------------------------------------------------------------------------------------


class Linear(Function):
    """y = x W + b, that is y[m, j] = sum_i x[m, i] W[i, j] + b[j]  (m: all leading axes).

    dx[m, i] = sum_j dy[m, j] W[i, j]       dx = dy W^T
    dW[i, j] = sum_m x[m, i] dy[m, j]       dW = x^T dy
    db[j]    = sum_m dy[m, j]               the broadcast of b, undone
    """

    takes_numbers = False
    optional: tuple[int, ...] = (2,)

    @staticmethod
    def check(x: Array, weight: Array, bias: Array | None = None) -> None:
        if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
            raise ValueError("x must be (..., in) and weight (in, out), with the same `in`")
        if bias is not None and bias.shape != weight.shape[1:]:
            raise ValueError(f"bias must have shape {weight.shape[1:]}")

    def forward(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        self.check(x, weight, bias)
        rows = as_rows(x)
        self.shape: tuple[int, ...] = x.shape
        self.x: Array = rows if self.needs[1] else None
        self.weight: Array = weight if self.needs[0] else None
        y = matmul(rows, weight)
        if bias is not None:
            y += bias
        return y.reshape(*x.shape[:-1], weight.shape[1])

    def backward(self, dy: Array) -> Gradients:
        dy = as_rows(dy)
        dx = matmul(dy, self.weight.T).reshape(self.shape) if self.needs[0] else None
        dweight = matmul(self.x.T, dy) if self.needs[1] else None
        return dx, dweight, sum_rows(dy) if self.needs[2] else None


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x (..., in), weight (in, out), bias (out,) or None -> (..., out). ValueError on shapes."""
    return Linear.apply(x, weight, bias)


class LinearFirst(Function):
    """The same along the first axis: y = W x + b, y[j, m] = sum_i W[j, i] x[i, m] + b[j], where m
    are all other axes. Nothing is transposed for it: x[i, :] is one long row already.

    dx = W^T dy,  dW = dy x^T,  db[j] = sum_m dy[j, m]

    W is stored as it stands here, or the other way round, as `linear` has it: `transposed`.
    """

    takes_numbers = False
    optional: tuple[int, ...] = (2,)

    @staticmethod
    def check(x: Array, weight: Array, bias: Array | None, transposed: bool) -> None:
        sizes = weight.shape[::-1] if transposed else weight.shape  # (out, in)
        if len(sizes) != 2 or x.ndim == 0 or len(x) != sizes[1]:
            stored = "(in, out)" if transposed else "(out, in)"
            raise ValueError(f"x must be (in, ...) and weight {stored}, with the same `in`")
        if bias is not None and bias.shape != sizes[:1]:
            raise ValueError(f"bias must have shape {sizes[:1]}")

    def forward(self, x: Array, weight: Array, bias: Array | None, transposed: bool) -> Array:
        self.check(x, weight, bias, transposed)
        columns = as_columns(x)
        self.shape, self.transposed = x.shape, transposed
        self.x: Array = columns if self.needs[1] else None
        self.weight: Array = weight if self.needs[0] else None
        y = matmul(weight.T if transposed else weight, columns)
        if bias is not None:
            y += bias[:, None]
        return y.reshape(len(y), *x.shape[1:])

    def backward(self, dy: Array) -> Gradients:
        dy = as_columns(dy)
        dx = dweight = None
        if self.needs[0]:
            dx = matmul(self.weight if self.transposed else self.weight.T, dy).reshape(self.shape)
        if self.needs[1]:
            dweight = matmul(self.x, dy.T) if self.transposed else matmul(dy, self.x.T)
        return dx, dweight, dy.sum(axis=1) if self.needs[2] else None


def linear_first(x: Any, weight: Any, bias: Any = None, transposed: bool = False) -> Tensor:
    """x (in, ...), weight (out, in), or (in, out) if `transposed`, bias (out,) or None ->
    (out, ...). ValueError on shapes."""
    return LinearFirst.apply(x, weight, bias, transposed=bool(transposed))


# ---- GELU ---------------------------------------------------------------------------------------
#
# Two linear maps with nothing between them are one, (x A) B = x (A B). ReLU, max(0, x), would do;
# but its slope jumps at 0, and is 0 for all x below, where nothing is learnt. GELU (Hendrycks and
# Gimpel 2016) is smooth: gelu(x) = x Phi(x), Phi(x) being the probability that a standard normal
# number is below x (`phi` in the code). Its slope is gelu'(x) = Phi(x) + x Phi'(x). Exactly,
#     Phi(x) = (1 + erf(x / sqrt 2)) / 2,    Phi'(x) = e^(-x^2 / 2) / sqrt(2 pi), the density.
# The tanh form puts Phi(x) = (1 + t) / 2 with t = tanh(k (x + a x^3)); then
#     Phi' = (1 - t^2) / 2 k (1 + 3 a x^2) = 2 Phi (1 - Phi) k (1 + 3 a x^2).
# Both are computed in place, for speed.
# (np.tanh and the like hand an array of CuPy's on to CuPy.)

_K, _A = math.sqrt(2 / math.pi), 0.044715


def _phi_tanh(x: Array, want_slope: bool) -> tuple[Array, Array | None]:
    """Phi(x) and, if asked for, x Phi'(x)."""
    square = x * x  # and x * square for the cube: NumPy's x**3 is far slower, most where x < 0
    np.minimum(square, 100, out=square)  # Phi is 0 or 1 there; no infinities below
    phi = square * (_K * _A)
    phi += _K
    phi *= x
    np.tanh(phi, out=phi)
    phi *= 0.5
    phi += 0.5
    if not want_slope:
        return phi, None
    square *= 6 * _K * _A
    square += 2 * _K
    square *= phi
    square *= 1 - phi
    square *= x
    return phi, square


def _phi_exact(x: Array, want_slope: bool) -> tuple[Array, Array | None]:
    phi = erf(x * math.sqrt(0.5))
    phi += 1
    phi *= 0.5
    if not want_slope:
        return phi, None
    slope = x * x
    slope *= -0.5
    np.exp(slope, out=slope)
    slope *= x
    slope *= 1 / math.sqrt(2 * math.pi)
    return phi, slope


_PHI = {"tanh": _phi_tanh, "none": _phi_exact}


def check_form(approximate: Any) -> str:
    """ValueError unless it is the name of a form of GELU."""
    if approximate not in tuple(_PHI):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return approximate


def gelu_and_slope(x: Array, approximate: str, want_slope: bool) -> tuple[Array, Array | None]:
    """gelu(x) and, if asked for, gelu'(x), which share what costs most, Phi."""
    flat = x.reshape(-1)  # NumPy makes numbers of 0-d arrays
    phi, slope = _PHI[approximate](flat, want_slope)  # slope so far: x Phi'(x)
    if slope is not None:
        slope += phi
        slope = slope.reshape(x.shape)
    phi *= flat
    return phi.reshape(x.shape), slope


class GELU(Function):
    """dx = dy gelu'(x), with the slope kept from forward."""

    takes_numbers = False
    quiet = True

    def forward(self, x: Array, approximate: str) -> Array:
        y, self.slope = gelu_and_slope(x, approximate, want_slope=self.needs[0])
        return y

    def backward(self, dy: Array) -> Array:
        return dy * self.slope


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """x Phi(x), elementwise: exactly ("none") or in the tanh form ("tanh"), which differs by at
    most 4.8e-4. The paper's authors use the tanh form, and Mixer does so unless told otherwise.
    ValueError for another `approximate`."""
    return GELU.apply(x, approximate=check_form(approximate))


def __getattr__(name: str) -> Any:  # what is not there
    raise missing("functional", name, "functional")
