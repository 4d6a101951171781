"""LayerNorm, with its gradient derived by hand.

It brings every row of C numbers to mean 0 and variance 1, then scales and shifts each of the C
channels. Where layers add to what they are given, numbers grow from layer to layer (block.py has
measured it); with this in front, a layer meets numbers of one size, whatever came before it.

>>> from minimixer import Tensor
>>> from minimixer.nn.layer_norm import layer_norm
>>> y = layer_norm(Tensor([[1.0, 2.0, 3.0]]), Tensor([1.0, 1.0, 1.0]), Tensor([0.0, 0.0, 5.0]))
>>> print(y.data.round(3))
[[-1.225  0.     6.225]]

Now you can do Task 6. Next: `functional.py`, linear and gelu: likewise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..engine.autograd import Function, Gradients
from ..engine.checks import check_number
from ..engine.products import as_rows, row_means, sum_rows  # each row's mean; all rows' sum
from ..engine.tensor import Tensor


class LayerNorm(Function):
    """y = gamma x_hat + beta  with  x_hat = (x - mean) / sigma,

    mean and sigma^2 = variance + epsilon over the C elements of each row of x. The mean is taken
    off before squaring: mean(x^2) - mean^2 would lose all digits in float32 where mean >> sigma.

    Backward. dgamma = sum dy x_hat and dbeta = sum dy over the rows, and dx_hat = gamma dy. Within
    a row x[i] moves x_hat[j] directly, through the mean (by -1/C) and through sigma. With [i = j],
    which is 1 where i = j, else 0, and as sum_k (x[k] - mean) = 0,

        d sigma / d x[i] = 1/(2 sigma) 2/C sum_k (x[k] - mean) ([i = k] - 1/C) = x_hat[i] / C
        d x_hat[j] / d x[i] = ([i = j] - 1/C) / sigma - x_hat[j] / sigma d sigma / d x[i]
                            = ([i = j] - 1/C - x_hat[i] x_hat[j] / C) / sigma

    Times dx_hat[j] and summed over j that is

        dx = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma,

    dx_hat without its mean and its part along x_hat: a number added to all of a row, or (epsilon
    apart) a factor of all of it, would change nothing. Kept: x_hat, 1/sigma and gamma.
    """

    takes_numbers = False

    @staticmethod
    def check(x: Array, gamma: Array, beta: Array, epsilon: float) -> None:
        channels = x.shape[-1] if x.ndim else 0
        if not channels or gamma.shape != (channels,) or beta.shape != (channels,):
            raise ValueError(f"gamma and beta must have the shape of a row, ({channels},)")

    def forward(self, x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
        self.check(x, gamma, beta, epsilon)
        x_hat, inverse_sigma = normalize(x, epsilon)
        y = x_hat * gamma
        y += beta
        if any(self.needs):
            self.x_hat, self.inverse_sigma, self.gamma = x_hat, inverse_sigma, gamma
        return y

    def backward(self, dy: Array) -> Gradients:
        return gradients(dy, self.x_hat, self.inverse_sigma, self.gamma, self.needs)


def normalize(x: Array, epsilon: float) -> tuple[Array, Array]:
    """x_hat (..., C) and 1 / sigma (..., 1)"""
    x_hat = x - x.mean(axis=-1, keepdims=True)
    # Once more: a large mean is rounded, and what is left of it may be large beside sigma.
    x_hat -= x_hat.mean(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # the variance of huge numbers is infinite, x_hat 0
        variance = (x_hat * x_hat).mean(axis=-1, keepdims=True)
    inverse_sigma = 1 / (variance + epsilon) ** 0.5
    x_hat *= inverse_sigma
    return x_hat, inverse_sigma


def gradients(
    dy: Array, x_hat: Array, inverse_sigma: Array, gamma: Array, needs: Sequence[bool]
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dgamma and dbeta, as far as they are needed."""
    dx = dgamma = dbeta = None
    rows, x_hat = as_rows(dy), as_rows(x_hat)
    if needs[1]:
        dgamma = sum_rows(rows * x_hat)
    if needs[2]:
        dbeta = sum_rows(rows)
    if needs[0]:
        dx_hat = rows * gamma
        dx = dx_hat - row_means(dx_hat) - x_hat * row_means(dx_hat * x_hat)
        dx *= as_rows(inverse_sigma)
        dx = dx.reshape(dy.shape)
    return dx, dgamma, dbeta


EPSILON = 1e-6  # the paper's authors'


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float = EPSILON) -> Tensor:
    """x (..., C), gamma and beta (C,) -> as x. ValueError on shapes. Ba, Kiros and Hinton 2016."""
    if epsilon != EPSILON:
        epsilon = check_epsilon(epsilon)
    return LayerNorm.apply(x, gamma, beta, epsilon=float(epsilon))


def check_epsilon(epsilon: Any, name: str = "epsilon") -> float:
    """ValueError unless it is above zero, in float32 too: rows of equal numbers divide by it."""
    return check_number(name, epsilon, float(np.finfo(np.float32).tiny), 1e38, "[]")
