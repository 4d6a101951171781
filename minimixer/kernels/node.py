"""What a fast form may ask of the engine beyond what a Function can: two favours for speed.

precision      how products are to read float32, as the model of the Parameters read wants it
destination    the place where a Parameter's gradient belongs: written there at once, and
               returned, it need not be copied
"""

from typing import Any

import numpy as np

from ..autograd import Function
from ..backend import Array, wide
from ..parameters import Parameter


class Fast(Function):
    """A Function that does the work of the plain one which it derives from, where it suits."""

    def suits(self, *inputs: Any, **options: Any) -> bool:
        """Will it do, and does it pay? Asked before forward, with what forward is to be given;
        `self.needs` is known."""
        return True

    @property
    def precision(self) -> str | None:
        """Of matrix products: "tf32", or None."""
        return self.versions[0][0].precision if self.versions else None  # type: ignore

    def destination(self, position: int) -> Array | None:
        """For backward: where the gradient of an input may be written and returned; None if there
        is no such place. It belongs to a Parameter without a gradient so far."""
        assert self.parents is not None
        source = (self.parents[position] or (None,))[0]
        if not isinstance(source, Parameter) or source.has_grad:
            return None
        if sum(parent is not None and parent[0] is source for parent in self.parents) > 1:
            return None  # it has but one place
        read_as = self.kinds[position][1]
        if read_as == np.float16 or wide(read_as) != source.dtype:
            return None  # there is something to scale or to convert
        return source.grad_window
