"""Module: something with Parameters, sub-modules and a forward.

A Module's Parameters and sub-modules are simply its attributes, or lie in lists, tuples or dicts
that are; found in the order in which they were assigned, and named by the path to them.

>>> from minimixer import Module, Parameter
>>> class Scale(Module):
...     def __init__(self):
...         self.factor = Parameter([1.0, 2.0])
...     def forward(self, x):
...         return x * self.factor
>>> class Network(Module):
...     def __init__(self):
...         self.layers = [Scale(), Scale()]
>>> [name for name, _ in Network().named_parameters()]
['layers.0.factor', 'layers.1.factor']
>>> Network()
Network(4 weights
  (layers.0-1): 2 x Scale(factor (2,); 2 weights)
)

Next: `initial.py`, initial weights.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np

from ..engine.checks import check_seed
from .more_module import MoreOfModule, gather_parameters  # into one buffer, if they are not yet
from .parameters import Parameter
from .state import load_state, state_of


class Module(MoreOfModule):
    """Something with Parameters, sub-modules and a `forward`; calling it calls `forward`."""

    training = True
    draws: ClassVar[bool] = False  # at random in training: such layers are numbered
    shown: tuple[str, ...] = ()  # the names of settings that `repr` shows

    def forward(self, *inputs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any) -> Any:
        return self.forward(*inputs)

    # ---- what is in it --------------------------------------------------------------------------

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(path, module) for this one and all below it, each once, in order of assignment."""
        seen: set[int] = set()
        for path, value in ((prefix, self), *walk(self, prefix)):
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                yield path, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(path, Parameter), each Parameter once, under its first path if it is shared."""
        seen: set[int] = set()
        for path, value in walk(self):
            if isinstance(value, Parameter) and id(value) not in seen:
                seen.add(id(value))
                yield path, value

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """(path, module) for those directly below, also if they lie in lists, tuples or dicts."""
        yield from ((path, m) for path, m in walk(self, deep=False) if isinstance(m, Module))

    def parameters(self) -> list[Parameter]:
        """All Parameters, gathered into one flat buffer if they are not in one already."""
        parameters = [p for _, p in self.named_parameters()]
        gather_parameters(self, parameters)
        return parameters

    # ---- what can be done to it -----------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Switch what differs between training and use (random layers) on, or off."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)

    def initialize(self, seed: int = 0) -> None:
        """Draw all initial weights anew, every layer with a number of its own. TypeError if the
        seed is no whole number, ValueError if it is not from 0 to 2^64 - 1."""
        seed = check_seed(seed)
        for number, (_, module) in enumerate(self.named_modules()):
            module.draw_weights(seed, number)
        for parameter in self.parameters()[:1]:
            parameter.buffer.random.seed = seed  # for layers that draw at random (draws.py)

    def draw_weights(self, seed: int, layer: int) -> None:
        """Give this layer's own Parameters their initial values. Layers with any define it;
        `layer` is the layer's number in the whole model."""

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every Parameter as a NumPy array (a copy), under each of its paths."""
        return state_of(walk(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take all values from a state_dict; ValueError, and nothing is changed, unless all fit."""
        load_state(walk(self), state, type(self).__name__)


def walk(
    value: Any, path: str = "", deep: bool = True, around: tuple[int, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """(path, item) for all Parameters and Modules below a Module, in order of assignment: its
    attributes, what lists, tuples and dicts among these hold, and if `deep`, what is below each
    Module. `around` are the ids of what `value` lies in: a part may point back at the whole."""
    if id(value) in around:
        return
    if isinstance(value, Module):
        items: Any = vars(value).items()
    else:
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        full = f"{path}.{name}" if path else f"{name}"
        is_module = isinstance(item, Module)
        if is_module or isinstance(item, Parameter):
            yield full, item
        if (deep and is_module) or (not is_module and isinstance(item, (list, tuple, dict))):
            yield from walk(item, full, deep, (*around, id(value)))
