"""Sums while backward goes on: the gradients of the last blocks are ready long before the first's.

Backward goes through the blocks from the last to the first. When it has left one, the weights of
that and of all later blocks have their gradients. The buffer holds matrices first, from the stem's
to the head's, and then vectors: so those of the later blocks lie side by side, and can be added up
over the ranks, on a stream of their own, while the GPU computes those of earlier blocks.

    compute   | backward of blocks 11 ... 9 | 8 ... 6 | 5 ... 3 | 2 ... 0, stem |   | step
    sums                                    | 11 - 9  | 8 - 6   | 5 - 3         | rest

A marker at the entrance of every fourth part of the blocks tells: in forward it changes nothing,
its backward runs when the block behind it is done. Only in recorded steps (graph/), which all
ranks take alike; elsewhere `World.sum_gradients` adds up everything at the end.

Next: `examples/train_mnist.py`, where all of this is used.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ..engine.arrays import Array
from ..engine.aside import join
from ..engine.autograd import Function

BUCKETS = 4


class Marker(Function):
    """y = x; when the gradient comes by, `passed` is called."""

    any_dtype = True
    takes_numbers = False

    def forward(self, x: Array, passed: Any) -> Array:
        self.passed = passed
        return x[...]  # a view: y is another Tensor

    def backward(self, dy: Array) -> Array:
        self.passed()
        return dy


class Overlap:
    """Sums a model's gradients by `all_reduce`, part by part. It has `blocks`, called as
    `block(x, ...)`, and every Parameter is trained. Its blocks hold on to this: a copy of the model
    is to be made before."""

    def __init__(self, model: Any, all_reduce: Callable[[Array], None]):
        cupy = sys.modules["cupy"]
        self.model = model
        self.all_reduce = all_reduce
        # With no lower a priority than what a recorded step computes (graph/recording.py).
        self.stream: Any = cupy.cuda.Stream(non_blocking=True, priority=-1)
        self.summed: int | None = None  # from here to the last matrix
        blocks = model.blocks
        self.last: int = max(p.stop for p in model.parameters() if p.ndim > 1)
        self.first: int = self.last  # where the stretch that is summed first begins
        for index in sorted({len(blocks) * part // BUCKETS for part in range(1, BUCKETS)} - {0}):
            matrices = [p for p in blocks[index].parameters() if p.ndim > 1]
            self.first = min(p.start for p in matrices)
            self._mark(blocks[index], self.first)

    def _mark(self, block: Any, start: int) -> None:
        forward, passed = block.forward, partial(self._passed, start)

        def marked(x: Any, *others: Any) -> Any:
            return forward(Marker.apply(x, passed=passed), *others)

        block.forward = marked

    def _passed(self, start: int) -> None:
        # A recording that failed may have left `summed` behind: the first stretch begins anew.
        stop = self.last if self.summed is None or start == self.first else self.summed
        if sys.modules["cupy"].cuda.get_current_stream().is_capturing() and start < stop:
            join()
            self.summed = start
            self._sum(start, stop)

    def finish(self) -> bool:
        """Sum what is left, and let the current stream wait. False if nothing was summed yet."""
        first, self.summed = self.summed, None
        if first is None or not sys.modules["cupy"].cuda.get_current_stream().is_capturing():
            return False
        self._sum(0, first)
        self._sum(self.last, self.model.buffer.size)
        sys.modules["cupy"].cuda.get_current_stream().wait_event(self.stream.record())
        return True

    def _sum(self, start: int, stop: int) -> None:
        self.stream.wait_event(sys.modules["cupy"].cuda.get_current_stream().record())
        with self.stream:
            self.all_reduce(self.model.buffer.gradients[start:stop])
