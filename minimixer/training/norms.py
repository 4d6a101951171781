"""The norm of all gradients, which says how far training has to be held back.

norm = sqrt(sum of g^2). The square of a number overflows, or vanishes, long before the number
does: float32 ends at 3e38, so squares do from 2e19 on. Dividing by the largest first keeps all
squares between 0 and 1, at the cost of another look at every number.

>>> import numpy as np
>>> from minimixer.training.norms import gradient_norm
>>> gradient_norm([np.full(3, 3e19, "float32"), np.full(1, 3e19, "float32")])
array(6.e+19, dtype=float32)
"""

import math

import numpy as np

from ..engine.arrays import Array, namespace
from ..engine.dispatch import replaceable
from ..engine.products import matmul


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
