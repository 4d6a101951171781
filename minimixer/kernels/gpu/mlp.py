"""The MLP of a Mixer: along the tokens or the channels, with GELU where a product is stored.

There are three ways, the first that can be had is taken:

    two bytes, Hopper   token mixing is one kernel (token_mixing.py); in channel mixing, unless it
                        is small, the products apply bias, GELU and its slope, and sum up
                        (channel_mixing.py)
    two bytes           cuBLAS applies bias and GELU as it stores the product, and in backward the
                        slope, where g is kept (token mixing's bias: spare_row.py)
    else                a product, then a pass that adds the bias and applies GELU; in backward one
                        that applies the slope and sums up (gelu.py)
"""

import math
from typing import Any

from ...engine.arrays import Array, namespace
from ...engine.autograd import Gradients
from ...engine.products import as_rows
from ..fused import MLP
from ..node import Fast
from . import channel_mixing, cublas, spare_row, token_mixing
from .gelu import GeluKernel
from .layers import sum_of_products, weight_gradient
from .side import LARGEST, aside
from .sums import column_sums, sum_rows


class FastMLP(Fast, MLP):
    """Keeps x and u; g in token mixing, or if it is small. On Hopper x, u and weights, packed for
    backward; channel mixing that is not large keeps g and the slope in place of u. Where g is not
    kept, backward makes it again as it applies the slope: over u, but in Hopper's token mixing.
    """

    any_dtype = True

    def suits(self, x: Array, w1: Array, b1: Array, w2: Array, axis: int, approximate: str) -> bool:
        if not x.size or not w1.size:
            return False
        rows, units = x.size // x.shape[axis], w1.shape[1]
        self.axis = axis
        self.first: bool = axis == 0
        self.approximate = approximate
        self.hidden: tuple[int, int] = (units, rows) if self.first else (rows, units)
        self.biased: bool = False
        return self.gelu(x, b1).usable(backward=any(self.needs))

    def forward(
        self, x: Array, w1: Array, b1: Array, w2: Array, axis: int, approximate: str
    ) -> Array:
        self.shape: tuple[int, ...] = x.shape
        xp = namespace(x)
        x, b1 = xp.ascontiguousarray(x), xp.ascontiguousarray(b1)
        x = x.reshape(len(x), math.prod(x.shape[1:])) if self.first else as_rows(x)
        keep = any(self.needs)
        two_bytes = approximate == "tanh" and cublas.can_fuse(x.dtype)
        kernels = token_mixing if self.first else channel_mixing
        self.on_hopper: bool = two_bytes and kernels.suits(x, w1, b1)
        self.x1: Array = None
        g: Array = None
        if self.on_hopper and self.first:
            packed, self.packed = token_mixing.pack(w1, b1, w2, keep)
            y, u = token_mixing.forward(x, packed, w1.shape[1], keep)
        elif self.on_hopper:
            size = len(x) * len(b1) * x.dtype.itemsize
            self.kept: channel_mixing.Kept = channel_mixing.what_is_kept(size, keep)
            packed, self.packed = channel_mixing.pack(w1, w2, self.kept)
            g, u = channel_mixing.forward(x, packed, b1, self.kept)  # u, or the slope
            y = self.product(g, w2)
        else:
            both = self.with_gelu(x, w1, b1, keep) if two_bytes else None
            g, u = both or (None, self.make_u(x, w1))
            self.biased = both is not None  # u has the bias in it
            if g is None:
                g = self.gelu(x, b1).forward(u, out=None if keep else u)
            y = self.product(w2, g) if self.first else self.product(g, w2)
        if keep:
            self.x: Array = x
            self.w1: Array = w1
            self.b1: Array = b1
            self.w2: Array = w2
            self.u: Array = u
            if self.on_hopper:
                keep_g = not self.first and self.kept == "SLOPE"
            else:
                keep_g = self.first or g.nbytes <= LARGEST
            self.g: Array = g if keep_g else None
        return y.reshape(self.shape)

    def with_gelu(self, x: Array, w1: Array, b1: Array, keep: bool) -> Any:
        """(g, u) from one product by cuBLAS, or None."""
        if not self.first:
            return cublas.matmul_gelu(x, w1, b1, keep)
        x1 = spare_row.with_ones(x)
        if x1 is None:
            return None
        both = cublas.matmul_gelu(spare_row.append(w1, b1).T, x1, None, keep)
        self.x1 = x1 if both and keep else None
        return both

    def product(self, a: Array, b: Array) -> Array:
        return cublas.matmul(a, b, precision=self.precision)

    def make_u(self, x: Array, w1: Array) -> Array:
        return self.product(w1.T, x) if self.first else self.product(x, w1)

    def gelu(self, x: Array, b1: Array) -> Any:
        bias = None if self.biased else b1
        return GeluKernel(x, self.hidden, bias, self.axis, self.approximate)

    def backward(self, dy: Array) -> Gradients:
        dy = namespace(dy).ascontiguousarray(dy)
        dy = dy.reshape(len(dy), math.prod(dy.shape[1:])) if self.first else as_rows(dy)
        if self.on_hopper:
            dy = dy.copy() if dy.data.ptr % 16 else dy
            gradients = self.token_gradients(dy) if self.first else self.channel_gradients(dy)
        else:
            gradients = self.gradients(dy)
        return tuple(d if wanted else None for d, wanted in zip(gradients, self.needs, strict=True))

    def token_gradients(self, dy: Array) -> Gradients:
        dx, g, du = token_mixing.backward(dy, self.u, self.packed)  # (n, D) of the last two
        x1 = spare_row.with_ones(self.x)
        with aside(self, (1, 2, 3), self.x, dy, g, du):
            if x1 is not None:
                both = sum_of_products(x1, du)
                dw1, db1 = spare_row.split(both, self.destination(1), self.destination(2))
            else:
                dw1 = weight_gradient(self, 1, self.x, du)
                db1 = column_sums(du, self.destination(2))
            dw2 = weight_gradient(self, 3, dy, g)
        return dx.reshape(self.shape), dw1, db1, dw2

    def channel_gradients(self, dy: Array) -> Gradients:
        old, self.u = self.u, None
        if old is None:  # a second backward (retain_graph): the first wrote over it
            packed, _ = channel_mixing.pack(self.w1, self.w2, "NOTHING")
            old = channel_mixing.forward(self.x, packed, self.b1, self.kept)[1]
        du, parts = channel_mixing.backward(dy, old, self.kept, self.packed)
        g = old if self.g is None else self.g
        with aside(self, (1, 2, 3), self.x, du, dy, g, parts):
            db1 = self.destination(2)
            db1 = namespace(dy).empty(du.shape[1], parts.dtype) if db1 is None else db1
            sum_rows(parts[:, None], db1)
            dw1 = weight_gradient(self, 1, self.x.T, du)
            dw2 = weight_gradient(self, 3, g.T, dy)
        dx = self.product(du, self.w1.T).reshape(self.shape) if self.needs[0] else None
        return dx, dw1, db1, dw2

    def gradients(self, dy: Array) -> Gradients:
        x, w1, u, g, dx = self.x, self.w1, self.u, self.g, None
        if u is None:  # a second backward (retain_graph): the first wrote over it
            u, self.biased = self.make_u(x, w1), False
        du = partial = None
        if self.biased and g is not None:
            product = (self.w2.T, dy) if self.first else (dy, self.w2.T)
            du = cublas.matmul_slope(*product, u)
        if du is None:
            du = self.product(self.w2.T, dy) if self.first else self.product(dy, self.w2.T)  # dg
            partial = self.gelu(u, self.b1).backward(u, du, g is None)
            if g is None:
                g = u
                self.u = None
        with aside(self, (1, 2, 3), partial, x, du, dy, g):
            if partial is None and self.first:
                both = sum_of_products(self.x1, du.T)
                dw1, db1 = spare_row.split(both, self.destination(1), self.destination(2))
            else:
                if partial is not None:
                    db1 = self.gelu(u, self.b1).sum(partial, self.destination(2))
                else:
                    db1 = column_sums(du, self.destination(2))
                dw1 = weight_gradient(self, 1, *((x, du.T) if self.first else (x.T, du)))
            dw2 = weight_gradient(self, 3, *((dy, g.T) if self.first else (g.T, dy)))
        if self.needs[0]:
            dx = self.product(w1, du) if self.first else self.product(du, w1.T)
            dx = dx.reshape(self.shape)
        return dx, dw1, db1, dw2
