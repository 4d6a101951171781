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

from .backend import (
    FLOAT_DTYPES,
    Array,
    describe,
    is_array,
    is_half,
    join,
    namespace,
    one,
    same_device,
    twin,
    use_device_of,
)
from .grad_mode import is_grad_enabled

# ---- the graph ----------------------------------------------------------------------------------


class Variable:
    """An array and its place in the graph: made by `node`, or a leaf when that is None.
    Tensor (tensor.py) adds the operators, Parameter (parameters.py) a home in a flat buffer.
    """

    __slots__ = ("__weakref__", "data", "grad", "node", "output_index", "requires_grad")
    is_parameter: ClassVar[bool] = False
    version = 0  # Parameters count their changes
    precision: str | None = None  # of products with a Parameter: "tf32", or None
    result_class: ClassVar[type["Variable"]]  # what Functions return: Tensor, once that is known
    data: Array
    grad: Array | None

    def __init__(self, data: Array, requires_grad: bool = False):
        self.data = data
        self.grad = None
        self.node: Function | None = None
        self.output_index = 0
        self.requires_grad = requires_grad

    def accumulate_grad(self, gradient: Array, read_as: np.dtype | None = None) -> None:
        """Only backward calls this. The first gradient is copied: it may be shared with others.
        `read_as`: the dtype that the operation read this Variable in."""
        if self.grad is None:
            self.grad = namespace(gradient).array(gradient, dtype=self.data.dtype, copy=True)
        else:  # a new array: whoever holds the old one keeps it as it was
            self.grad = _sum(self.grad, gradient.astype(self.data.dtype, copy=False))

    def lend_grad(self, read_as: np.dtype) -> Array | None:
        return None  # only Parameters have a place for their gradient: Function.destination


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
    numbers; `optional`: the positions of inputs that may be None; `half`: inputs may be stored in
    two bytes, and are then computed with in float32; their gradients may be given in float32.
    """

    __slots__ = (
        "__dict__", "__weakref__", "input_kinds", "needs", "num_outputs", "parents", "precision",
        "versions",
    )  # fmt: skip

    takes_numbers: ClassVar[bool] = True
    optional: ClassVar[tuple[int, ...]] = ()
    half: ClassVar[bool] = False

    needs: tuple[bool, ...]
    input_kinds: tuple[Any, ...]  # per input: shape and dtype
    num_outputs: int
    parents: tuple[Any, ...] | None  # per input: (node, output index), (leaf, None) or None
    versions: list[tuple[Variable, int]]  # the Parameters read, and how often they had changed
    precision: str | None  # of matrix products, as the Parameters' model wants it: "tf32" or None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no forward")

    def backward(self, *gradients: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no backward")

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Any:
        """Run forward; record this use of it if any input needs a gradient. Inputs are Variables,
        plain arrays (constants) or Python scalars, and agree in dtype and device (TypeError);
        Parameters are read in the dtype of the others.
        """
        arrays, first = _read_inputs(cls, inputs)
        if first is not None:
            use_device_of(first)
        fast = None if first is None else twin(cls, first)
        node = (fast or cls)()
        recording = is_grad_enabled()
        node.needs = tuple(
            [recording and isinstance(v, Variable) and v.requires_grad for v in inputs]
        )
        node.precision = next((v.precision for v in inputs if getattr(v, "precision", None)), None)
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

    def destination(self, position: int) -> Array | None:
        """For backward: an array where the gradient of an input may be written and returned, which
        saves a copy; None if there is none. It belongs to a Parameter without a gradient so far."""
        assert self.parents is not None
        source = (self.parents[position] or (None,))[0]
        uses = sum(parent is not None and parent[0] is source for parent in self.parents)
        if not isinstance(source, Variable) or uses > 1:  # it has but one place
            return None
        return source.lend_grad(self.input_kinds[position][1])

    def release(self) -> None:
        """Forget what forward kept, and the way to the inputs."""
        self.__dict__.clear()
        self.parents, self.versions = None, []


def _parent(variable: Variable) -> Any:
    return (variable, None) if variable.node is None else (variable.node, variable.output_index)


def _read_inputs(function: type[Function], inputs: Sequence[Any]) -> tuple[list[Any], Any]:
    """The arrays of the inputs, checked: one floating dtype, one device; and the first of them.

    Activations, that is all that are not Parameters, must agree; Parameters are read as they are.
    """
    name = function.__name__
    arrays, parameters = [], False
    first = None  # the first activation: what the others must match
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
        if array.dtype not in FLOAT_DTYPES and not (function.half and is_half(array.dtype)):
            raise TypeError(
                f"{name}: works on float32 or float64{' or two-byte floats' * function.half}, got "
                f"{describe(array)}; convert it first, for example with .to('float32')"
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
    return arrays, first


def _check_match(name: str, first: Array, other: Array) -> None:
    if first.dtype != other.dtype:
        problem = "different dtypes"
    elif not same_device(first, other):
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
    `retain_graph` nothing is, and backward may be called again. One may run inside another.
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
            scaled = any(kind and kind[1] == np.float16 for kind in node.input_kinds)
            on_overflow: Any = "ignore" if scaled else None  # which the optimizer notices
            with np.errstate(over=on_overflow, invalid=on_overflow):
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
                    source.accumulate_grad(result, node.input_kinds[position][1])
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
    join(root.data)


def _seed(root: Variable, gradient: Array | None) -> Array:
    xp = namespace(root.data)
    if gradient is None:
        if root.data.size != 1:
            raise ValueError(
                f"backward: a result of shape {root.data.shape} has no single number to "
                "differentiate; give `gradient`, or reduce it first with .sum() or .mean()"
            )
        return one(root.data) if root.data.ndim == 0 else xp.ones_like(root.data)
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
    return gradient if gradient.base is None else gradient.copy()  # perhaps of what is written to


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
    use_device_of(next(g for g in gradients if g is not None))
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
        if is_half(dtype) and result.dtype == np.float32:
            if not isinstance(parent[0], Variable):  # leaves convert it themselves
                results[index] = result.astype(dtype)
        elif result.dtype != dtype:
            raise TypeError(
                f"{name}.backward returned {result.dtype} as the gradient of input {index}, {dtype}"
            )
    return results
