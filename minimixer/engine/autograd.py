"""Reverse-mode differentiation: how a program remembers what it did.

A network makes one number L, the loss, of many others, step by step: x -> y -> z -> L. The way back
begins at L. Each step is handed dL/dy of its output, and makes dL/dx of its input of it:

    dL/dx = dL/dy dy/dx

The matrix of all dy[j] / dx[i] is never written out. Why backwards, `docs/book/gradients.md` says.

Such a step is a `Function`: it computes arrays from arrays (`forward`), and dL/dx of each input x
from dL/dy of each output y (`backward`). Applied to Variables, arrays that know where they came
from, it leaves a trace: a node that points at the nodes of its inputs. All of them are the graph:

    x (a leaf: not computed) <--parents-- Multiply <--parents-- Sum <--node-- loss

The node itself is the Function that ran, with what it remembers. A parent is (the node, which of
its outputs, the input's shape), or, of a leaf, (the leaf, None, its shape).

>>> import numpy as np
>>> from minimixer.engine.autograd import Function, Variable
>>> class Square(Function):
...     def forward(self, x):
...         self.x = x
...         return x * x
...     def backward(self, dy):
...         return 2 * self.x * dy
>>> x = Variable(np.array([3.0, 4.0]), requires_grad=True)
>>> y = Square.apply(x)
>>> y.data, y.node.parents == [(x, None, (2,))]
(array([ 9., 16.]), True)
>>> y.node.backward(np.array([1.0, 1.0]))
array([6., 8.])

Nothing in the graph points forward, to an output. So there are no circles of references, and an
array is freed the moment the last name for it goes.

Next: `backward.py`, the walk back along it.
"""

import itertools
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np

from .arrays import Array, namespace  # namespace(x): numpy, or cupy, its like for GPUs; named xp
from .dispatch import choose, run  # run: forward, and what has to surround it
from .grad_mode import mode  # mode.enabled: is what is done recorded?
from .inputs import read_inputs
from .precision import FLOAT_DTYPES  # float32, float64

Gradients = tuple[Array | None, ...]  # one for each input; None: not needed

# ---- the graph ----------------------------------------------------------------------------------


class Variable:
    """An array and its place in the graph: made by `node`, or a leaf when that is None. With
    `requires_grad` backward shall bring its gradient. Tensor (tensor.py) adds the operators; a
    Parameter (parameters.py) is a Tensor that a model learns, one of its weights."""

    __slots__ = ("__weakref__", "data", "grad", "node", "output_index", "requires_grad")
    is_parameter: ClassVar[bool] = False
    version = 0  # Parameters count their changes
    result_class: ClassVar[Any]  # what Functions return: Tensor, once that is known
    data: Array
    grad: Array | None
    requires_grad: bool
    node: "Function | None"
    output_index: int | None

    def __init__(
        self, data: Array, requires_grad: bool = False, node: "Function | None" = None,
        output_index: int | None = None,
    ):  # fmt: skip
        self.data, self.grad, self.requires_grad = data, None, requires_grad
        self.node, self.output_index = node, output_index

    def link(self) -> tuple[Any, int | None, tuple[int, ...]]:
        """The way back from who uses this: to the node that made it, or to this leaf itself."""
        return self.node or self, self.output_index, self.data.shape

    def accumulate_grad(self, gradient: Array, read_as: np.dtype | None = None) -> None:
        """For backward. The first gradient is copied: it may be shared with others. `read_as`, for
        Parameters: the dtype that the operation read it in."""
        if self.grad is None:
            self.grad = namespace(gradient).array(gradient, dtype=self.data.dtype, copy=True)
        else:  # a new array: whoever holds the old one keeps it as it was
            total = self.grad + gradient.astype(self.data.dtype, copy=False)
            self.grad = namespace(gradient).asarray(total)  # NumPy makes a number of 0-d arrays


Variable.result_class = Variable


class Function:
    """One differentiable operation on arrays, and the node that remembers one use of it.

    Subclasses write
        forward(self, *inputs, **options)   arrays (or Python scalars) -> array, or several
        backward(self, *gradients)          one per output, None if unused -> one per input
    `forward` keeps what `backward` needs as attributes (`self.x = x`) and `self.needs[i]` says
    whether input i needs a gradient: save and compute nothing else; return None for the rest.
    Neither may write into an array that it did not make. `check` refuses what does not fit: forward
    begins with it, and it is asked before a fast form (the same, written for speed) is chosen.
    """

    __slots__ = (  # the node's fields; what forward keeps goes to __dict__, which backward clears
        "__dict__", "__weakref__", "input_dtype", "needs", "outputs", "parents", "serial",
        "versions",
    )  # fmt: skip

    # Settings, for later: most Functions leave them as they are (inputs.py and two_bytes.py).
    takes_numbers: ClassVar[bool] = True  # inputs may be Python numbers
    optional: tuple[int, ...] = ()  # which inputs may be None
    any_dtype: ClassVar[bool] = False  # numbers only move: their dtype does not matter
    wide_result: ClassVar[bool] = False  # a mean of float16 numbers is float32
    integers: ClassVar[str] = ""  # have no gradient: "" refused, "kept", or read as "float32"
    quiet: ClassVar[bool] = False  # NumPy shall not warn: infinities are right, as in log(0)

    needs: tuple[bool, ...]  # per input: is its gradient wanted?
    # per input: (node, output index, shape), of a leaf (leaf, None, shape); None if not needed
    parents: Sequence[Any] | None
    serial: int  # nodes are counted: those that an input came from have smaller numbers
    input_dtype: np.dtype  # of the inputs, and so of their gradients
    outputs: int  # how many
    versions: Sequence[tuple[Variable, int]]  # the Parameters read, and how often they had changed

    @staticmethod
    def check(*inputs: Any, **options: Any) -> None:
        """ValueError for what does not fit."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no forward")

    def backward(self, *gradients: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no backward")

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Any:
        """Run forward; record this use of it if any input needs a gradient. Inputs are Variables,
        plain arrays (constants) or Python scalars, and agree in dtype and device (TypeError);
        Parameters are read in the dtype of the others."""
        arrays, first = matched(cls, inputs)
        node = cls()
        links = [v.link() if isinstance(v, Variable) and v.requires_grad else None for v in inputs]
        node.needs = (*map(bool, links),) if mode.enabled else (False,) * len(links)
        node = choose(node, inputs, first, arrays, options)  # itself, or a fast form
        results = run(cls.__name__, node, first, arrays, options)
        return record(node, inputs, first, links, results)


def record(
    node: Function, inputs: Sequence[Any], first: Any, links: Sequence[Any], results: Any
) -> Any:
    """The results as Variables, which remember the node that made them if a gradient is needed:
    from there the way leads on to the nodes that made its inputs."""
    several = isinstance(results, (tuple, list))
    if True not in node.needs:
        return tuple([_variable(y) for y in results]) if several else _variable(results)
    node.serial, node.input_dtype, node.outputs = next(_serials), first.dtype, 1
    node.parents = links
    node.versions = [(v, v.version) for v in inputs if isinstance(v, Variable) and v.is_parameter]
    if not several:
        return _variable(results, node, 0)
    node.outputs = len(results)
    return tuple([_variable(y, node, i) for i, y in enumerate(results)])


_serials = itertools.count()
_NUMPYS = np.ndarray, np.generic  # arrays, and the numbers that NumPy makes of 0-d ones


def _variable(output: Any, node: Function | None = None, index: int | None = None) -> Variable:
    """What Functions return. (The checks of Tensor's own constructor would take a tenth of the time
    of a small operation.)"""
    kind = Variable.result_class
    array = np.asarray(output) if isinstance(output, _NUMPYS) else kind(output).data
    variable = kind.__new__(kind)
    Variable.__init__(variable, array, node is not None, node, index)
    return variable


# ---- what fits together -------------------------------------------------------------------------

_kind = attrgetter("__class__", "dtype")
_ALIKE = [{(np.ndarray, dtype)} for dtype in FLOAT_DTYPES]


def matched(function: type[Function], inputs: Sequence[Any]) -> tuple[list[Any], Any]:
    """The arrays of the inputs, of one floating dtype and on one device; and the first of them."""
    arrays = [v.data if isinstance(v, Variable) else v for v in inputs]
    first = arrays[0] if arrays else None
    try:
        alike = set(map(_kind, arrays)) in _ALIKE  # as they mostly are
    except AttributeError:  # numbers or None among them
        alike = False
    if not alike:
        arrays, first = read_inputs(function, inputs, arrays)  # numbers, several dtypes
    return arrays, first


def constant(what: str, value: Any) -> Any:
    """The array of a Variable that takes part and gets no gradient; TypeError if it wants one."""
    if not isinstance(value, Variable):
        return value
    if value.requires_grad and mode.enabled:
        raise TypeError(f"{what} gets no gradient, and this one wants it: use its .detach()")
    return value.data
