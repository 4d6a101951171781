"""The walk from a loss to the leaves, and what is checked on the way.

Where x is used twice, for y and for z, a change of x reaches L on both ways, and gradients add:

    dL/dx = dL/dy dy/dx + dL/dz dz/dx

So what goes on from a node is the sum of all that arrived. Nodes are numbered as they are made: an
operation's number is larger than those of what it was made from. Backward goes from the largest to
the smallest: when a node's turn comes, all that used its outputs has sent its part, and each step
of the chain rule is run once. Sixty doublings are 60 steps; but 2^60 paths lead through them, and
to walk each by itself, a billion a second, would take 36 years:

>>> from minimixer import Tensor             # a Variable with the usual operators
>>> x = y = Tensor(3.0, requires_grad=True)
>>> for _ in range(60):
...     y = y + y
>>> y.backward()
>>> print(x.grad, 2.0**60)
1.1529215e+18 1.152921504606847e+18

Now you can do Task 3. Next: `grad_mode.py`, no_grad: whether operations are recorded.
"""

from operator import attrgetter
from typing import Any

from .arrays import Array, describe, is_array, namespace, native, one  # order of bytes; a 1
from .autograd import Function, Variable
from .dispatch import run_back, surrounded  # a node's backward; the walk, NumPy's warnings off
from .two_bytes import converted  # a gradient in its input's dtype; or what is wrong with it


def backward(root: Variable, gradient: Array | None = None, retain_graph: bool = False) -> None:
    """Add the gradient of sum(gradient * root) to `grad` of each leaf behind `root` that wants it.

    `gradient`: an array of root's shape and dtype, a list, or one number for all; if root has one
    element it may be left out (one).
    Each node forgets what it kept once its turn is over, so memory falls on the way; with
    `retain_graph` none does, and backward may be called again. A Function's backward may call this
    one, for a graph of its own."""
    if not root.requires_grad:
        raise ValueError(
            "backward: this result needs no gradient: no input had requires_grad=True, or it was "
            "computed under no_grad()"
        )
    gradient = _seed(root, gradient)
    if root.node is None:
        root.accumulate_grad(gradient)
        return

    order = sorted(_behind(root.node), key=attrgetter("serial"), reverse=True)
    arrived: dict[Function, list[Array | None]] = {root.node: [None] * root.node.outputs}
    arrived[root.node][root.output_index or 0] = gradient
    del gradient
    surrounded(_walk, order, arrived, retain_graph)


def _behind(root: Function) -> set[Function]:
    """All nodes that `root` depends on, and itself. No recursion: a chain of 10,000 operations is
    nothing unusual, and Python's stack is shorter."""
    found, todo = {root}, [root]
    while todo:
        node = todo.pop()
        if node.parents is None:
            raise ValueError(
                f"backward: the graph behind {type(node).__name__} was released by an earlier "
                "backward; call that one with retain_graph=True to go through it twice"
            )
        if [v for v, version in node.versions if v.version != version]:
            raise ValueError(
                f"backward: a Parameter that {type(node).__name__} used was changed after "
                "forward; call backward before the optimizer's step or an assignment to .data"
            )
        sources = {p[0] for p in node.parents if p and p[1] is not None} - found
        found |= sources
        todo += sources
    return found


def _walk(
    order: list[Function], arrived: dict[Function, list[Array | None]], retain_graph: bool
) -> None:
    """From the last node to the first: what used a node's outputs comes before it."""
    sums: set[tuple[Function, int]] = set()  # (node, output) whose array is ours, to add into
    for node in order:
        gradients = arrived.pop(node, None)  # None: nothing reached it
        results: Any = () if gradients is None else run_back(node, gradients)
        parents, dtype = node.parents or (), node.input_dtype
        if not retain_graph:  # forget what forward kept, and the way to the inputs
            vars(node).clear()  # forward's attributes; the fields of every node are slots
            node.parents, node.versions = None, ()
        for position, result in enumerate(results):
            if result is None or parents[position] is None:
                continue
            source, index, shape = parents[position]
            # (NumPy has one object for each dtype.)
            if getattr(result, "shape", None) != shape or result.dtype is not dtype:
                result = converted(node, position, result, shape, index is None)
            if index is None:
                source.accumulate_grad(result, dtype)
            else:
                places = arrived.setdefault(source, [None] * source.outputs)
                if places[index] is None:
                    places[index] = result
                elif (source, index) in sums:
                    places[index] += result
                else:  # two arrays that others may also hold: their sum is a third
                    places[index] = _sum(places[index], result)
                    sums.add((source, index))
        gradients = results = result = None  # else they would outlive the next node


def _sum(a: Array, b: Array) -> Array:
    return a + b if a.ndim else namespace(a).asarray(a + b)  # NumPy makes a number of 0-d arrays


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
    gradient = native(gradient)
    if gradient.shape != root.data.shape or gradient.dtype != root.data.dtype:
        raise ValueError(
            f"backward: the gradient is {describe(gradient)}, the result {describe(root.data)}; "
            "they must agree"
        )
    return gradient if gradient.base is None else gradient.copy()  # others may write into a view
