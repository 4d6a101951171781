"""Forget and compute again: activation checkpointing.

Backward needs what forward computed, and most of a training step's memory is what blocks keep for
it. A block run by `recompute` keeps its input alone; when backward arrives, it is run once more,
this time keeping everything, and its own backward follows at once. So only one block's arrays are
alive at a time, for the price of a second forward (Chen et al. 2016). The second run computes the
very same numbers: from the same weights, and with the same random draws, which have no hidden
state.

>>> from minimixer import Linear, Tensor
>>> from minimixer.nn.recompute import recompute
>>> layer, x = Linear(3, 2), Tensor([[1.0, 2.0, 3.0]], requires_grad=True)
>>> recompute(layer, x).sum().backward()     # as layer(x), with the same gradients
>>> layer.weight.grad.shape, x.grad.shape
((3, 2), (1, 3))
"""

from typing import Any

from ..engine.arrays import Array, is_array, namespace
from ..engine.autograd import Function, Gradients, Variable
from ..engine.grad_mode import enable_grad, is_grad_enabled, no_grad
from ..engine.tensor import Tensor
from .layers import Module, RandomLayer


def recompute(module: Module, *inputs: Any) -> Any:
    """module(*inputs), which keeps nothing but its inputs for backward.

    The module may return a tuple; whatever in it is no Tensor of its own making, such as a
    Parameter, is handed on as it is. ValueError in backward if a random layer within it draws
    otherwise by then: another mode, probability or seed.
    """
    if not is_grad_enabled():
        return module(*inputs)
    places = [i for i, value in enumerate(inputs) if _is_activation(value)]
    others = [None if i in places else value for i, value in enumerate(inputs)]

    def run(tensors: list[Any]) -> Any:
        given = list(others)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return module(*given)

    parameters: list[Any] = [p for _, p in module.named_parameters()]
    parameters += [v for v in others if isinstance(v, Variable)]
    layers = [m for _, m in module.named_modules() if isinstance(m, RandomLayer)]
    results: list[Any] = []
    outputs = _Recompute.apply(
        *[inputs[i] for i in places], *parameters, run=run, count=len(places), layers=layers,
        results=results,
    )  # fmt: skip
    if not isinstance(results[0], tuple):
        return outputs[0]
    remaining = iter(outputs)
    return tuple([next(remaining) if _is_activation(v) else v for v in results[0]])


def _is_activation(value: Any) -> bool:
    return is_array(value) or (isinstance(value, Variable) and not value.is_parameter)


class _Recompute(Function):
    """What `run` makes of the first `count` inputs. After them come the Parameters that it reads;
    their gradients go to them directly, from the backward inside of backward."""

    takes_numbers = False
    any_dtype = True

    def forward(self, *arrays: Array, run: Any, count: int, layers: Any, results: Any) -> Array:
        with no_grad():
            results.append(run([Tensor(array) for array in arrays[:count]]))
        self.run, self.inputs, self.layers = run, arrays[:count], layers
        self.drawn = _draws(layers)
        randoms = {id(m.random): m.random for m in layers if m.active}.values()
        self.counters = [(random, random.counters.copy()) for random in randoms]
        return tuple([v.data for v in _activations(results[0])])

    def backward(self, *gradients: Array | None) -> Gradients:
        if _draws(self.layers) != self.drawn:
            raise ValueError(
                "recompute: the mode, probability or seed of a random layer (dropout) was changed "
                "between forward and backward, which would now draw other numbers"
            )
        found: list[Any] = [None] * len(self.needs)
        inputs = [
            _Catch.apply(Tensor(array, requires_grad=True), found=found, place=i)
            if self.needs[i] else Tensor(array) for i, array in enumerate(self.inputs)
        ]  # fmt: skip
        now = [random.counters.copy() for random, _ in self.counters]
        for random, then in self.counters:
            random.counters[...] = then
        with enable_grad():
            outputs = _activations(self.run(inputs))
            arrived = [i for i, gradient in enumerate(gradients) if gradient is not None]
            end = _End.apply(
                *[outputs[i] for i in arrived], gradients=[gradients[i] for i in arrived]
            )
        for (random, _), counters in zip(self.counters, now, strict=True):
            random.counters[...] = counters
        del inputs, outputs, gradients  # which backward may free on its way
        end.backward()
        return tuple(found)


def _draws(layers: list[RandomLayer]) -> list[tuple[Any, ...]]:
    return [(m.active, m.p, m.random.seed) for m in layers]


def _activations(result: Any) -> list[Any]:
    return [v for v in (result if isinstance(result, tuple) else (result,)) if _is_activation(v)]


class _Catch(Function):
    """y = x; its gradient is put into `found`, and goes nowhere else."""

    takes_numbers = False
    any_dtype = True

    def forward(self, x: Array, found: Any, place: int) -> Array:
        self.found, self.place = found, place
        return x

    def backward(self, dy: Array) -> Array:
        self.found[self.place] = dy


class _End(Function):
    """A zero in which several outputs meet, to start from with a gradient for each."""

    takes_numbers = False
    any_dtype = True

    def forward(self, *outputs: Array, gradients: Any) -> Array:
        self.gradients = gradients
        return namespace(outputs[0]).zeros((), dtype="float32")

    def backward(self, d_end: Array) -> Gradients:
        return tuple(self.gradients)
