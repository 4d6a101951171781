"""Reverse-mode differentiation: how a program remembers what it did, and runs it backwards.

A `Function` computes arrays from arrays (`forward`) and knows the chain rule for that one step
(`backward`): given dL/d(output) it returns dL/d(input) for each input. Applying it to Variables
leaves a trace, a node that points at the nodes its inputs came from:

    x (a leaf: not computed) <---- Mul <---- Sum <---- loss         arrows: `node.parents`

`backward(loss)` walks the arrows from the loss to the leaves. A node fires once everything that
used its outputs has fired, so each step of the chain rule is run exactly once, in time linear
in the size of the graph, whatever its depth.

>>> import numpy as np
>>> class Square(Function):
...     def forward(self, x):
...         self.x = x
...         return x * x
...     def backward(self, dy):
...         return 2 * self.x * dy
>>> x = Variable(np.array([3.0, 4.0]), requires_grad=True)
>>> y = Square.apply(x)
>>> backward(y, np.array([1.0, 1.0]))
>>> print(x.grad)
[6. 8.]

A node knows its inputs; nothing in the graph points forward to an output. So there are no
reference cycles, and arrays are freed the moment the last name for them goes.

Next: `ops.py`, the operations.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .backend import FLOAT_DTYPES, Array, describe, device_of, is_array, namespace
from .grad_mode import is_grad_enabled

# ---- the graph ----------------------------------------------------------------------------------


class Variable:
    """An array and its place in the graph: made by `node`, or a leaf when that is None.

    Tensor (tensor.py) adds the operators, Parameter (parameters.py) a home in a flat buffer.
    """

    __slots__ = ("__weakref__", "data", "grad", "node", "output_index", "requires_grad")
    is_parameter: ClassVar[bool] = False
    version = 0  # Parameters count their changes
    result_class: ClassVar[type["Variable"]]  # what Functions return: Tensor, once that is known

    data: Array
    grad: Array | None

    def __init__(self, data: Array, requires_grad: bool = False):
        self.data = data
        self.grad = None
        self.node: Function | None = None
        self.output_index = 0
        self.requires_grad = requires_grad

    def accumulate_grad(self, gradient: Array) -> None:
        """Only backward calls this. The first gradient is copied: it may be shared with others."""
        if self.grad is None:
            self.grad = namespace(gradient).array(gradient, dtype=self.data.dtype, copy=True)
        else:  # a new array: whoever holds the old one keeps it as it was
            self.grad = _sum(self.grad, gradient)


def _sum(a: Array, b: Array) -> Array:
    return namespace(a).asarray(a + b)  # NumPy makes a number of the sum of two 0-d arrays


Variable.result_class = Variable


class Function:
    """One differentiable operation on arrays, and the node that remembers one use of it.

    Subclasses write
        forward(self, *inputs, **options)   arrays (or Python scalars) -> array or tuple of arrays
        backward(self, *gradients)          one per output, None if unused -> one per input
    `forward` keeps what `backward` needs as attributes (`self.x = x`) and `self.needs[i]` says
    whether input i needs a gradient: save and compute nothing else; return None for the rest.
    Neither may write into an array that it did not make. `takes_numbers`: inputs may be Python
    numbers; `optional`: the positions of inputs that may be None.
    """

    __slots__ = (
        "__dict__", "__weakref__", "input_kinds", "needs", "num_outputs", "parents", "versions",
    )  # fmt: skip

    takes_numbers: ClassVar[bool] = True
    optional: ClassVar[tuple[int, ...]] = ()

    needs: tuple[bool, ...]
    input_kinds: tuple[Any, ...]  # per input: shape and dtype
    num_outputs: int
    parents: tuple[Any, ...] | None  # per input: (node, output index), (leaf, None) or None
    versions: list[tuple[Variable, int]]  # the Parameters read, and how often they had changed

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no forward")

    def backward(self, *gradients: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no backward")

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Any:
        """Run forward; record this use of it if any input needs a gradient.

        Inputs are Variables, plain arrays (constants) or Python scalars. They must agree in dtype
        and device (TypeError); Parameters are read in the dtype of the others.
        """
        node = cls()
        recording = is_grad_enabled()
        node.needs = tuple(
            [recording and isinstance(v, Variable) and v.requires_grad for v in inputs]
        )
        arrays = _read_inputs(cls, inputs)
        try:
            result = node.forward(*arrays, **options)
        except ValueError as error:
            met = ", ".join(describe(a) if is_array(a) else repr(a) for a in arrays)
            raise ValueError(f"{cls.__name__} of {met}: {error}") from None
        outputs = result if isinstance(result, tuple) else (result,)
        result_class = Variable.result_class
        if not any(node.needs):
            variables = tuple([result_class(output) for output in outputs])
            return variables if isinstance(result, tuple) else variables[0]

        node.num_outputs = len(outputs)
        node.input_kinds = tuple([(a.shape, a.dtype) if is_array(a) else None for a in arrays])
        node.parents = tuple(
            [_parent(v) if need else None for v, need in zip(inputs, node.needs, strict=True)]
        )
        node.versions = [
            (v, v.version) for v in inputs if isinstance(v, Variable) and v.is_parameter
        ]
        variables = ()
        for index, output in enumerate(outputs):
            variable = result_class(output, requires_grad=True)
            variable.node = node
            variable.output_index = index
            variables += (variable,)
        return variables if isinstance(result, tuple) else variables[0]

    def release(self) -> None:
        """Forget what forward kept, and the way to the inputs."""
        self.__dict__.clear()
        self.parents, self.versions = None, []


def _parent(variable: Variable) -> Any:
    if variable.node is not None:
        return (variable.node, variable.output_index)
    return (variable, None)


def _read_inputs(function: type[Function], inputs: Sequence[Any]) -> list[Any]:
    """The arrays of the inputs, checked: one floating dtype, one device.

    Activations, that is all that are not Parameters, must agree; Parameters are read as they are.
    """
    name = function.__name__
    arrays = []
    first = None  # the first activation: what the others must match
    parameters = False
    for value in inputs:
        if isinstance(value, Variable):
            array = value.data
            if value.is_parameter:
                parameters = True
                arrays.append(array)
                continue
        elif function.takes_numbers and isinstance(value, (bool, int, float, np.generic)):
            # NumPy's numbers would promote float32 arrays: make them plain ones
            arrays.append(value.item() if isinstance(value, np.generic) else value)
            continue
        elif value is None and len(arrays) in function.optional:
            arrays.append(None)
            continue
        elif is_array(value):
            array = value
        else:
            kinds = "a Tensor, an array or a number" if function.takes_numbers else "a Tensor"
            raise TypeError(f"{name}: expected {kinds} as input {len(arrays)}, got {value!r:.60}")
        if array.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{name}: works on float32 or float64, got {describe(array)}; "
                "convert it first, for example with .to('float32')"
            )
        if first is None:
            first = array
        else:
            _check_match(name, first, array)
        arrays.append(array)
    if parameters:
        for index, value in enumerate(inputs):
            if isinstance(value, Variable) and value.is_parameter:
                if first is None:
                    first = value.data
                arrays[index] = value.read(first.dtype)  # type: ignore[attr-defined]
                _check_match(name, first, arrays[index])
    return arrays


def _check_match(name: str, first: Array, other: Array) -> None:
    if first.dtype != other.dtype:
        problem = "different dtypes"
    elif device_of(first) != device_of(other):
        problem = "different devices"
    else:
        return
    raise TypeError(
        f"{name}: inputs of {problem}: {describe(first)} and {describe(other)}; "
        "bring them together with .to(...)"
    )


# ---- backward -----------------------------------------------------------------------------------


def backward(root: Variable, gradient: Array | None = None, retain_graph: bool = False) -> None:
    """Add d(root)/d(leaf) * gradient into the `grad` of every leaf that `root` was made from.

    `gradient` has root's shape and dtype; it may be left out (one) if root has one element.
    Each node forgets what it kept as it fires, so memory falls as backward proceeds; with
    `retain_graph` nothing is forgotten and backward may be called again. No state is shared
    between calls: one may run inside another.
    """
    if not root.requires_grad:
        raise ValueError(
            "backward: this result needs no gradient; nothing it was made from has "
            "requires_grad=True, or it was computed under no_grad()"
        )
    gradient = _seed(root, gradient)
    if root.node is None:
        root.accumulate_grad(gradient)
        return

    waiting = _count_uses(root.node)
    # What has arrived at each output of a node: [array, whether the array is ours to add into].
    arrived: dict[Function, list[list[Any] | None]] = {root.node: [None] * root.node.num_outputs}
    arrived[root.node][root.output_index] = [gradient, False]
    ready = [root.node]
    del gradient
    while ready:
        node = ready.pop()
        gradients = [slot and slot[0] for slot in arrived.pop(node, [])]
        parents = node.parents
        assert parents is not None
        if any(g is not None for g in gradients):
            results = _fire(node, gradients)
        else:  # nothing reached this node, but those behind it wait for its word
            results = [None] * len(parents)
        del gradients
        if not retain_graph:
            node.release()
        for position, parent in enumerate(parents):
            if parent is None:
                continue
            result, results[position] = results[position], None
            source, index = parent
            if isinstance(source, Variable):
                if result is not None:
                    source.accumulate_grad(result)
                continue
            if result is not None:
                slots = arrived.setdefault(source, [None] * source.num_outputs)
                slot = slots[index]
                if slot is None:
                    slots[index] = [result, False]
                elif slot[1]:
                    slot[0] += result
                else:  # two arrays that others may also hold: their sum is a third
                    slots[index] = [_sum(slot[0], result), True]
            waiting[source] -= 1
            if waiting[source] == 0:
                ready.append(source)


def _seed(root: Variable, gradient: Array | None) -> Array:
    xp = namespace(root.data)
    if gradient is None:
        if root.data.size != 1:
            raise ValueError(
                f"backward: a result of shape {root.data.shape} has no single number to "
                "differentiate; give `gradient`, or reduce it first with .sum() or .mean()"
            )
        return xp.ones_like(root.data)
    gradient = gradient.data if isinstance(gradient, Variable) else gradient
    if isinstance(gradient, (int, float)):
        gradient = xp.full(root.data.shape, gradient, dtype=root.data.dtype)
    elif not is_array(gradient):  # a list has no dtype to insist on
        gradient = xp.asarray(gradient, dtype=root.data.dtype)
    if gradient.shape != root.data.shape or gradient.dtype != root.data.dtype:
        raise ValueError(
            f"backward: the gradient is {describe(gradient)}, the result {describe(root.data)}; "
            "they must agree"
        )
    return gradient


def _count_uses(root: Function) -> dict[Function, int]:
    """How often each node's outputs were used by nodes that `root` depends on. No recursion:
    a chain of 10,000 operations is nothing unusual, and Python's stack is shorter."""
    uses = {root: 0}
    stack = [root]
    while stack:
        node = stack.pop()
        if node.parents is None:
            raise ValueError(
                f"backward: the graph behind {type(node).__name__} was released by an earlier "
                "backward; call that one with retain_graph=True to go through it twice"
            )
        for parent in node.parents:
            if parent is None or isinstance(parent[0], Variable):
                continue
            source = parent[0]
            if source in uses:
                uses[source] += 1
            else:
                uses[source] = 1
                stack.append(source)
    return uses


def _fire(node: Function, gradients: list[Array | None]) -> list[Array | None]:
    """Run one node's backward and check what it returns."""
    name = type(node).__name__
    assert node.parents is not None
    for parameter, version in node.versions:
        if parameter.version != version:
            raise ValueError(
                f"backward: a Parameter that {name} used was changed after forward; "
                "call backward before the optimizer's step or an assignment to .data"
            )
    results = node.backward(*gradients)
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    if len(results) != len(node.parents):
        raise ValueError(
            f"{name}.backward returned {len(results)} gradients for {len(node.parents)} inputs"
        )
    for index, (result, parent) in enumerate(zip(results, node.parents, strict=True)):
        if result is None or parent is None:
            continue
        if not is_array(result) and not isinstance(result, np.generic):
            raise TypeError(
                f"{name}.backward returned {result!r:.60} for input {index}; it must be an array"
            )
        shape, dtype = node.input_kinds[index]
        if result.shape != shape:
            raise ValueError(
                f"{name}.backward returned a gradient of shape {result.shape} for input {index} "
                f"of shape {shape}: was a broadcast not undone?"
            )
        if result.dtype != dtype:
            raise TypeError(
                f"{name}.backward returned {result.dtype} as the gradient of input {index}, {dtype}"
            )
    return results
