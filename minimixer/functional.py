"""The layers' mathematics, with gradients derived by hand.

Each of these could be composed of the primitives and left to autograd (the tests do that, to
compare). Deriving the gradient of the whole gives less work and less memory: one pass instead
of one per primitive, and nothing kept that can be had cheaply again. Notation: dx stands for
dL/dx; sums run over all indices that do not appear on the left.

>>> import numpy as np
>>> from minimixer import Tensor
>>> x = Tensor(np.array([[1.0, 2.0, 3.0]]), requires_grad=True)
>>> layer_norm(x, Tensor(np.ones(3)), Tensor(np.zeros(3)))
Tensor([[-1.22474395  0.          1.22474395]], dtype=float64, requires_grad=True)

Next: `parameters.py`, where the weights live.
"""

import math
from typing import Any

from .autograd import Function
from .backend import Array, blocks, matmul, namespace
from .erf import erf
from .loss import cross_entropy as cross_entropy
from .loss import softmax as softmax
from .ops import sum_to_shape
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

    def forward(self, x, weight, bias=None):
        if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
            raise ValueError("x must be (..., in) and weight (in, out), with the same `in`")
        if bias is not None and bias.shape != weight.shape[1:]:
            raise ValueError(f"bias must have shape {weight.shape[1:]}")
        rows = _rows(x)
        self.shape = x.shape
        self.x = rows if self.needs[1] else None
        self.weight = weight if self.needs[0] else None
        y = matmul(rows, weight)
        if bias is not None:
            y += bias
        return y.reshape(*x.shape[:-1], weight.shape[1])

    def backward(self, dy):
        dy = _rows(dy)
        dx = matmul(dy, self.weight.T).reshape(self.shape) if self.needs[0] else None
        dweight = matmul(self.x.T, dy) if self.needs[1] else None
        dbias = sum_to_shape(dy, dy.shape[1:]) if self.needs[2] else None
        return dx, dweight, dbias


def _rows(x: Array) -> Array:
    """(..., n) as a matrix of rows of length n, also if there are none or n is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


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


def gelu_and_slope(
    x: Array, approximate: str, want_slope: bool, overwrite: bool = False
) -> tuple[Array, Array | None]:
    """gelu(x) and, if asked for, gelu'(x), which share their dearest part, Phi.

    With `overwrite` the slope takes x's place, so x must be ours. A CPU goes through x in blocks
    that stay in its cache: a third of the time of the same formulas on whole arrays.
    """
    if approximate not in _PHI:
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    xp = namespace(x)
    flat = x.reshape(-1)
    y = xp.empty_like(flat)
    slope = None if not want_slope else flat if overwrite else xp.empty_like(flat)
    for part in blocks(x):
        phi, x_phi_slope = _PHI[approximate](flat[part], want_slope)
        xp.multiply(phi, flat[part], out=y[part])
        if slope is not None:
            xp.add(phi, x_phi_slope, out=slope[part])
    return y.reshape(x.shape), None if slope is None else slope.reshape(x.shape)


class GELU(Function):
    """dx = dy gelu'(x), with the slope kept from forward."""

    takes_numbers = False

    def forward(self, x, approximate):
        y, self.slope = gelu_and_slope(x, approximate, want_slope=self.needs[0])
        return y

    def backward(self, dy):
        return dy * self.slope


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """x Phi(x), elementwise: exactly ("none") or in the tanh form ("tanh"), which differs by at
    most 4.7e-4. The paper's authors use the tanh form. ValueError for another `approximate`."""
    return GELU.apply(x, approximate=approximate)


# ---- the MLP ------------------------------------------------------------------------------------


class MLP(Function):
    """y = gelu(x W1 + b1) W2 along the last axis, or the same along the first.

    With u = x W1 + b1 and g = gelu(u), the chain rule through two linear maps and GELU is
        dg = dy W2^T,  dW2 = g^T dy,  du = dg gelu'(u),  db1 = sum du,  dW1 = x^T du,  dx = du W1^T.
    Kept for backward: x, g and gelu'(u), which takes the place of u. du is written over dg.

    S and C here are just the lengths of x's first and last axis; mixer.py says what they stand for.
    Along the first axis x is (S, ...): every column x[:, c] goes through the same MLP, which is the
    paper's token mixing without its transposes. Then u = W1^T x + b1 with x as an S x n matrix and
    y = W2 g, and all products above appear transposed. Both weights are (S, D_S), so that every
    product runs along the long contiguous rows of x and g.
    """

    takes_numbers = False

    def forward(self, x, w1, b1, w2, axis, approximate):
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
        self.first, self.shape = first, x.shape
        x = x.reshape(len(x), math.prod(x.shape[1:])) if first else _rows(x)
        if first:
            u = matmul(w1.T, x)  # (D_S, n)
            u += b1[:, None]
        else:
            u = matmul(x, w1)  # (n, D_C)
            u += b1
        g, slope = gelu_and_slope(u, approximate, want_slope=any(self.needs), overwrite=True)
        y = matmul(w2, g) if first else matmul(g, w2)
        if any(self.needs):
            self.x, self.w1, self.w2, self.g, self.slope = x, w1, w2, g, slope
        return y.reshape(self.shape)

    def backward(self, dy):
        if self.first:
            return self._backward_first(dy.reshape(len(dy), math.prod(dy.shape[1:])))
        dy = _rows(dy)
        dx = dw1 = db1 = None
        dw2 = matmul(self.g.T, dy) if self.needs[3] else None
        if any(self.needs[:3]):
            du = matmul(dy, self.w2.T)
            du *= self.slope
            db1 = sum_to_shape(du, du.shape[1:]) if self.needs[2] else None
            dw1 = matmul(self.x.T, du) if self.needs[1] else None
            dx = matmul(du, self.w1.T).reshape(self.shape) if self.needs[0] else None
        return dx, dw1, db1, dw2

    def _backward_first(self, dy):
        dx = dw1 = db1 = None
        dw2 = matmul(dy, self.g.T) if self.needs[3] else None
        if any(self.needs[:3]):
            du = matmul(self.w2.T, dy)
            du *= self.slope
            db1 = sum_to_shape(du, (len(du), 1))[:, 0] if self.needs[2] else None
            dw1 = matmul(self.x, du.T) if self.needs[1] else None
            dx = matmul(self.w1, du).reshape(self.shape) if self.needs[0] else None
        return dx, dw1, db1, dw2


def mlp(x: Any, w1: Any, b1: Any, w2: Any, axis: int = -1, approximate: str = "tanh") -> Tensor:
    """gelu(x w1 + b1) w2 along `axis`, without the last bias (paper, equation 1).

    axis=-1: x (..., in), w1 (in, hidden), b1 (hidden,), w2 (hidden, in) -> (..., in)
    axis=0:  x (in, ...), w1 (in, hidden), b1 (hidden,), w2 (in, hidden) -> (in, ...)
    The last bias is added by what comes next, `add_layer_norm`. ValueError on shapes. GELU is in
    the authors' form unless told otherwise, where `gelu` itself follows PyTorch's default.
    """
    return MLP.apply(x, w1, b1, w2, axis=axis, approximate=approximate)


# ---- LayerNorm ----------------------------------------------------------------------------------


class AddLayerNorm(Function):
    """s = x + y + bias;  h = gamma x_hat + beta  with  x_hat = (s - mean) / sigma,

    mean and sigma^2 = variance + epsilon over the C elements of each row of s. The mean is taken
    off before squaring: E[s^2] - E[s]^2 would lose all digits in float32 where mean >> sigma.

    Backward. h gives dgamma = sum dh x_hat and dbeta = sum dh over the rows, and
    dx_hat = gamma dh. Within a row, x_hat depends on s[i] directly, through the mean and
    through sigma:  d x_hat[j] / d s[i] = (delta_ij - 1/C - x_hat[i] x_hat[j] / C) / sigma. So
        ds = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma  +  ds from s itself:
    what is left of dx_hat once its mean and its part along x_hat are gone. A bias that only shifts
    all of a row thus gets no gradient from h. Kept: x_hat and 1/sigma; s is not needed.
    """

    takes_numbers = False
    optional = (1, 2)

    def forward(self, x, y, bias, gamma, beta, epsilon, bias_axis):
        xp = namespace(x)
        channels = x.shape[-1] if x.ndim else 0
        if y is not None and y.shape != x.shape:
            raise ValueError("x and y must have the same shape")
        if not channels or gamma.shape != (channels,) or beta.shape != (channels,):
            raise ValueError(f"gamma and beta must have the shape of a row, ({channels},)")
        if bias is not None:
            if bias_axis not in (0, -1) or bias.shape != (x.shape[bias_axis],):
                raise ValueError("bias must be a vector along the first (0) or last axis (-1)")
            if bias_axis == 0:
                bias = bias.reshape(-1, *[1] * (x.ndim - 1))
            self.bias_shape = bias.shape
        s = x if y is None else x + y
        if bias is not None:
            s = s + bias if y is None else _add_into(s, bias)
        x_hat = s - s.mean(axis=-1, keepdims=True)
        variance = xp.einsum("...c,...c->...", x_hat, x_hat)[..., None]
        variance /= channels
        variance += epsilon
        inverse_sigma = 1 / xp.sqrt(variance)
        x_hat *= inverse_sigma
        h = x_hat * gamma
        h += beta
        if any(self.needs):
            self.x_hat, self.inverse_sigma, self.gamma = x_hat, inverse_sigma, gamma
        return s, h

    def backward(self, ds, dh):
        dgamma = dbeta = dbias = None
        if dh is not None:
            product = dh * self.x_hat
            dgamma = sum_to_shape(product, self.gamma.shape) if self.needs[3] else None
            dbeta = sum_to_shape(dh, self.gamma.shape) if self.needs[4] else None
            if any(self.needs[:3]):
                dx = dh * self.gamma
                dx -= self._row_mean(dh)
                dx -= self.x_hat * self._row_mean(product)
                dx *= self.inverse_sigma
                ds = dx if ds is None else _add_into(dx, ds)
        if self.needs[2]:
            dbias = sum_to_shape(ds, self.bias_shape).reshape(-1)
        return ds if self.needs[0] else None, ds if self.needs[1] else None, dbias, dgamma, dbeta

    def _row_mean(self, array: Array) -> Array:
        """mean_c of gamma[c] array[..., c], as one product."""
        rows = _rows(array)
        means = matmul(rows, self.gamma[:, None])
        means /= rows.shape[1]
        return means.reshape(*array.shape[:-1], 1)


def _add_into(own: Array, other: Array) -> Array:
    own += other
    return own


def add_layer_norm(
    x: Any, y: Any, bias: Any, gamma: Any, beta: Any, epsilon: float = 1e-6, bias_axis: int = -1
) -> tuple[Tensor, Tensor]:
    """(s, LayerNorm(s)) for s = x + y + bias: a residual connection and the norm that follows it.

    x, y (..., C), y may be None; gamma, beta (C,); bias None or a vector along `bias_axis` of x:
    (C,) for -1, or one number for each x[i] for 0. ValueError on shapes.
    Ba, Kiros, Hinton 2016; epsilon as in the authors' code.
    """
    return AddLayerNorm.apply(x, y, bias, gamma, beta, epsilon=float(epsilon), bias_axis=bias_axis)


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float = 1e-6) -> Tensor:
    """x (..., C) -> the same shape: each row to mean 0 and variance 1, times gamma plus beta
    (Ba, Kiros, Hinton 2016). ValueError on shapes."""
    return add_layer_norm(x, None, None, gamma, beta, epsilon)[1]
