"""Module: something with Parameters, sub-modules and a forward.

A Module's Parameters and sub-modules are simply its attributes, or lie in lists, tuples or dicts
that are; found in the order in which they were assigned, and named by the path to them.

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

import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from ..engine.autograd import Variable
from ..engine.backend import Array, is_array, to_numpy
from ..engine.checks import all_finite, check_seed
from ..engine.habits import missing
from ..engine.tensor import split_targets
from .describe import summary_of, tree, walk
from .parameters import Parameter, ParameterBuffer


class Module:
    """Something with Parameters, sub-modules and a `forward`; calling it calls `forward`."""

    training = True
    draws: ClassVar[bool] = False  # at random in training: such layers are numbered
    shown: ClassVar[tuple[str, ...]] = ()  # the names of settings that `repr` shows
    changes: ClassVar[int] = 0  # how often an attribute of any module was set: for who remembers

    def forward(self, *inputs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any) -> Any:
        return self.forward(*inputs)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(vars(self).get(name), Parameter) and not (
            value is None or isinstance(value, (Parameter, Module))
        ):
            raise TypeError(f"{name} is a Parameter: assign the new values to {name}.data")
        super().__setattr__(name, value)
        Module.changes += 1

    def __getattr__(self, name: str) -> Any:  # what is not there
        raise missing("Module", name, type(self).__name__)

    def __repr__(self) -> str:
        return tree(self)

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

    def children(self) -> Iterator["Module"]:
        return (module for _, module in self.named_children())

    def modules(self) -> Iterator["Module"]:
        return (module for _, module in self.named_modules())

    def parameters(self) -> list[Parameter]:
        """All Parameters, gathered into one flat buffer if they are not in one already."""
        parameters = [p for _, p in self.named_parameters()]
        if len({id(p.buffer) for p in parameters}) > 1:
            ParameterBuffer(parameters)
        if parameters and parameters[0].buffer is not None:
            buffer = parameters[0].buffer
            if buffer.count == len(parameters):
                owner = buffer.owner and buffer.owner()
                if owner is None or any(module is owner for _, module in self.named_modules()):
                    buffer.owner = weakref.ref(self)  # the outermost: optimizers ask it what is new
            random = buffer.random
            layers = [
                (number, module)
                for number, (_, module) in enumerate(self.named_modules())
                if module.draws
            ]
            if any(layer.random is not random for _, layer in layers):  # else: numbered already
                for number, layer in layers:
                    layer.layer, layer.random = number, random
        return parameters

    def num_parameters(self) -> int:
        return sum(p.size for _, p in self.named_parameters())

    def summary(self) -> Any:
        """A table of all layers with Parameters of their own: shapes and numbers of weights."""
        return summary_of(self)

    # ---- what can be done to it -----------------------------------------------------------------

    def train(self, mode: bool = True) -> "Module":
        """Switch what differs between training and use (dropout) on, or off."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients. ValueError for set_to_none=False: they are never set to 0."""
        if not set_to_none:
            raise ValueError("zero_grad: gradients are forgotten, never set to 0: zero_grad()")
        for _, parameter in self.named_parameters():
            parameter.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> "Module":
        """Train all Parameters, or none; an optimizer made afterwards takes those that train."""
        for _, parameter in self.named_parameters():
            parameter.requires_grad = requires_grad
        return self

    def to(self, *targets: Any, dtype: Any = None, device: Any = None) -> "Module":
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

    def initialize(self, seed: int = 0) -> None:
        """Draw all initial weights anew, every layer with a number of its own. TypeError if the
        seed is no whole number, ValueError if it is not from 0 to 2^64 - 1."""
        seed = check_seed(seed)
        for number, (_, module) in enumerate(self.named_modules()):
            module.draw_weights(seed, number)
        for parameter in self.parameters()[:1]:
            assert parameter.buffer is not None
            parameter.buffer.random.seed = seed

    def draw_weights(self, seed: int, layer: int) -> None:
        """Give this layer's own Parameters their initial values. Layers with any define it;
        `layer` is the layer's number in the whole model."""

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every Parameter as a NumPy array (a copy), under each of its paths."""
        return {
            path: np.array(to_numpy(value.data))
            for path, value in walk(self)
            if isinstance(value, Parameter)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take all values from a state_dict. Nothing is changed unless everything fits.

        ValueError names each entry that is missing, unexpected, of another shape or not finite,
        and shared Parameters that were given two different values.
        """
        if not hasattr(state, "items"):
            raise TypeError(f"load_state_dict: expected a dict of arrays, got {state!r:.60}")
        own = {path: value for path, value in walk(self) if isinstance(value, Parameter)}
        arrays = {
            name: value.data if isinstance(value, Variable) else value if is_array(value)
            else np.asarray(value) for name, value in state.items()
        }  # fmt: skip
        problems = [f"missing: {name}" for name in own if name not in arrays]
        problems += [f"unexpected: {name}" for name in arrays if name not in own]
        chosen: dict[int, str] = {}
        for name, parameter in own.items():
            array = arrays.get(name)
            if array is None:
                continue
            if array.shape != parameter.shape:
                problems.append(f"{name}: shape {array.shape}, but the model has {parameter.shape}")
            elif array.dtype.kind not in "fiu":
                problems.append(f"{name}: {array.dtype} is not a number")
            elif not all_finite(array, parameter.dtype):
                problems.append(f"{name}: as {parameter.dtype} it holds NaN or infinity")
            elif not _equal(array, arrays[chosen.setdefault(id(parameter), name)]):
                problems.append(f"{name} and {chosen[id(parameter)]} are one shared Parameter")
        if problems:
            raise ValueError(
                f"load_state_dict: {len(problems)} entries do not fit this "
                f"{type(self).__name__}:\n  " + "\n  ".join(problems)
            )
        for name, parameter in own.items():
            parameter.data = arrays[name]


def _equal(a: Array, b: Array) -> bool:
    return a is b or np.array_equal(to_numpy(a), to_numpy(b), equal_nan=True)
