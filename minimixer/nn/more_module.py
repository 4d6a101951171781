"""More of Module: what it has beside what training a Mixer needs, and how it gets its buffer.

>>> from minimixer import Linear
>>> layer = Linear(2, 3)
>>> layer.num_parameters(), layer.to("float64").weight.dtype
(9, dtype('float64'))
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from ..engine.habits import missing
from ..engine.more_tensor import split_targets
from .buffer import ParameterBuffer
from .parameters import Parameter

Model = TypeVar("Model", bound=Any)  # a method returns it itself


class MoreOfModule:
    """What Module has beside what training a Mixer needs."""

    changes: ClassVar[int] = 0  # how often an attribute of any module was set: for who remembers

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if isinstance(vars(self).get(name), Parameter) and not (
            value is None or isinstance(value, (Parameter, MoreOfModule))
        ):
            raise TypeError(f"{name} is a Parameter: assign the new values to {name}.data")
        super().__setattr__(name, value)
        MoreOfModule.changes += 1

    def __getattr__(self: Any, name: str) -> Any:  # what is not there
        raise missing("Module", name, type(self).__name__)

    def children(self: Any) -> Iterator[Any]:
        return (module for _, module in self.named_children())

    def modules(self: Any) -> Iterator[Any]:
        return (module for _, module in self.named_modules())

    def num_parameters(self: Any) -> int:
        return sum(p.size for _, p in self.named_parameters())

    def zero_grad(self: Any, set_to_none: bool = True) -> None:
        """Forget all gradients. ValueError for set_to_none=False: they are never set to 0."""
        if not set_to_none:
            raise ValueError("zero_grad: gradients are forgotten, never set to 0: zero_grad()")
        for _, parameter in self.named_parameters():
            parameter.grad = None

    def requires_grad_(self: Model, requires_grad: bool = True) -> Model:
        """Train all Parameters, or none; an optimizer made afterwards takes those that train."""
        for _, parameter in self.named_parameters():
            parameter.requires_grad = requires_grad
        return self

    def to(self: Model, *targets: Any, dtype: Any = None, device: Any = None) -> Model:
        """`to("cuda")`, `to("float64")`, or both, also by name: in place; optimizers follow.
        ValueError if the device can't be used here, or if the Parameters share a buffer with
        others'."""
        parameters = self.parameters()
        dtype, device = split_targets(targets, dtype, device)
        if parameters and parameters[0].buffer is not None:
            if parameters[0].buffer.count > len(parameters):
                raise ValueError("to: these layers are part of a larger model; move that one")
            parameters[0].buffer.to(dtype, device)
        return self

    def summary(self: Any) -> Any:
        """A table of all layers with Parameters of their own: shapes and numbers of weights."""
        from .describe import summary_of

        return summary_of(self)

    def __repr__(self) -> str:
        from .describe import tree

        return tree(self)


def gather_parameters(module: Any, parameters: Sequence[Any]) -> None:
    """Bring all Parameters of a module into one flat buffer, if they are in several. The outermost
    module with all of them is its owner, whom optimizers ask what is new. Layers that draw at
    random are numbered, and draw from the buffer's seed and step."""
    if len({id(p.buffer) for p in parameters}) > 1:
        ParameterBuffer(parameters)
    if not parameters:
        return
    buffer = parameters[0].buffer
    if buffer.count == len(parameters):
        owner = buffer.owner and buffer.owner()
        if owner is None or any(each is owner for _, each in module.named_modules()):
            buffer.owner = weakref.ref(module)
    layers = [(i, each) for i, (_, each) in enumerate(module.named_modules()) if each.draws]
    if any(layer.random is not buffer.random for _, layer in layers):  # else: numbered already
        for number, layer in layers:
            layer.layer, layer.random = number, buffer.random
