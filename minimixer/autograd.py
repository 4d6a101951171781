"""Reverse-mode differentiation: how a program remembers what it did.

A `Function` computes arrays from arrays (`forward`) and knows the chain rule for that one step
(`backward`): given dL/d(output) it returns dL/d(input) for each input. Applying it to Variables
leaves a trace, a node that points at the nodes its inputs came from:

    x (a leaf: not computed) <---- Mul <---- Sum <---- loss         arrows: `node.parents`

To find the gradient, `backward.py` walks the arrows from the loss to the leaves.

>>> import numpy as np
>>> class Square(Function):
...     def forward(self, x):
...         self.x = x
...         return x * x
...     def backward(self, dy):
...         return 2 * self.x * dy
>>> x = Variable(np.array([3.0, 4.0]), requires_grad=True)
>>> y = Square.apply(x)
>>> y.data, y.node.parents == ((x, None),)
(array([ 9., 16.]), True)
>>> y.node.backward(np.array([1.0, 1.0]))
array([6., 8.])

A node knows its inputs; nothing in the graph points forward to an output. So there are no
reference cycles, and arrays are freed the moment the last name for them goes.

Next: `backward.py`, the walk.
"""

import contextvars
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .backend import (
    FLOAT_DTYPES,
    Array,
    describe,
    is_array,
    is_half,
    namespace,
    same_device,
    twin,
    use_device_of,
    widen,
)
from .grad_mode import is_grad_enabled
from .precision import native

# What runs in a copy of this context gets no warnings from NumPy, which keeps in a context variable
# what it shall do about infinities and NaN. (A `with np.errstate` takes five times as long.)
with np.errstate(all="ignore"):
    quiet = contextvars.copy_context()

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
            self.grad = added(self.grad, gradient.astype(self.data.dtype, copy=False))

    def lend_grad(self, read_as: np.dtype) -> Array | None:
        return None  # only Parameters have a place for their gradient: Function.destination


def added(a: Array, b: Array) -> Array:
    """The sum of two gradients, a new array."""
    return namespace(a).asarray(a + b)  # NumPy makes a number of the sum of two 0-d arrays


Variable.result_class = Variable


def constant(what: str, value: Any) -> Any:
    """The array of a Variable that takes part and gets no gradient; TypeError if it wants one."""
    if not isinstance(value, Variable):
        return value
    if value.requires_grad and is_grad_enabled():
        raise TypeError(f"{what} gets no gradient, and this one wants it: use its .detach()")
    return value.data


class Function:
    """One differentiable operation on arrays, and the node that remembers one use of it.

    Subclasses write
        forward(self, *inputs, **options)   arrays (or Python scalars) -> array or tuple of arrays
        backward(self, *gradients)          one per output, None if unused -> one per input
    `forward` keeps what `backward` needs as attributes (`self.x = x`) and `self.needs[i]` says
    whether input i needs a gradient: save and compute nothing else; return None for the rest.
    Neither may write into an array that it did not make. Class attributes say what else it can do:
        takes_numbers   inputs may be Python numbers, or 0-d arrays beside a Tensor
        optional        the positions of inputs that may be None
        half            it takes two-byte arrays (and gives gradients of them in two bytes or in
                        float32). Otherwise both ways are computed in float32, the results rounded
        whole           integers and booleans, which have no gradient: None refuses them, "kept"
                        takes them as they are, "float32" reads them as that
        quiet           infinities and NaN are right, as in log(0): NumPy shall not warn
    """

    __slots__ = (
        "__dict__", "__weakref__", "input_kinds", "needs", "num_outputs", "parents", "precision",
        "special", "versions",
    )  # fmt: skip

    takes_numbers: ClassVar[bool] = True
    optional: ClassVar[tuple[int, ...]] = ()
    half: ClassVar[bool] = False
    whole: ClassVar[str | None] = None
    quiet: ClassVar[bool] = False

    needs: tuple[bool, ...]
    input_kinds: tuple[Any, ...]  # per input: shape and dtype
    num_outputs: int
    parents: tuple[Any, ...] | None  # per input: (node, output index), (leaf, None) or None
    special: bool  # on a GPU, or in two bytes: backward has to prepare something
    versions: Sequence[tuple[Variable, int]]  # the Parameters read, and how often they had changed
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
        arrays, first, parameters = _read_inputs(cls, inputs)
        on_gpu = first is not None and namespace(first) is not np
        if on_gpu:
            use_device_of(first)
        fast = None if first is None else twin(cls, first)
        node = (fast or cls)()
        recording = is_grad_enabled()
        node.needs = tuple(
            [recording and isinstance(v, Variable) and v.requires_grad for v in inputs]
        )
        node.precision = None
        for parameter in parameters:
            node.precision = node.precision or parameter.precision
        two_bytes = first is not None and first.dtype.itemsize == 2 and is_half(first.dtype)
        try:
            if two_bytes and not node.half:
                result = _rounded_forward(node, arrays, options, first.dtype)
            elif node.quiet:
                result = quiet.copy().run(node.forward, *arrays, **options)
            else:
                result = node.forward(*arrays, **options)
        except (ValueError, TypeError, OverflowError) as error:
            met = ", ".join(describe(a) if is_array(a) else f"{a!r:.60}" for a in arrays)
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{cls.__name__} of {met}: {error}") from None
        several = isinstance(result, tuple)
        outputs = result if several else (result,)
        if True not in node.needs:
            variables = [_variable(output) for output in outputs]
            return tuple(variables) if several else variables[0]

        node.num_outputs = len(outputs)
        on_gpu = on_gpu or namespace(outputs[0]) is not np
        node.special = on_gpu or two_bytes
        node.input_kinds = tuple([(a.shape, a.dtype) if is_array(a) else None for a in arrays])
        node.parents = tuple(
            [_parent(v) if need else None for v, need in zip(inputs, node.needs, strict=True)]
        )
        node.versions = [(parameter, parameter.version) for parameter in parameters]
        variables = [_variable(output) for output in outputs]
        for index, variable in enumerate(variables):
            variable.requires_grad, variable.node, variable.output_index = True, node, index
        return tuple(variables) if several else variables[0]

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
        self.parents, self.versions = None, ()


def _rounded_forward(
    node: Function, arrays: Sequence[Any], options: dict[str, Any], dtype: np.dtype
) -> Any:
    """Of two-byte arrays, by a Function that knows float32: widened, computed with, rounded."""
    arrays = [widen(a) if is_array(a) else a for a in arrays]
    result = quiet.copy().run(node.forward, *arrays, **options)
    if isinstance(result, tuple):
        return tuple([_round(y, dtype) for y in result])
    return _round(result, dtype)


@np.errstate(over="ignore")  # float16 ends at 65504: beyond is infinite
def _round(array: Any, dtype: np.dtype) -> Array:
    return namespace(array).asarray(array).astype(dtype)


def _variable(output: Any) -> Variable:
    """What Functions return. Tensor's own look at what it is given takes a tenth of a small
    operation's time, and is not needed for arrays and for the numbers that NumPy makes of them."""
    kind = Variable.result_class
    if not isinstance(output, (np.ndarray, np.generic)):
        return kind(output)
    variable = kind.__new__(kind)
    Variable.__init__(variable, np.asarray(output))
    return variable


def _parent(variable: Variable) -> Any:
    return (variable, None) if variable.node is None else (variable.node, variable.output_index)


def _read_inputs(
    function: type[Function], inputs: Sequence[Any]
) -> tuple[list[Any], Any, list[Variable]]:
    """The arrays of the inputs, checked: one floating dtype, one device; the first of them; and
    which inputs are Parameters.

    Activations, that is all that are not Parameters, must agree; Parameters are read as they are.
    """
    name = function.__name__
    arrays: list[Any] = []
    parameters: list[Variable] = []
    first = None  # the first activation: what the others must match
    for value in inputs:
        if isinstance(value, Variable):
            array = value.data
            if value.is_parameter:
                parameters.append(value)
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
            if value.ndim == 0 and function.takes_numbers and _is_a_number(value, inputs):
                arrays.append(value.item())
                continue
            array = value if value.dtype.isnative else native(value)
        else:
            raise _unexpected(function, len(arrays), value)
        if array.dtype not in FLOAT_DTYPES and not is_half(array.dtype):
            return _read_whole_numbers(function, inputs)
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
    elif first is None and arrays and arrays[0] is not None:  # numbers alone, as Tensor reads them
        arrays[0] = first = np.asarray(arrays[0], dtype=np.float32)
    return arrays, first, parameters


def _unexpected(function: type[Function], position: int, value: Any) -> TypeError:
    kinds = "a Tensor, an array or a number" if function.takes_numbers else "a Tensor"
    return TypeError(
        f"{function.__name__}: expected {kinds} as input {position}, got {value!r:.60}"
    )


def _is_a_number(array: Array, inputs: Sequence[Any]) -> bool:
    """A 0-d NumPy array beside a Tensor is no more than a Python number, which never promotes."""
    return namespace(array) is np and any(isinstance(value, Variable) for value in inputs)


def _read_whole_numbers(
    function: type[Function], inputs: Sequence[Any]
) -> tuple[list[Any], Any, list[Variable]]:
    """As _read_inputs, where integers or booleans are among them: alone as `whole` says, or single
    numbers beside floats, `(losses * mask).sum() / mask.sum()`; all else is a TypeError."""
    values = [value.data if isinstance(value, Variable) else value for value in inputs]
    for position, value in enumerate(values):
        left_out = value is None and position in function.optional
        if not (left_out or is_array(value) or isinstance(value, (bool, int, float, np.generic))):
            raise _unexpected(function, position, value)
    odd = [a for a in values if is_array(a) and a.dtype.kind in "iub"]
    kinds = {a.dtype.kind in "iub" for a in values if is_array(a)}
    if kinds == {True} and function.whole is not None:
        for array in odd:
            if not same_device(array, odd[0]):
                _check_match(function.__name__, odd[0], array)
        values = [v.item() if isinstance(v, np.generic) else v for v in values]
        if function.whole == "float32" or any(isinstance(v, float) for v in values):
            values = [v.astype(np.float32) if is_array(v) else v for v in values]
        return values, next(v for v in values if is_array(v)), []
    single = function.takes_numbers and all(array.ndim == 0 for array in odd)
    if odd and len(kinds) == 2 and single:
        return _read_inputs(
            function,
            [
                v if not is_array(a) or a.dtype.kind not in "iub" else a.item()
                for v, a in zip(inputs, values, strict=True)
            ],
        )
    met = next(
        a for a in values if is_array(a) and not (a.dtype in FLOAT_DTYPES or is_half(a.dtype))
    )
    raise TypeError(
        f"{function.__name__}: works on float32, float64 or two-byte floats, got {describe(met)}; "
        "convert it first, for example with .to('float32')"
    )


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
