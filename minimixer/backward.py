"""The walk from a loss to the leaves, and what is checked on the way.

A node fires once everything that used its outputs has fired, so each step of the chain rule is run
exactly once, in time linear in the size of the graph, whatever its depth.

>>> import numpy as np
>>> class Square(Function):
...     def forward(self, x):
...         self.x = x
...         return x * x
...     def backward(self, dy):
...         return 2 * self.x * dy
>>> x = Variable(np.array([3.0, 4.0]), requires_grad=True)
>>> backward(Square.apply(Square.apply(x)), np.array([1.0, 1.0]))    # of x^4: 4 x^3
>>> print(x.grad)
[108. 256.]

Next: `ops.py`, the operations.
"""

from typing import Any

from .autograd import Function, Variable, added
from .backend import Array, describe, is_array, join, namespace, one
from .dispatch import quiet, run_back
from .precision import native


def backward(root: Variable, gradient: Array | None = None, retain_graph: bool = False) -> None:
    """Add d(root)/d(leaf) * gradient into the `grad` of every leaf that `root` was made from.

    `gradient` has root's shape and dtype; it may be left out (one) if root has one element.
    Each node forgets what it kept as it fires, so memory falls as backward proceeds; with
    `retain_graph` nothing is, and backward may be called again. One may run inside another.
    """
    if not root.requires_grad:
        raise ValueError(
            "backward: this result needs no gradient: no input had requires_grad=True, or no_grad()"
        )
    gradient = _seed(root, gradient)
    if root.node is None:
        root.accumulate_grad(gradient)
        return

    waiting = _count_uses(root.node)
    arrived: dict[Function, list[Array | None]] = {root.node: [None] * root.node.num_outputs}
    arrived[root.node][root.output_index] = gradient
    del gradient
    try:  # infinite slopes, and NaN behind them, are what the derivatives are: no warnings
        quiet.copy().run(_walk, root.node, waiting, arrived, retain_graph)
    finally:
        join()


def _walk(
    root: Function,
    waiting: dict[Function, int],
    arrived: dict[Function, list[Array | None]],
    retain_graph: bool,
) -> None:
    sums: set[tuple[Function, int]] = set()  # of these what arrived is ours to add into
    ready = [root]
    while ready:
        node = ready.pop()
        parents, kinds, gradients = node.parents, node.kinds, arrived.pop(node, None)
        assert parents is not None
        if gradients is None:  # nothing reached it, but those behind it wait for its word
            results: Any = (None,) * len(parents)
        else:
            results = run_back(node, gradients)
        if not retain_graph:
            node.release()
        for position, parent in enumerate(parents):
            if parent is None:
                continue
            result = results[position]
            source, index = parent
            if index is None:
                if result is not None:
                    source.accumulate_grad(result, kinds[position][1])
                continue
            if result is not None:
                places = arrived.get(source)
                if places is None:
                    places = arrived[source] = [None] * source.num_outputs
                if places[index] is None:
                    places[index] = result
                elif (source, index) in sums:
                    places[index] += result
                else:  # two arrays that others may also hold: their sum is a third
                    places[index] = added(places[index], result)
                    sums.add((source, index))
            left = waiting[source] = waiting[source] - 1
            if not left:
                ready.append(source)
        gradients = results = result = None  # else they would outlive the next node


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
    return gradient if gradient.base is None else gradient.copy()  # a view of what may change


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
            if parent is None or parent[1] is None:
                continue
            source = parent[0]
            if source in uses:
                uses[source] += 1
            else:
                uses[source] = 1
                stack.append(source)
    return uses
