"""Layers: Parameters with a forward; Linear and LayerNorm are named as the Functions they call.

>>> from minimixer import LayerNorm, Linear, Module, Tensor
>>> from minimixer import functional as F
>>> class Network(Module):
...     def __init__(self):
...         self.first, self.norm, self.last = Linear(4, 8), LayerNorm(8), Linear(8, 2)
...         self.initialize(seed=0)
...     def forward(self, x):
...         return self.last(F.gelu(self.norm(self.first(x))))
>>> Network()(Tensor([[1.0, 2.0, 3.0, 4.0]])).shape
(1, 2)

Next: `model/images.py`, from images to tokens.
"""

from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..engine.checks import check_number, check_seed
from ..engine.checks import check_sizes as check_sizes
from ..engine.ops import multiply
from ..engine.random import Purpose
from ..engine.tensor import Tensor
from . import functional as F
from .draws import RandomCounter, is_evaluating  # seed and step of draws; within `predict`?
from .draws import evaluating as evaluating
from .initial import lecun_normal as lecun_normal
from .layer_norm import EPSILON, check_epsilon
from .module import Module as Module
from .parameters import Parameter


class Linear(Module):
    """y = x weight + bias. weight (in_features, out_features), bias (out_features,) or None.

    zero=True starts at weight 0, as the paper's head does. A layer on its own draws its weights
    from `seed` (None: they stay 0); a model redraws all with `initialize`."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, zero: bool = False,
        seed: int | None = 0,
    ):  # fmt: skip
        check_sizes(in_features=in_features, out_features=out_features)
        self.weight: Parameter = Parameter(np.zeros((in_features, out_features), dtype=np.float32))
        self.bias: Parameter | None = Parameter(np.zeros(out_features, "float32")) if bias else None
        self.zero = zero
        if seed is not None:
            self.draw_weights(check_seed(seed), 0)

    def draw_weights(self, seed: int, layer: int) -> None:
        shape = self.weight.shape
        self.weight.data = (
            np.zeros(shape, np.float32) if self.zero else lecun_normal(shape, shape[0], seed, layer)
        )
        if self.bias is not None:
            self.bias.data = np.zeros(shape[1], dtype=np.float32)

    def forward(self, x: Any) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class LayerNorm(Module):
    """Each row of x (..., channels) to mean 0 and variance 1, times weight plus bias."""

    shown: tuple[str, ...] = ("epsilon",)

    def __init__(self, channels: int, epsilon: float = EPSILON):
        check_sizes(channels=channels)
        self.weight: Parameter = Parameter(np.ones(channels, dtype=np.float32))
        self.bias: Parameter = Parameter(np.zeros(channels, dtype=np.float32))
        self.epsilon: float = check_epsilon(epsilon)

    def draw_weights(self, seed: int, layer: int) -> None:
        self.weight.data = np.ones(self.weight.shape, dtype=np.float32)
        self.bias.data = np.zeros(self.bias.shape, dtype=np.float32)

    def forward(self, x: Any) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.epsilon)


class RandomLayer(Module):
    """Multiplies by 0 with probability `p`, by 1 / (1 - p) otherwise, while training: so the mean
    stays. The draw depends on the model's seed and step, the layer's number, example and element.

    A model's optimizer advances the step; gather a model with `parameters()` or `initialize()`
    first, so that its layers are numbered. One called twice in a step draws the same twice."""

    draws = True
    shown: tuple[str, ...] = ("p",)
    purpose: Purpose
    layer = 0  # its number in the whole model, which tells its draws from other layers'

    def __init__(self, p: float = 0.5):
        self.p: float = check_number(f"{type(self).__name__}: p", p, 0, 1)
        self.random: RandomCounter = RandomCounter()

    @property
    def active(self) -> bool:
        return self.training and self.p > 0 and not is_evaluating()

    def keep(self, x: Tensor, examples: int, elements: int) -> Array:
        """The factors: (examples, elements), of x's dtype, on x's device."""
        shape = examples, elements
        return self.random.keep(x, self.p, self.purpose, self.layer, shape)


class StochasticDepth(RandomLayer):
    """One factor for all of an example: what an MLP of a block adds to it, x (S, B, C), is kept or
    skipped, so that training goes through networks of many lengths (Huang et al. 2016)."""

    purpose = Purpose.STOCHASTIC_DEPTH

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        return multiply(x, self.keep(x, x.shape[1], 1)[None])
