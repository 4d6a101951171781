"""LayerNorm and the residual connection before it, again for NumPy: in blocks of rows.

A row is short, and NumPy begins anew for each: to add a vector to every row, or a number to all of
one, takes 0.15 ns an element, where two whole arrays take 0.06. But a product of inner length 2,
(rows, 2) by (2, C), writes such vectors and numbers out in 0.05 ns (with a 0 beside them: NumPy
does not ask BLAS for an inner length of 1). And sums along rows are products with a vector.
"""

from typing import Any

import numpy as np

from ...engine.arrays import Array
from ...engine.autograd import Gradients
from ..fused import AddLayerNorm, LayerNormAlone, bias_gradient
from ..node import Fast
from .blocks import BLOCK, SMALL, parts
from .reuse import empty
from .threads import blas_on_one_thread


class _Outer:
    """column (n,), row (C,), which stays -> their outer product (n, C): column[i] row[j]."""

    def __init__(self, row: Array, height: int):
        self.rows = np.zeros((2, len(row)), dtype=row.dtype)
        self.rows[0] = row
        self.columns = np.zeros((height, 2), dtype=row.dtype)

    def __call__(self, column: Array, out: Array) -> Array:
        columns = self.columns[: len(column)]
        columns[:, 0] = column
        return np.matmul(columns, self.rows, out=out)


FAR = 2  # from 0, in standard deviations, is a mean whose rounding counts


def _with_care(s: Array, rows: Array, mean: Array, inverse_sigma: Array, epsilon: float) -> Array:
    """x_hat of these rows s, whose mean and 1 / sigma are computed anew: the mean of what is left
    when the mean is taken off is what rounding has done to it. Exactly 0 where a row is constant.
    """
    mean[rows] += (s - mean[rows, None]).mean(axis=-1)
    x_hat = s - mean[rows, None]
    inverse_sigma[rows] = 1 / np.sqrt(np.vecdot(x_hat, x_hat) / s.shape[-1] + epsilon)
    x_hat *= inverse_sigma[rows, None]
    return x_hat


class FastAddLayerNorm(Fast, AddLayerNorm):
    """Keeps s, which is alive as an output anyway (without y and bias it is x itself), with the
    mean and 1 / sigma of each row. Below, n is the number of rows in a block.

    Backward, with d = s - mean = sigma x_hat, from layer_norm.py:
        ds = (gamma dh - mean(gamma dh)) / sigma - d mean(gamma dh d) / sigma^3  +  ds from s itself
    """

    def suits(
        self, x: Array, y: Array, bias: Array, gamma: Array, beta: Array, keep: Array,
        *options: Any, **named: Any,
    ) -> bool:  # fmt: skip
        return x.size >= SMALL and x.shape[-1] > 1 and keep is None

    def forward(
        self, x: Array, y: Array, bias: Array, gamma: Array, beta: Array, keep: None,
        epsilon: float, bias_axis: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        bias_axis = -1 if x.ndim == 1 else bias_axis  # which has one axis only
        self.bias_axis: int = bias_axis
        channels, shape, dtype = x.shape[-1], x.shape, x.dtype
        x = np.ascontiguousarray(x).reshape(-1, channels)
        y = None if y is None else np.ascontiguousarray(y).reshape(-1, channels)
        rows = len(x)
        s = x if y is None and bias is None else empty(x.shape, dtype)
        h = empty(x.shape, dtype)
        mean, inverse_sigma = np.empty((2, rows), dtype=dtype)
        variance = np.empty(rows, dtype=dtype)
        places = parts(rows, max(1, BLOCK // channels))
        height = max(place.stop - place.start for place in places)
        spread, scale = _Outer(np.ones(channels, dtype), height), _Outer(gamma, height)
        ones = np.ones(channels, dtype=dtype)
        if bias is not None and bias_axis == 0:
            bias = np.repeat(bias, rows // len(bias))
        every_beta = np.broadcast_to(beta, (height, channels)).copy()
        every_bias: Array = None
        if bias is not None and bias_axis:
            every_bias = np.broadcast_to(bias, (height, channels)).copy()
        scratch = np.empty((height, channels), dtype=dtype)
        with blas_on_one_thread, np.errstate(over="ignore"):
            for place in places:
                s_block, h_block = s[place], h[place]  # (n, C)
                centred = scratch[: len(s_block)]
                if y is not None:
                    np.add(x[place], y[place], out=s_block)
                if bias is not None:
                    added = (
                        every_bias[: len(s_block)] if bias_axis else spread(bias[place], centred)
                    )
                    np.add(x[place] if y is None else s_block, added, out=s_block)
                np.matmul(s_block, ones, out=mean[place])  # sums
                mean[place] /= channels
                np.subtract(s_block, spread(mean[place], centred), out=centred)
                np.vecdot(centred, centred, out=variance[place])
                variance[place] /= channels
                sigma = variance[place] + epsilon
                np.sqrt(sigma, out=sigma)
                np.divide(1, sigma, out=inverse_sigma[place])
                scale(inverse_sigma[place], h_block)  # gamma / sigma
                h_block *= centred
                h_block += every_beta[: len(h_block)]
            far = np.flatnonzero(mean * mean > FAR * FAR * variance)
            for start in range(0, len(far), height):
                some = far[start : start + height]
                h[some] = _with_care(s[some], some, mean, inverse_sigma, epsilon) * gamma + beta
        s = s.reshape(shape)
        if any(self.needs):
            self.s: Array = s
            self.mean: Array = mean
            self.inverse_sigma: Array = inverse_sigma
            self.gamma: Array = gamma
        return s, h.reshape(shape)

    def backward(self, ds: Array, dh: Array) -> Gradients:
        if dh is None:
            dbias = bias_gradient(ds, self.bias_axis) if self.needs[2] else None
            dx, dy = (ds if need else None for need in self.needs[:2])
            return dx, dy, dbias, None, None, None
        gamma, inverse_sigma, shape, dtype = self.gamma, self.inverse_sigma, dh.shape, dh.dtype
        rows, channels = len(inverse_sigma), len(gamma)
        s = self.s.reshape(rows, channels)
        dh = np.ascontiguousarray(dh).reshape(rows, channels)
        ds = None if ds is None else np.ascontiguousarray(ds).reshape(rows, channels)
        dx = empty(s.shape, dtype)
        places = parts(rows, max(1, BLOCK // channels))
        height = max(place.stop - place.start for place in places)
        spread, scale = _Outer(np.ones(channels, dtype), height), _Outer(gamma, height)
        ones, average = np.ones(max(height, channels), dtype), gamma / channels
        sums = np.empty((3, len(places), channels), dtype=dtype)  # of gamma, beta and the bias
        row_sums = np.empty(rows, dtype=dtype)
        scratch = np.empty((2, height, channels), dtype=dtype)
        with blas_on_one_thread:
            for i, place in enumerate(places):
                dh_block, dx_block, inverse = dh[place], dx[place], inverse_sigma[place]
                centred, product = scratch[:, : len(dh_block)]
                np.subtract(s[place], spread(self.mean[place], centred), out=centred)
                np.multiply(dh_block, centred, out=product)  # dh d
                np.matmul(inverse, product, out=sums[0, i])  # over rows: dh x_hat
                np.matmul(ones[: len(dh_block)], dh_block, out=sums[1, i])
                along = product @ average  # (n,): mean(gamma dh d)
                along *= inverse
                along *= inverse
                along *= inverse
                constant = dh_block @ average  # (n,): mean(gamma dh)
                constant *= inverse
                scale(inverse, dx_block)  # gamma / sigma
                dx_block *= dh_block
                centred *= spread(along, product)  # which is not needed any more
                dx_block -= centred
                dx_block -= spread(constant, product)
                if ds is not None:
                    dx_block += ds[place]
                if self.needs[2] and self.bias_axis == 0:
                    np.matmul(dx_block, ones[:channels], out=row_sums[place])
                elif self.needs[2]:
                    np.matmul(ones[: len(dx_block)], dx_block, out=sums[2, i])
        dbias = None
        if self.needs[2] and self.bias_axis == 0:
            dbias = row_sums.reshape(shape[0], -1).sum(axis=1, out=self.destination(2))
        elif self.needs[2]:
            dbias = sums[2].sum(axis=0, out=self.destination(2))
        dgamma, dbeta = (
            sums[i].sum(axis=0, out=self.destination(3 + i)) if self.needs[3 + i] else None
            for i in (0, 1)
        )
        dx = dx.reshape(shape)
        dx, dy = (dx if need else None for need in self.needs[:2])
        return dx, dy, dbias, dgamma, dbeta, None


class FastLayerNorm(LayerNormAlone):
    """With nothing to add."""

    form: type[Fast] = FastAddLayerNorm
