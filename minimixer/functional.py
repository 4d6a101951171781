"""The layers' mathematics, with gradients derived by hand.

Each of these could be composed of the primitives and left to autograd (the tests do that, to
compare). Deriving the gradient of the whole gives less work and less memory: one pass instead
of one per primitive, and nothing kept that can be had cheaply again. Notation: dx stands for
dL/dx; sums run over all indices that do not appear on the left.

Activations may be stored in two bytes (bfloat16, float16): half the memory, and products on a
GPU's tensor cores. They are then widened to float32, computed with, and rounded when stored;
means, variances and the gradients of weights, sums of very many terms, stay float32.

>>> import numpy as np
>>> from minimixer import Tensor
>>> x = Tensor(np.array([[1.0, 2.0, 3.0]]), requires_grad=True)
>>> linear(x, Tensor(np.ones((3, 2))), Tensor(np.array([0.0, 10.0])))
Tensor([[ 6., 16.]], dtype=float64, requires_grad=True)

Next: `parameters.py`, where the weights live.
"""

import math
from typing import Any

from .autograd import Function
from .backend import Array, matmul, namespace, sum_rows, wide, widen
from .erf import erf
from .habits import missing
from .layer_norm import AddBias as AddBias
from .layer_norm import AddLayerNorm as AddLayerNorm
from .layer_norm import add_bias as add_bias
from .layer_norm import add_layer_norm as add_layer_norm
from .layer_norm import as_rows
from .layer_norm import layer_norm as layer_norm
from .loss import cross_entropy as cross_entropy
from .loss import log_softmax as log_softmax
from .loss import mse_loss as mse_loss
from .loss import softmax as softmax
from .loss_scale import ScaleGradient as ScaleGradient
from .loss_scale import scale_gradient as scale_gradient
from .ops import relu as relu
from .tensor import Tensor

# ---- linear -------------------------------------------------------------------------------------


class Linear(Function):
    """y = x W + b, that is y[m, j] = sum_i x[m, i] W[i, j] + b[j]  (m: all leading axes).

    dx[m, i] = sum_j dy[m, j] W[i, j]       dx = dy W^T
    dW[i, j] = sum_m x[m, i] dy[m, j]       dW = x^T dy
    db[j]    = sum_m dy[m, j]               the broadcast of b, undone
    """

    takes_numbers = False
    optional = (2,)
    half = True

    def forward(self, x, weight, bias=None):
        if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
            raise ValueError("x must be (..., in) and weight (in, out), with the same `in`")
        if bias is not None and bias.shape != weight.shape[1:]:
            raise ValueError(f"bias must have shape {weight.shape[1:]}")
        rows = as_rows(x)
        self.shape = x.shape
        self.x = rows if self.needs[1] else None
        self.weight = weight if self.needs[0] else None
        y = matmul(rows, weight, precision=self.precision, bias=bias)
        return y.reshape(*x.shape[:-1], weight.shape[1])

    def backward(self, dy):
        dy = as_rows(dy)
        dx = dweight = None
        if self.needs[0]:
            dx = matmul(dy, self.weight.T, precision=self.precision).reshape(self.shape)
        if self.needs[1]:
            dweight = weight_gradient(self.x.T, dy, self.precision, self.destination(1))
        return dx, dweight, sum_rows(dy) if self.needs[2] else None


def weight_gradient(a: Array, b: Array, precision: str | None, out: Array | None) -> Array:
    """a @ b, a sum over the whole batch, in the Parameters' dtype even if a and b are shorter;
    straight to where it belongs, `out`, if that is known."""
    if out is None:
        out = namespace(a).empty((a.shape[0], b.shape[1]), dtype=wide(a.dtype))
    return matmul(a, b, out=out, precision=precision)


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x (..., in), weight (in, out), bias (out,) or None -> (..., out). ValueError on shapes."""
    return Linear.apply(x, weight, bias)


# ---- GELU ---------------------------------------------------------------------------------------
#
# gelu(x) = x Phi(x), where Phi is the distribution function of the standard normal (Hendrycks and
# Gimpel 2016). Exactly, Phi(x) = (1 + erf(x / sqrt 2)) / 2, so with Phi' = phi, the density,
#     gelu'(x) = Phi(x) + x phi(x),    phi(x) = e^(-x^2 / 2) / sqrt(2 pi).
# The tanh form puts Phi(x) = (1 + t) / 2 with t = tanh(u), u = k (x + a x^3); then
#     gelu'(x) = Phi + x Phi',    Phi' = (1 - t^2) / 2 u' = 2 Phi (1 - Phi) k (1 + 3 a x^2).

_K, _A = math.sqrt(2 / math.pi), 0.044715


def _phi_tanh(x: Array, want_slope: bool) -> tuple[Array, Array | None]:
    """Phi(x) and, if asked for, x Phi'(x)."""
    square = x * x  # and x * square for the cube: NumPy's x**3 is ten times slower
    namespace(x).minimum(square, 100, out=square)  # Phi is 0 or 1 there; no infinities below
    phi = square * (_K * _A)
    phi += _K
    phi *= x
    namespace(x).tanh(phi, out=phi)
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
    namespace(x).exp(slope, out=slope)
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
    """gelu(x) and, if asked for, gelu'(x), which share their dearest part, Phi. The slope of
    two-byte numbers is not rounded."""
    check_form(approximate)
    wide_x = widen(x.reshape(-1))  # NumPy makes numbers of 0-d arrays
    phi, slope = _PHI[approximate](wide_x, want_slope)
    if slope is not None:
        slope += phi
        slope = slope.reshape(x.shape)
    phi *= wide_x
    return phi.astype(x.dtype, copy=False).reshape(x.shape), slope


class GELU(Function):
    """dx = dy gelu'(x), with the slope kept from forward."""

    takes_numbers = False
    half = quiet = True

    def forward(self, x, approximate):
        y, self.slope = gelu_and_slope(x, approximate, want_slope=self.needs[0])
        return y

    def backward(self, dy):
        return (dy * self.slope).astype(dy.dtype, copy=False)


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """x Phi(x), elementwise: exactly ("none") or in the tanh form ("tanh"), which differs by at
    most 4.7e-4. The paper's authors use the tanh form. ValueError for another `approximate`."""
    return GELU.apply(x, approximate=check_form(approximate))


# ---- the MLP ------------------------------------------------------------------------------------


class MLP(Function):
    """y = gelu(x W1 + b1) W2 along the last axis, or the same along the first.

    With u = x W1 + b1 and g = gelu(u), the chain rule through two linear maps and GELU is
        dg = dy W2^T,  dW2 = g^T dy,  du = dg gelu'(u),  db1 = sum du,  dW1 = x^T du,  dx = du W1^T.
    Kept for backward: x, g and gelu'(u); u itself is not needed again. du is written over dg.

    S and C here are just the lengths of x's first and last axis; mixer.py says what they stand for.
    Along the first axis x is (S, ...): every column x[:, c] goes through the same MLP, which is the
    paper's token mixing without its transposes. Then u = W1^T x + b1 with x as an S x n matrix and
    y = W2 g, and all products above appear transposed. Both weights are (S, D_S), so that every
    product runs along the long contiguous rows of x and g.
    """

    takes_numbers = False
    half = True

    def check(self, x, w1, b1, w2, axis, approximate):
        check_form(approximate)
        if axis not in (0, -1):
            raise ValueError(f"axis must be 0 (first) or -1 (last), got {axis}")
        if x.ndim < 2:
            raise ValueError("x needs at least two dimensions, (..., in) or (in, ...)")
        if w1.ndim != 2 or w1.shape[0] != x.shape[axis]:
            raise ValueError(f"w1 must be (in, hidden) with in = {x.shape[axis]}")
        if b1.shape != w1.shape[1:]:
            raise ValueError(f"b1 must have shape {w1.shape[1:]}")
        first = axis == 0
        if w2.shape != (w1.shape if first else w1.shape[::-1]):
            raise ValueError(f"w2 must have shape {w1.shape if first else w1.shape[::-1]}")

    def forward(self, x, w1, b1, w2, axis, approximate):
        self.check(x, w1, b1, w2, axis, approximate)
        first, precision = axis == 0, self.precision
        self.first, self.shape = first, x.shape
        x = x.reshape(len(x), math.prod(x.shape[1:])) if first else as_rows(x)
        if first:
            u = matmul(w1.T, x, precision=precision)  # (D_S, n)
            u += b1[:, None]
        else:
            u = matmul(x, w1, precision=precision)  # (n, D_C)
            u += b1
        g, slope = gelu_and_slope(u, approximate, want_slope=any(self.needs))
        y = matmul(w2, g, precision=precision) if first else matmul(g, w2, precision=precision)
        if any(self.needs):
            self.x, self.w1, self.w2, self.g, self.slope = x, w1, w2, g, slope
        return y.reshape(self.shape)

    def backward(self, dy):
        if self.first:
            return self._backward_first(dy.reshape(len(dy), math.prod(dy.shape[1:])))
        dy = as_rows(dy)
        dx = dw1 = db1 = None
        dw2 = self.weight_gradient(3, self.g.T, dy)
        if any(self.needs[:3]):
            du = self.times_slope(matmul(dy, self.w2.T, precision=self.precision))
            db1 = sum_rows(du) if self.needs[2] else None
            dw1 = self.weight_gradient(1, self.x.T, du)
            if self.needs[0]:
                dx = matmul(du, self.w1.T, precision=self.precision).reshape(self.shape)
        return dx, dw1, db1, dw2

    def _backward_first(self, dy):
        dx = dw1 = db1 = None
        dw2 = self.weight_gradient(3, dy, self.g.T)
        if any(self.needs[:3]):
            du = self.times_slope(matmul(self.w2.T, dy, precision=self.precision))
            db1 = widen(du).sum(axis=1) if self.needs[2] else None
            dw1 = self.weight_gradient(1, self.x, du.T)
            if self.needs[0]:
                dx = matmul(self.w1, du, precision=self.precision).reshape(self.shape)
        return dx, dw1, db1, dw2

    def weight_gradient(self, position: int, a: Array, b: Array) -> Array | None:
        if not self.needs[position]:
            return None
        return weight_gradient(a, b, self.precision, self.destination(position))

    def times_slope(self, dg: Array) -> Array:
        """du = dg gelu'(u), over dg."""
        namespace(dg).multiply(dg, self.slope, out=dg, casting="unsafe")
        return dg


def mlp(x: Any, w1: Any, b1: Any, w2: Any, axis: int = -1, approximate: str = "tanh") -> Tensor:
    """gelu(x w1 + b1) w2 along `axis`, without the last bias (paper, equation 1).

    axis=-1: x (..., in), w1 (in, hidden), b1 (hidden,), w2 (hidden, in) -> (..., in)
    axis=0:  x (in, ...), w1 (in, hidden), b1 (hidden,), w2 (in, hidden) -> (in, ...)
    The last bias is added by what comes next, `add_layer_norm`. ValueError on shapes. GELU is in
    the authors' form unless told otherwise, where `gelu` itself follows PyTorch's default.
    """
    return MLP.apply(x, w1, b1, w2, axis=axis, approximate=approximate)


def __getattr__(name: str) -> Any:  # what is not there
    raise missing("functional", name, "functional")
