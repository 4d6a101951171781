"""What a fast form may ask of the engine beyond what a Function can: two favours for speed.

precision      how products are to read float32, as the model of the Parameters read wants it
destination    the place where a Parameter's gradient belongs: written there at once, and
               returned, it need not be copied
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..engine.autograd import Function
from ..engine.precision import wide
from ..nn.parameters import Parameter


class Fast(Function):
    """A Function that does the work of the plain one which it derives from, where it suits."""

    def suits(self, *inputs: Any, **options: Any) -> bool:
        """Will it do, and does it pay? Asked before forward, with what forward is to be given;
        `self.needs` is known."""
        return True

    def read(self, inputs: Sequence[Any]) -> None:
        """Look at the inputs themselves, before `suits`."""
        self.precision: Any = next(
            (v.buffer.precision for v in inputs if isinstance(v, Parameter)), None
        )

    def destination(self, position: int) -> Array | None:
        """For backward: where the gradient of an input may be written and returned; None if there
        is no such place. It belongs to a Parameter without a gradient so far, which takes gradients
        as all do."""
        assert self.parents is not None
        source = (self.parents[position] or (None,))[0]
        if type(source) is not Parameter or source.has_grad:
            return None
        if sum(parent is not None and parent[0] is source for parent in self.parents) > 1:
            return None  # it has but one place
        if self.input_dtype == np.float16 or wide(self.input_dtype) != source.dtype:
            return None  # there is something to scale or to convert
        return source.grad_window
