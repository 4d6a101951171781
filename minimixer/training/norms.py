"""The norm of all gradients, which says how far training has to be held back.

norm = sqrt(sum g^2). The square of a number overflows, or vanishes, long before the number
does: float32 ends at 3e38, so squares do from 2e19 on. Dividing by the largest first keeps all
squares between 0 and 1, at the cost of another look at every number.

>>> import numpy as np
>>> from minimixer.training.norms import gradient_norm
>>> gradient_norm([np.full(3, 3e19, "float32"), np.full(1, 3e19, "float32")])
array(6.e+19, dtype=float32)
"""

import math
from typing import Any

import numpy as np

from ..engine.arrays import Array, namespace
from ..engine.checks import check_number
from ..engine.dispatch import replaceable
from ..engine.products import matmul
from .settings import CLIP


@replaceable
def gradient_norm(parts: list[Array]) -> Array:
    """The norm of flat float32 or float64 arrays taken together, 0-d, in their dtype. NaN or
    infinite if one of their numbers is."""
    xp, dtype = namespace(parts[0]), parts[0].dtype
    largest = xp.stack([abs(part).max() for part in parts]).max()
    unit = xp.where((largest > 0) & (largest < math.inf), largest, 1).astype(dtype)
    squares = [matmul(p[None, :], p[:, None]) for p in (part / unit for part in parts)]
    with np.errstate(over="ignore"):
        return (xp.sqrt(sum(squares)) * unit).reshape(())


class Clipping:
    """The part of Optimizer that holds a step back."""

    def clip_grad_norm(self: Any, max_norm: float) -> Array:
        """Let the coming step see gradients of norm at most `max_norm`, all scaled alike: no odd
        batch throws the weights far (Pascanu et al. 2013). Returns their norm before, 0-d."""
        max_norm = check_number("max_norm", max_norm, ends="(]")
        self._follow()
        norm = self.gradient_norm()
        self.control[CLIP] = namespace(norm).minimum(1, max_norm / (norm + 1e-6))
        self.clipped = True
        return norm

    def gradient_norm(self: Any) -> Array:
        """The norm of all gradients, 0-d, in the parameters' dtype."""
        gradients = self.buffer.make_gradients()
        parts = [gradients[start:stop] for start, stop, _, _ in self._active_ranges()]
        return gradient_norm(parts or [gradients[:1] * 0])
