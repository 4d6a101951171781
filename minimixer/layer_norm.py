"""LayerNorm, and the residual connection before it, with gradients derived by hand.

LayerNorm brings every row of C numbers to mean 0 and variance 1, then scales and shifts it per
channel. In a network of residual blocks each of them is preceded by an addition, so the two are
one operation here: the sum is then read once instead of twice.

>>> import numpy as np
>>> x = Tensor(np.array([[1.0, 2.0, 3.0]]), requires_grad=True)
>>> layer_norm(x, Tensor(np.ones(3)), Tensor(np.zeros(3)))
Tensor([[-1.22474395,  0.        ,  1.22474395]], dtype=float64, requires_grad=True)

Next: `functional.py`, the other layers.
"""

import math
from typing import Any

import numpy as np

from .autograd import Function
from .backend import Array, matmul, namespace, sum_rows, widen
from .checks import check_number
from .tensor import Tensor


def as_rows(x: Array) -> Array:
    """(..., n) as a matrix of rows of length n, also if there are none or n is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


class AddLayerNorm(Function):
    """s = x + y + bias;  h = gamma x_hat + beta  with  x_hat = (s - mean) / sigma,

    mean and sigma^2 = variance + epsilon over the C elements of each row of s. The mean is taken
    off before squaring: E[s^2] - E[s]^2 would lose all digits in float32 where mean >> sigma. It is
    taken off twice, since 6e-8 of a large mean may be much beside sigma.

    Backward. h gives dgamma = sum dh x_hat and dbeta = sum dh over the rows, and
    dx_hat = gamma dh. Within a row, x_hat depends on s[i] directly, through the mean and
    through sigma:  d x_hat[j] / d s[i] = (delta_ij - 1/C - x_hat[i] x_hat[j] / C) / sigma. So
        ds = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma  +  ds from s itself:
    what is left of dx_hat once its mean and its part along x_hat are gone. A bias that only shifts
    all of a row thus gets no gradient from h. Kept: x_hat and 1/sigma; s is not needed.
    """

    takes_numbers = False
    optional = (1, 2)
    half = True

    def check(self, x, y, bias, gamma, beta, bias_axis):
        channels = x.shape[-1] if x.ndim else 0
        if y is not None and y.shape != x.shape:
            raise ValueError("x and y must have the same shape")
        if not channels or gamma.shape != (channels,) or beta.shape != (channels,):
            raise ValueError(f"gamma and beta must have the shape of a row, ({channels},)")
        if bias is not None and (bias_axis not in (0, -1) or bias.shape != (x.shape[bias_axis],)):
            raise ValueError("bias must be a vector along the first (0) or last axis (-1)")

    def forward(self, x, y, bias, gamma, beta, epsilon, bias_axis):
        self.check(x, y, bias, gamma, beta, bias_axis)
        xp = namespace(x)
        self.bias_axis = bias_axis
        s = x if y is None else widen(x) + widen(y)
        if bias is not None:
            if bias_axis == 0:
                bias = bias.reshape(-1, *[1] * (x.ndim - 1))
            s = widen(s) + widen(bias) if y is None else _add_into(s, widen(bias))
        s = s.astype(x.dtype, copy=False)
        x_hat = widen(s)  # of what is stored: backward sees the same
        x_hat = x_hat - x_hat.mean(axis=-1, keepdims=True)
        x_hat -= x_hat.mean(axis=-1, keepdims=True)  # what rounding of a large mean has left
        with np.errstate(over="ignore"):  # the variance of huge numbers is infinite, x_hat 0
            variance = (x_hat * x_hat).mean(axis=-1, keepdims=True)
        inverse_sigma = 1 / xp.sqrt(variance + epsilon)
        x_hat *= inverse_sigma
        gamma = widen(gamma)
        h = x_hat * gamma
        h += widen(beta)
        if any(self.needs):
            self.x_hat, self.inverse_sigma, self.gamma = x_hat, inverse_sigma, gamma
        return s, h.astype(x.dtype, copy=False)

    def backward(self, ds, dh):
        dgamma = dbeta = dbias = None
        dtype = dh.dtype if ds is None else ds.dtype
        ds = None if ds is None else widen(ds)
        if dh is not None:
            dh = widen(dh)
            product = dh * self.x_hat
            dgamma = sum_rows(as_rows(product)) if self.needs[3] else None
            dbeta = sum_rows(as_rows(dh)) if self.needs[4] else None
            if any(self.needs[:3]):
                dx = dh * self.gamma
                dx -= self._row_mean(dh)
                dx -= self.x_hat * self._row_mean(product)
                dx *= self.inverse_sigma
                ds = dx if ds is None else _add_into(dx, ds)
        if self.needs[2]:
            dbias = bias_gradient(ds, self.bias_axis)
        if ds is not None:
            ds = ds.astype(dtype, copy=False)
        return ds if self.needs[0] else None, ds if self.needs[1] else None, dbias, dgamma, dbeta

    def _row_mean(self, array: Array) -> Array:
        """mean_c of gamma[c] array[..., c], as one product."""
        rows = as_rows(array)
        means = matmul(rows, self.gamma[:, None])
        means /= rows.shape[1]
        return means.reshape(*array.shape[:-1], 1)


def _add_into(own: Array, other: Array) -> Array:
    own += other
    return own


def bias_gradient(ds: Array, axis: int) -> Array:
    """ds (..., C) summed over all axes but the one, 0 or -1, that a bias runs along."""
    if axis == -1:
        return sum_rows(as_rows(ds))
    return widen(ds).reshape(len(ds), math.prod(ds.shape[1:])).sum(axis=1)


def add_layer_norm(
    x: Any, y: Any, bias: Any, gamma: Any, beta: Any, epsilon: float = 1e-6, bias_axis: int = -1
) -> tuple[Tensor, Tensor]:
    """(s, LayerNorm(s)) for s = x + y + bias: a residual connection and the norm that follows it.

    x, y (..., C), y may be None; gamma, beta (C,); bias None or a vector along `bias_axis` of x:
    (C,) for -1, or one number for each x[i] for 0. ValueError on shapes.
    Ba, Kiros, Hinton 2016; epsilon as in the authors' code.
    """
    epsilon = check_epsilon(epsilon)
    return AddLayerNorm.apply(x, y, bias, gamma, beta, epsilon=epsilon, bias_axis=bias_axis)


def check_epsilon(epsilon: Any, name: str = "epsilon") -> float:
    """ValueError unless it is above zero, in float32 too: rows of equal numbers divide by it."""
    return check_number(name, epsilon, float(np.finfo(np.float32).tiny), 1e38, "[]")


class AddBias(Function):
    """y = x + bias along the first (0) or the last axis (-1): dx = dy, dbias = sum dy."""

    takes_numbers = False
    half = True

    def forward(self, x, bias, axis):
        if axis not in (0, -1) or bias.shape != (x.shape[axis],):
            raise ValueError("bias must be a vector along the first (0) or last axis (-1)")
        self.axis = axis
        return x + (bias.reshape(-1, *[1] * (x.ndim - 1)) if axis == 0 else bias)

    def backward(self, dy):
        return dy, bias_gradient(dy, self.axis) if self.needs[1] else None


def add_bias(x: Any, bias: Any, axis: int = -1) -> Tensor:
    """x (..., C) + bias, a vector along x's first (0) or last axis (-1). ValueError on shapes."""
    return AddBias.apply(x, bias, axis=axis)


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float = 1e-6) -> Tensor:
    """x (..., C) -> the same shape: each row to mean 0 and variance 1, times gamma plus beta
    (Ba, Kiros, Hinton 2016). ValueError on shapes."""
    return add_layer_norm(x, None, None, gamma, beta, epsilon)[1]
