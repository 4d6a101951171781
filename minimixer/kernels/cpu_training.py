"""AdamW and the gradients' norm again, for NumPy: in blocks, in place.

The loss has no fast form: softmax in blocks of rows took 1 to 27% longer than on whole arrays.
"""

import math
from typing import Any

import numpy as np

from ..backend import Array
from ..optim import CLIP, LR_FACTOR, STEP
from .blocks import BLOCK, parts
from .threads import blas_on_one_thread


def adamw(optimizer: Any, ranges: list[Any]) -> bool:
    """AdamW.update over all ranges, in 13 passes over each block instead of 15: constants are
    multiplied beforehand, as Python's numbers. False, and nothing done, for gradients that come
    from float16: those may be not finite; and for an optimizer with an update of its own."""
    buffer = optimizer.buffer
    if optimizer.scaled or "update" in vars(optimizer):
        return False
    b1, b2 = optimizer.betas
    factor, step, clip = (float(optimizer.control[i]) for i in (LR_FACTOR, STEP, CLIP))
    corrected = math.sqrt(1 - b2 ** (step + 1))  # m' / (sqrt v' + eps) with both corrections
    rate = factor * corrected / (1 - b1 ** (step + 1))  # is rate m / (sqrt v + eps corrected)
    moments = optimizer.state.values()
    scratch = np.empty(BLOCK, dtype=buffer.dtype)
    for start, stop, lr, decay in ranges:
        for begin in range(start, stop, BLOCK):
            place = slice(begin, min(begin + BLOCK, stop))
            w, g, m, v = (a[place] for a in (buffer.values, buffer.gradients, *moments))
            change = scratch[: len(w)]
            np.multiply(g, clip * (1 - b1), out=change)
            m *= b1
            m += change
            np.multiply(g, clip * math.sqrt(1 - b2), out=change)
            change *= change
            v *= b2
            v += change
            np.sqrt(v, out=change)
            change += optimizer.eps * corrected
            np.divide(m, change, out=change)
            change *= lr * rate
            if decay:
                w *= 1 - lr * decay * factor
            w -= change
        buffer.refresh(start, stop)
    return True


def sum_squares(array: Array) -> Array | None:
    """(n,) -> (1, 1): partial sums by block, added in float64. BLAS's own threads would be faster
    at this, and in the way of what comes next (threads.py). None, and it is left to the plain code,
    if squares may have overflowed or come too near to 0: one look at the sum tells."""
    with blas_on_one_thread, np.errstate(over="ignore"):
        sums = [float(np.dot(array[part], array[part])) for part in parts(array.size, BLOCK)]
        total = np.sum(sums)
    limits = np.finfo(array.dtype)
    if not float(limits.tiny) ** 0.5 < total < float(limits.max) ** 0.5:
        return None
    return np.array([[total]]).astype(array.dtype)
