"""A Mixer's trunk with fewer passes over memory: what fast forms take together.

The plain code reads X + MLP(LayerNorm(X)), one operation after the other. Here an MLP is one
operation, so that GELU and bias need no pass of their own, and hands its last bias on, unadded; a
block hands on its second sum; and the LayerNorm that comes next adds all that up in the pass that
it makes anyway. These operations stand here in plain code, which the tests compare with; cpu/
and gpu/ have the MLP and that LayerNorm fast.

    Trunk   stem, blocks and last LayerNorm; where each module in it is the paper's own
    Alone   a MixerMLP by itself, in any other block
"""

import functools
from typing import Any

from ..engine.arrays import Array
from ..engine.autograd import Function, Gradients
from ..engine.precision import widen
from ..engine.products import as_columns, as_rows, matmul, sum_rows
from ..engine.tensor import Tensor
from ..model.block import MixerBlock, MixerMLP
from ..nn import functional as F
from ..nn.functional import check_form, gelu_and_slope
from ..nn.layer_norm import EPSILON, check_epsilon, gradients, normalize
from ..nn.layers import LayerNorm, Linear, Module, StochasticDepth
from ..nn.recompute import recompute
from .node import Fast

# ---- the trunk ----------------------------------------------------------------------------------


class Trunk:
    """Mixer.trunk."""

    @staticmethod
    def suits(model: Any, images: Any) -> bool:
        return (
            all(_is(*pair) for pair in _replaced(model))
            and all(_mixes(block.token_mixing, 0) for block in model.blocks)
            and all(_mixes(block.channel_mixing, -1) for block in model.blocks)
        )

    @staticmethod
    def run(model: Any, images: Any) -> Tensor:
        x, *added = F.linear(model.patches(images), model.stem.weight), None, model.stem.bias, None
        for block in map(_PutOff, model.blocks):
            run = functools.partial(recompute, block) if model.checkpoint_blocks else block
            x, *added = run(x, *added)
        return _add_norm(x, added, model.norm)[1]


def _replaced(model: Any) -> Any:
    """Each module that the trunk does without, and whose forward it stands for."""
    yield model.stem, Linear
    yield model.norm, LayerNorm
    for block in model.blocks:
        yield block, MixerBlock
        if type(block) is MixerBlock:
            yield block.norm1, LayerNorm
            yield block.token_mixing, MixerMLP
            yield block.drop1, StochasticDepth
            yield block.norm2, LayerNorm
            yield block.channel_mixing, MixerMLP
            yield block.drop2, StochasticDepth


def _is(module: Any, kind: type) -> bool:
    """Is it exactly that, with nothing of its own in place of a method?"""
    return type(module) is kind and "forward" not in vars(module)


def _mixes(layer: MixerMLP, axis: int) -> bool:
    """Along that axis, with both its biases, and with the hidden units that all have?"""
    biased = layer.b1 is not None and layer.b2 is not None
    return layer.axis == axis and biased and "hidden" not in vars(layer)


class _PutOff(Module):
    """A block as x, y, bias, keep -> the same, of which x + (y + bias) keep is the block's."""

    def __init__(self, block: MixerBlock):
        vars(self)["block"] = block  # setting an attribute would say that the model has changed

    def forward(self, x: Tensor, *added: Any) -> Any:
        block = self.block
        x, h = _add_norm(x, added, block.norm1)
        added = _mix(block.token_mixing, block.drop1, h)
        x, h = _add_norm(x, added, block.norm2, axis=0)
        return x, *_mix(block.channel_mixing, block.drop2, h)


def _add_norm(x: Tensor, added: Any, norm: LayerNorm, axis: int = -1) -> Any:
    """`axis` is the one that the bias runs along: 0 for token mixing's, -1 for the others."""
    y, bias, keep = added
    return add_layer_norm(x, y, bias, norm.weight, norm.bias, norm.epsilon, axis, keep)


def _mix(layer: MixerMLP, drop: StochasticDepth, x: Tensor) -> tuple[Tensor, Any, Any]:
    y = mlp(x, layer.w1, layer.b1, layer.w2, layer.axis, layer.approximate)
    if not drop.active:
        return y, layer.b2, None
    if y.device == "cpu":  # whose fast norm knows nothing of it
        return drop(add_bias(y, layer.b2, layer.axis)), None, None
    return y, layer.b2, Tensor(drop.keep(y, y.shape[1], 1)[:, 0])


class Alone:
    """MixerMLP.forward."""

    @staticmethod
    def suits(layer: Any, x: Tensor) -> bool:
        return type(layer) is MixerMLP and (_mixes(layer, 0) or _mixes(layer, -1))

    @staticmethod
    def run(layer: Any, x: Tensor) -> Tensor:
        y = mlp(x, layer.w1, layer.b1, layer.w2, layer.axis, layer.approximate)
        return add_bias(y, layer.b2, layer.axis)


# ---- the MLP ------------------------------------------------------------------------------------


class MLP(Function):
    """y = gelu(x w1 + b1) w2 along the last axis, or the same along the first.

    With u = x w1 + b1 and g = gelu(u), the chain rule through two linear maps and GELU is

        dg = dy w2^T            dw2 = g^T dy
        du = dg gelu'(u)        db1 = sum du
        dx = du w1^T            dw1 = x^T du

    Kept for backward: x, g and gelu'(u); u itself is not needed again. du is written over dg.

    S and C here are just the lengths of x's first and last axis; mixer.py says what they stand for.
    Along the first axis x is (S, ...): every column x[:, c] goes through the same MLP, which is the
    paper's token mixing without its transposes. Then u = w1^T x + b1 with x as an S x n matrix and
    y = w2 g, and all products above appear transposed. Both weights are (S, D_S), so that every
    product runs along the long contiguous rows of x and g.
    """

    takes_numbers = False

    @staticmethod
    def check(x: Array, w1: Array, b1: Array, w2: Array, axis: int, approximate: str) -> None:
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

    def forward(
        self, x: Array, w1: Array, b1: Array, w2: Array, axis: int, approximate: str
    ) -> Array:
        self.check(x, w1, b1, w2, axis, approximate)
        first = axis == 0
        self.first: bool = first
        self.shape: tuple[int, ...] = x.shape
        x = as_columns(x) if first else as_rows(x)
        if first:
            u = matmul(w1.T, x)  # (D_S, n)
            u += b1[:, None]
        else:
            u = matmul(x, w1)  # (n, D_C)
            u += b1
        g, slope = gelu_and_slope(u, approximate, want_slope=any(self.needs))
        y = matmul(w2, g) if first else matmul(g, w2)
        if any(self.needs):
            self.x: Array = x
            self.w1: Array = w1
            self.w2: Array = w2
            self.g: Array = g
            self.slope: Any = slope
        return y.reshape(self.shape)

    def backward(self, dy: Array) -> Gradients:
        if self.first:
            return self._backward_first(as_columns(dy))
        dy = as_rows(dy)
        dx = dw1 = db1 = None
        dw2 = matmul(self.g.T, dy) if self.needs[3] else None
        if any(self.needs[:3]):
            du = matmul(dy, self.w2.T)
            du *= self.slope
            db1 = sum_rows(du) if self.needs[2] else None
            dw1 = matmul(self.x.T, du) if self.needs[1] else None
            if self.needs[0]:
                dx = matmul(du, self.w1.T).reshape(self.shape)
        return dx, dw1, db1, dw2

    def _backward_first(self, dy: Array) -> Gradients:
        dx = dw1 = db1 = None
        dw2 = matmul(dy, self.g.T) if self.needs[3] else None
        if any(self.needs[:3]):
            du = matmul(self.w2.T, dy)
            du *= self.slope
            db1 = du.sum(axis=1) if self.needs[2] else None
            dw1 = matmul(self.x, du.T) if self.needs[1] else None
            if self.needs[0]:
                dx = matmul(self.w1, du).reshape(self.shape)
        return dx, dw1, db1, dw2


def mlp(x: Any, w1: Any, b1: Any, w2: Any, axis: int = -1, approximate: str = "tanh") -> Tensor:
    """gelu(x w1 + b1) w2 along `axis`, without the last bias (paper, equation 1).

    axis=-1: x (..., in), w1 (in, hidden), b1 (hidden,), w2 (hidden, in) -> (..., in)
    axis=0:  x (in, ...), w1 (in, hidden), b1 (hidden,), w2 (in, hidden) -> (in, ...)
    The last bias is added by what comes next, `add_layer_norm`. ValueError on shapes. GELU is in
    the authors' form unless told otherwise, where `gelu` itself follows PyTorch's default.
    """
    return MLP.apply(x, w1, b1, w2, axis=axis, approximate=approximate)


# ---- the residual connection and LayerNorm -------------------------------------------------------


class AddLayerNorm(Function):
    """s = x + (y + bias) keep;  h = LayerNorm(s). Gradients as in layer_norm.py; what arrives at s
    itself is added to what h gives."""

    takes_numbers = False
    optional: tuple[int, ...] = (1, 2, 5)

    @staticmethod
    def check(
        x: Array, y: Array, bias: Array, gamma: Array, beta: Array, keep: Array, epsilon: float,
        bias_axis: int,
    ) -> None:  # fmt: skip
        channels = x.shape[-1] if x.ndim else 0
        if y is not None and y.shape != x.shape:
            raise ValueError("x and y must have the same shape")
        if not channels or gamma.shape != (channels,) or beta.shape != (channels,):
            raise ValueError(f"gamma and beta must have the shape of a row, ({channels},)")
        if bias is not None and (bias_axis not in (0, -1) or bias.shape != (x.shape[bias_axis],)):
            raise ValueError("bias must be a vector along the first (0) or last axis (-1)")
        if keep is not None and (y is None or x.ndim < 2 or keep.shape != x.shape[-2:-1]):
            raise ValueError("keep must be a factor for each y[..., i, :], of shape (i,)")

    def forward(
        self, x: Array, y: Array, bias: Array, gamma: Array, beta: Array, keep: Array,
        epsilon: float, bias_axis: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        self.check(x, y, bias, gamma, beta, keep, epsilon, bias_axis)
        self.bias_axis = bias_axis
        self.keep: Array = keep
        if bias is not None and bias_axis == 0:
            bias = bias.reshape(-1, *[1] * (x.ndim - 1))
        if keep is not None:
            y, bias = (y if bias is None else y + bias) * keep[:, None], None
        s = x if y is None else x + y
        if bias is not None:
            s = s + bias if y is None else _add_into(s, bias)
        x_hat, inverse_sigma = normalize(s, epsilon)
        h = x_hat * gamma
        h += beta
        if any(self.needs):
            self.x_hat: Array = x_hat
            self.inverse_sigma: Array = inverse_sigma
            self.gamma: Array = gamma
        return s, h

    def backward(self, ds: Array, dh: Array) -> Gradients:
        dx = dgamma = dbeta = dbias = None
        if dh is not None:
            needs = any(self.needs[:3]), *self.needs[3:]
            dx, dgamma, dbeta = gradients(dh, self.x_hat, self.inverse_sigma, self.gamma, needs)
        if dx is not None:
            ds = dx if ds is None else _add_into(dx, ds)
        dy = ds if ds is None or self.keep is None else ds * self.keep[:, None]
        if self.needs[2]:
            dbias = bias_gradient(dy, self.bias_axis)
        dx, dy = (d if need else None for d, need in zip((ds, dy), self.needs, strict=False))
        return dx, dy, dbias, dgamma, dbeta, None


def _add_into(own: Array, other: Array) -> Array:
    own += other
    return own


def bias_gradient(ds: Array, axis: int) -> Array:
    """ds (..., C) summed, in float32 at least, over all axes but the one, 0 or -1, that a bias runs
    along."""
    if axis == -1:
        return sum_rows(as_rows(ds))
    return as_columns(widen(ds)).sum(axis=1)


def add_layer_norm(
    x: Any, y: Any, bias: Any, gamma: Any, beta: Any, epsilon: float = EPSILON, bias_axis: int = -1,
    keep: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(s, LayerNorm(s)) for s = x + (y + bias) keep: a residual connection and the norm after it.

    x, y (..., C), y may be None; gamma, beta (C,); bias None or a vector along `bias_axis` of x:
    (C,) for -1, or one number for each x[i] for 0. keep: None, or what StochasticDepth draws, for x
    (S, B, C) a factor for each of B examples, which gets no gradient. ValueError on shapes.
    Ba, Kiros, Hinton 2016; epsilon as in the authors' code.
    """
    epsilon = check_epsilon(epsilon)
    options = {"epsilon": epsilon, "bias_axis": bias_axis}
    return AddLayerNorm.apply(x, y, bias, gamma, beta, keep, **options)


class LayerNormAlone(Fast, F.LayerNorm):
    """LayerNorm by a fast form of AddLayerNorm, with nothing to add."""

    form: type[Fast]

    def suits(self, x: Array, gamma: Array, beta: Array, epsilon: float) -> bool:
        self.inner: Any = self.form()
        self.inner.needs = (self.needs[0], False, False, *self.needs[1:], False)
        self.inner.precision = self.precision
        return self.inner.suits(x, None, None, gamma, beta, None, epsilon, -1)

    def forward(self, x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
        return self.inner.forward(x, None, None, gamma, beta, None, epsilon, -1)[1]

    def backward(self, dy: Array) -> Gradients:
        inner, (x, *parameters) = self.inner, self.parents or ()
        inner.parents, inner.input_dtype = [x, None, None, *parameters, None], self.input_dtype
        dx, _, _, dgamma, dbeta, _ = inner.backward(None, dy)
        return dx, dgamma, dbeta


class AddBias(Function):
    """y = x + bias along the first (0) or the last axis (-1): dx = dy, dbias = sum dy."""

    takes_numbers = False
    any_dtype = True
    quiet = True

    @staticmethod
    def check(x: Array, bias: Array, axis: int) -> None:
        if axis not in (0, -1) or bias.shape != (x.shape[axis],):
            raise ValueError("bias must be a vector along the first (0) or last axis (-1)")

    def forward(self, x: Array, bias: Array, axis: int) -> Array:
        self.check(x, bias, axis)
        self.axis = axis
        return x + (bias.reshape(-1, *[1] * (x.ndim - 1)) if axis == 0 else bias)

    def backward(self, dy: Array) -> Gradients:
        return dy, bias_gradient(dy, self.axis) if self.needs[1] else None


def add_bias(x: Any, bias: Any, axis: int = -1) -> Tensor:
    """x + bias, a vector along axis 0 (first) or -1 (last) of x (..., C). ValueError on shapes."""
    return AddBias.apply(x, bias, axis=axis)
