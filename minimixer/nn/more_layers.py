"""More layers: one after the other, activations, dropout.

>>> from minimixer import GELU, Dropout, Linear, Sequential, Tensor
>>> network = Sequential(Linear(4, 8), GELU(), Dropout(0.1), Linear(8, 2))
>>> network(Tensor([[1.0, 2.0, 3.0, 4.0]])).shape, len(network)
((1, 2), 4)
"""

import math
from collections.abc import Iterator
from typing import Any

from ..engine.more_ops import relu
from ..engine.ops import multiply
from ..engine.random import Purpose
from ..engine.rearrange import reshape
from ..engine.tensor import Tensor
from ..nn import functional as F
from .layers import RandomLayer
from .module import Module


class Sequential(Module):
    """Modules one after the other; indexed, counted and named like a list: "0.weight"."""

    def __init__(self, *layers: Module):
        for number, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise TypeError(f"Sequential: takes Modules, one by one, got {layer!r:.60}")
            setattr(self, str(number), layer)

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __len__(self) -> int:
        return sum(1 for _ in self.children())  # which list() would ask again

    def __getitem__(self, index: Any) -> Module:
        """The layer of a number, or a Sequential of a slice, which shares its layers."""
        found = [*self.children()][index]
        return Sequential(*found) if isinstance(index, slice) else found

    def forward(self, x: Any) -> Any:
        for layer in self:
            x = layer(x)
        return x


class ReLU(Module):
    """max(x, 0), elementwise."""

    def forward(self, x: Any) -> Tensor:
        return relu(x)


class Flatten(Module):
    """x (B, ...) -> (B, n): all axes but the first as one."""

    def forward(self, x: Any) -> Tensor:
        return reshape(x, (x.shape[0], math.prod(x.shape[1:])))


class GELU(Module):
    """functional.gelu as a layer."""

    shown: tuple[str, ...] = ("approximate",)

    def __init__(self, approximate: str = "none"):
        self.approximate: str = F.check_form(approximate)

    def forward(self, x: Any) -> Tensor:
        return F.gelu(x, self.approximate)


class Dropout(RandomLayer):
    """Every element of x (B, ...) on its own (Srivastava et al. 2014)."""

    purpose = Purpose.DROPOUT

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        return multiply(x, self.keep(x, len(x), math.prod(x.shape[1:])).reshape(x.shape))
