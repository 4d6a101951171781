"""Layers: Parameters with a forward.

A Module's Parameters and sub-modules are simply its attributes, or lie in lists, tuples or dicts
that are; found in the order in which they were assigned, and named by the path to them.

>>> class Network(Module):
...     def __init__(self):
...         self.layers = [Linear(4, 8), Linear(8, 2)]
...         self.initialize(seed=0)
...     def forward(self, x):
...         return self.layers[1](F.gelu(self.layers[0](x)))
>>> network = Network()
>>> [name for name, _ in network.named_parameters()]
['layers.0.weight', 'layers.0.bias', 'layers.1.weight', 'layers.1.bias']
>>> network(Tensor([[1.0, 2.0, 3.0, 4.0]])).shape
(1, 2)

Next: `recompute.py`, layers that forget.
"""

import contextlib
import math
import threading
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from . import functional as F
from .autograd import Variable
from .backend import Array, Purpose, is_array, namespace, random_bits, to_numpy, uniform, wide
from .checks import all_finite, check_number
from .checks import check_sizes as check_sizes
from .layer_norm import check_epsilon
from .ops import multiply
from .parameters import Parameter, ParameterBuffer, RandomCounter
from .tensor import Tensor, split_targets


class Module:
    """Something with Parameters, sub-modules and a `forward`; calling it calls `forward`."""

    training = True
    changes: ClassVar[int] = 0  # how often an attribute of any module was set: see graph.py

    def forward(self, *inputs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any) -> Any:
        return self.forward(*inputs)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(self, name, None), Parameter) and (
            isinstance(value, Tensor) and not isinstance(value, Parameter)
        ):
            raise TypeError(f"{name} is a Parameter: assign the new values to {name}.data")
        super().__setattr__(name, value)
        Module.changes += 1

    # ---- what is in it --------------------------------------------------------------------------

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(path, module) for this one and all below it, each once, in order of assignment."""
        seen: set[int] = set()
        for path, value in _walk(prefix, self, ()):
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                yield path, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(path, Parameter), each Parameter once, under its first path if it is shared."""
        seen: set[int] = set()
        for path, value in _walk("", self, ()):
            if isinstance(value, Parameter) and id(value) not in seen:
                seen.add(id(value))
                yield path, value

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
                if isinstance(module, RandomLayer)
            ]
            if any(layer.random is not random for _, layer in layers):  # else: numbered already
                for number, layer in layers:
                    layer.layer, layer.random = number, random
        return parameters

    def num_parameters(self) -> int:
        return sum(p.size for _, p in self.named_parameters())

    # ---- what can be done to it -----------------------------------------------------------------

    def train(self, mode: bool = True) -> "Module":
        """Switch what differs between training and use (dropout) on, or off."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        return self.train(False)

    def zero_grad(self) -> None:
        for _, parameter in self.named_parameters():
            parameter.grad = None

    def to(self, *targets: Any) -> "Module":
        """`to("cuda")`, `to("float64")`, or both: in place; optimizers follow. ValueError if the
        device can't be used here, or if the Parameters share a buffer with others'."""
        parameters = self.parameters()
        dtype, device = split_targets(targets)
        if parameters and parameters[0].buffer is not None:
            if parameters[0].buffer.count > len(parameters):
                raise ValueError("to: these layers are part of a larger model; move that one")
            parameters[0].buffer.to(dtype, device)
        return self

    def initialize(self, seed: int = 0) -> None:
        """Draw all initial weights anew, every layer with a number of its own. ValueError unless
        the seed is a whole number from 0 to 2^64 - 1."""
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be a whole number from 0 to 2^64 - 1, got {seed!r}")
        seed = int(seed)
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
            for path, value in _walk("", self, ())
            if isinstance(value, Parameter)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take all values from a state_dict. Nothing is changed unless everything fits.

        ValueError names each entry that is missing, unexpected, of another shape or not finite,
        and shared Parameters that were given two different values.
        """
        own = {path: value for path, value in _walk("", self, ()) if isinstance(value, Parameter)}
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


def _walk(path: str, value: Any, inside: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """All Modules and Parameters in `value` with their paths; `inside` are those around it."""
    if isinstance(value, Parameter):
        yield path, value
        return
    if id(value) in inside:  # a part that points back at the whole
        return
    items: Any = ()
    if isinstance(value, Module):
        yield path, value
        items = vars(value).items()
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for name, item in items:
        full = f"{path}.{name}" if path else f"{name}"
        yield from _walk(full, item, (*inside, id(value)))


def _equal(a: Array, b: Array) -> bool:
    return a is b or np.array_equal(to_numpy(a), to_numpy(b), equal_nan=True)


# ---- layers -------------------------------------------------------------------------------------


def lecun_normal(
    shape: tuple[int, ...], fan_in: int, seed: int, layer: int, number: int = 0
) -> np.ndarray:
    """Initial weights, float32: normal of variance 1 / fan_in, cut off at two deviations.

    So that a sum of fan_in terms has the variance of one input (LeCun et al. 1998). A standard
    normal cut off at 2 has deviation 0.8796; divided by that, it has 1 again. The paper's authors
    draw theirs in this way. `number` tells the several matrices of one layer apart.
    """
    size = math.prod(shape)
    values = np.empty(size, dtype=np.float32)
    block = 1 << 18
    for start in range(0, size, block):
        elements = np.arange(start, min(start + block, size), dtype=np.uint64)
        drawn = values[start : start + block]
        todo = np.arange(len(elements))
        attempt = 0
        while todo.size:
            bits = random_bits(seed, Purpose.WEIGHTS, attempt, layer, number, elements[todo])
            # Box and Muller 1958: two uniform numbers, a radius and an angle, make a normal one
            radius = np.sqrt(-2 * np.log(1 - uniform(bits, np.float32)))
            angle = (bits & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2**-23 * math.pi)
            drawn[todo] = radius * np.cos(angle)
            todo = todo[abs(drawn[todo]) > 2]
            attempt += 1
    values *= np.float32(1 / (0.87962566 * math.sqrt(fan_in)))
    return values.reshape(shape)


class Linear(Module):
    """y = x weight + bias. weight (in_features, out_features), bias (out_features,) or None.

    zero=True starts at weight 0, as the paper's head does. A layer on its own draws its weights
    from `seed` (None: they stay 0); a model redraws all with `initialize`.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, zero: bool = False,
        seed: int | None = 0,
    ):  # fmt: skip
        check_sizes(in_features=in_features, out_features=out_features)
        self.weight = Parameter(np.zeros((in_features, out_features), dtype=np.float32))
        self.bias = Parameter(np.zeros(out_features, dtype=np.float32)) if bias else None
        self.zero = zero
        if seed is not None:
            self.draw_weights(seed, 0)

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

    def __init__(self, channels: int, epsilon: float = 1e-6):
        check_sizes(channels=channels)
        self.weight = Parameter(np.ones(channels, dtype=np.float32))
        self.bias = Parameter(np.zeros(channels, dtype=np.float32))
        self.epsilon = check_epsilon(epsilon)

    def draw_weights(self, seed: int, layer: int) -> None:
        self.weight.data = np.ones(self.weight.shape, dtype=np.float32)
        self.bias.data = np.zeros(self.bias.shape, dtype=np.float32)

    def forward(self, x: Any) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.epsilon)


class GELU(Module):
    """functional.gelu as a layer."""

    def __init__(self, approximate: str = "none"):
        self.approximate = F.check_form(approximate)

    def forward(self, x: Any) -> Tensor:
        return F.gelu(x, self.approximate)


class _Mode(threading.local):
    evaluating = False


_mode = _Mode()


@contextlib.contextmanager
def evaluating() -> Iterator[None]:
    """Within it, in this thread, every module computes as after eval(); none is changed."""
    before, _mode.evaluating = _mode.evaluating, True
    try:
        yield
    finally:
        _mode.evaluating = before


def is_evaluating() -> bool:
    """Is this thread within `evaluating()`?"""
    return _mode.evaluating


class RandomLayer(Module):
    """Multiplies by 0 with probability `p`, by 1 / (1 - p) otherwise, while training.

    The draw depends on the model's seed and step, the layer's number, the example and the element.
    A model's optimizer advances the step; gather a model with `parameters()` or `initialize()`
    first, so that its layers are numbered. One layer called twice in a step draws the same twice.
    """

    purpose: Purpose
    layer = 0  # its number in the whole model, which tells its draws from other layers'

    def __init__(self, p: float = 0.5):
        self.p = check_number(f"{type(self).__name__}: p", p, 0, 1)
        self.random = RandomCounter()

    @property
    def active(self) -> bool:
        return self.training and self.p > 0 and not _mode.evaluating

    def keep(self, x: Tensor, examples: int, elements: int) -> Array:
        """The factors: (examples, elements), of x's dtype, on x's device."""
        random, xp = self.random, namespace(x.data)
        bits = random_bits(
            random.seed,
            self.purpose,
            xp.asarray(random.step)[:, None],
            self.layer,
            xp.asarray(random.examples(examples))[:, None],
            xp.arange(elements, dtype=np.uint64)[None, :],
        )
        dtype = wide(x.dtype)
        factors = (uniform(bits, dtype) >= self.p) * dtype.type(1 / (1 - self.p))
        return factors.astype(x.dtype, copy=False)


class Dropout(RandomLayer):
    """Every element of x (B, ...) on its own (Srivastava et al. 2014)."""

    purpose = Purpose.DROPOUT

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        return multiply(x, self.keep(x, len(x), math.prod(x.shape[1:])).reshape(x.shape))


class StochasticDepth(RandomLayer):
    """All of an example at once: what a block adds is skipped (Huang et al. 2016). x (S, B, C)."""

    purpose = Purpose.STOCHASTIC_DEPTH

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        return multiply(x, self.keep(x, x.shape[1], 1)[None])
